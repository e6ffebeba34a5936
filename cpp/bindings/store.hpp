// The store inside a Python object, and the layers that calls take out of it.
#pragma once

#include "attncache/store.hpp"
#include "numpy_api.hpp"

namespace attncache::python {

namespace py = pybind11;

/// The store inside a Python object; TypeError if that is no Store, or one whose __init__ never ran (pybind11's own
/// conversion would hand out unwritten memory for such an object, so bound functions take py::object and call this).
Store& store_of(PyObject* self);
/// The same for a `self` that CPython has checked to be a Store, as it does before it calls a method descriptor.
Store& store_in(PyObject* self);
inline Store& store_of(const py::object& self) { return store_of(self.ptr()); }

/// A layer of a store and its head means for the length of a look at them. With the GIL nobody else can change the
/// store meanwhile, so nothing is shared; without it, both are. Work that may release the GIL shares the layer first.
#ifdef Py_GIL_DISABLED
using LookedAtLayer = std::shared_ptr<const Layer>;
using LookedAtHeadMean = std::shared_ptr<const HeadMean>;
inline std::int64_t n_layers_of(const Store& store) { return store.n_layers(); }
inline LookedAtLayer look_at_layer(const Store& store, std::int64_t at) { return store.layer(at); }
inline LookedAtHeadMean look_at_head_mean(const Layer& layer, std::int64_t batch) {
    return std::static_pointer_cast<const HeadMean>(layer.slot(Derivation::head_mean, batch).get());
}
#else
using LookedAtLayer = const Layer*;
using LookedAtHeadMean = const HeadMean*;
inline std::int64_t n_layers_of(const Store& store) { return store.peek_n_layers(); }
inline LookedAtLayer look_at_layer(const Store& store, std::int64_t at) { return store.peek(at); }
inline LookedAtHeadMean look_at_head_mean(const Layer& layer, std::int64_t batch) {
    return peek_head_mean(layer, batch);
}
#endif

}  // namespace attncache::python
