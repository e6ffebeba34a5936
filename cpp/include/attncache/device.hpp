// A device with memory of its own: it answers queries about the layers that lie there.
#pragma once

#include <new>
#include <span>
#include <string>
#include <utility>

#include "attncache/queries.hpp"

namespace attncache {

/// A device has no memory for what was asked of it.
class DeviceMemoryError : public std::bad_alloc {
public:
    explicit DeviceMemoryError(std::string words) : words_(std::make_shared<const std::string>(std::move(words))) {}
    const char* what() const noexcept override { return words_->c_str(); }

private:
    std::shared_ptr<const std::string> words_;  // copies of an exception must not throw
};

/// What a device answers; its layers refuse by name every query that it has no kernel for (std::invalid_argument).
class Device {
public:
    virtual ~Device() = default;

    /// "cuda:0"
    virtual const std::string& name() const = 0;

    // As the functions of those names in attncache/queries.hpp; all layers of the selection lie on this device.
    virtual void rows(const Selection& selection, std::span<const std::int64_t> positions, const Out& out) const;
    virtual void columns(const Selection& selection, std::span<const std::int64_t> positions, const Out& out) const;
    virtual void edges(const Selection& selection, std::span<const std::int64_t> from_positions,
                       std::span<const std::int64_t> to_positions, const Out& out) const;
    virtual void top_k(const Selection& selection, std::span<const std::int64_t> positions, Direction direction,
                       std::int64_t k, std::int64_t* top_positions, float* top_weights) const;

    /// A copy in CPU memory of a layer that lies on this device. Throws std::bad_alloc.
    virtual std::shared_ptr<const Layer> cpu(const Layer& layer) const = 0;

    /// Throws the refusal of a query that has no kernel: for one that is not among the functions above, too.
    [[noreturn]] void refuse(const char* query) const;
};

}  // namespace attncache
