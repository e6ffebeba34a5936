// The layers of one Python cache. Every access holds the GIL, which orders pushes and queries; queries that release it
// keep the layers they read.
#pragma once

#include <vector>

#include "attncache/store.hpp"
#include "numpy_api.hpp"

namespace attncache::python {

namespace py = pybind11;

struct StoredLayer {
    std::shared_ptr<const Layer> layer;
    py::object owner;  // a capsule that shares the layer: the base of every view of it
};

struct Store {
    std::vector<StoredLayer> layers;

    std::int64_t n_layers() const { return static_cast<std::int64_t>(layers.size()); }
};

/// The store inside a Python object; TypeError if that is no Store, or one whose __init__ never ran (pybind11's own
/// conversion would hand out unwritten memory for such an object, so bound functions take py::object and call this).
Store& store_of(PyObject* self);
inline Store& store_of(const py::object& self) { return store_of(self.ptr()); }

}  // namespace attncache::python
