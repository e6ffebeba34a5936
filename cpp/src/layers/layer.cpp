// What all kinds of layers have in common.
#include "attncache/layer.hpp"

namespace attncache {

const char* name(Kind kind) { return kind == Kind::dense ? "dense" : "factored"; }

Layer::Layer(Kind kind, const Shape& shape, DType dtype, const Device* device)
    : shape_(shape),
      dtype_(dtype),
      kind_(kind),
      device_(device),
      slots_(static_cast<std::size_t>(shape.batch_size) * kDerivations) {}

std::int64_t Layer::derived_bytes() const {
    std::int64_t n_bytes = 0;
    for (const Slot& slot : slots_) {
        if (const auto kept = slot.get()) n_bytes += kept->n_bytes;
    }
    return n_bytes;
}

void Layer::drop_derived() const {
    for (Slot& slot : slots_) slot.drop();
}

}  // namespace attncache
