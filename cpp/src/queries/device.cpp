// What a device answers that has no kernel for a query.
#include "attncache/device.hpp"

#include <stdexcept>

namespace attncache {

void Device::refuse(const char* query) const {
    throw std::invalid_argument(std::string(query) + " cannot be asked of layers on " + name() +
                                " yet; cache.cpu() gives a copy of the cache in CPU memory");
}

void Device::rows(const Selection&, std::span<const std::int64_t>, const Out&) const { refuse("rows"); }

void Device::columns(const Selection&, std::span<const std::int64_t>, const Out&) const { refuse("columns"); }

void Device::edges(const Selection&, std::span<const std::int64_t>, std::span<const std::int64_t>, const Out&) const {
    refuse("edges");
}

void Device::top_k(const Selection&, std::span<const std::int64_t>, Direction, std::int64_t, std::int64_t*,
                   float*) const {
    refuse("top_k");
}

}  // namespace attncache
