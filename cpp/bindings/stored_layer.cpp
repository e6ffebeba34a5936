// What a layer of a store is made of.
#include "arrays.hpp"

namespace attncache::python {

StoredLayer::StoredLayer(std::shared_ptr<const Layer> dense) : pattern_(dense->pattern), owner_(capsule_of(dense)) {
    indexes.resize(static_cast<std::size_t>(shape().batch_size));
}

StoredLayer::StoredLayer(std::shared_ptr<const FactoredLayer> factored) : factored_(std::move(factored)) {
    pattern_.shape = factored_->view().shape();
    pattern_.dtype = factored_->view().query.dtype;
    indexes.resize(static_cast<std::size_t>(shape().batch_size));
}

StoredLayer::StoredLayer(const Shape& shape, DType dtype, DeviceLayer device) : device_(std::move(device)) {
    pattern_.shape = shape;
    pattern_.dtype = dtype;
}

std::int64_t StoredLayer::n_bytes() const {
    if (is_on_device()) return device_.n_bytes;
    return factored_ != nullptr ? factored_->n_bytes() : pattern_.n_bytes();
}

void StoredLayer::refuse_to_read() const {
    throw py::value_error("the layer must lie in CPU memory, got one on " + device() +
                          "; cache.cpu() gives a copy of the cache there");
}

}  // namespace attncache::python
