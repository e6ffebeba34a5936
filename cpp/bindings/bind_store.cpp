// Store: layers in push order. The hot calls are added by hot_calls.cpp; docstrings live in the Python face.
#include <pybind11/stl.h>

#include "arrays.hpp"
#include "bind.hpp"

namespace attncache::python {

Store& store_of(PyObject* self) {
    // pybind11 keeps the C++ pointer of a class with one base in the first slot of the object.
    auto* const instance = reinterpret_cast<py::detail::instance*>(self);
    void* const value = instance->simple_layout ? instance->simple_value_holder[0] : nullptr;
    if (value != nullptr) return *static_cast<Store*>(value);
    return py::cast<Store&>(py::handle(self));
}

namespace {

void push(Store& self, const py::object& array, const std::string& dtype, const std::string& stored,
          bool shares_memory) {
    StoredLayer layer = layer_from_array(array, dtype_named(dtype), dtype_named(stored), shares_memory);
    self.layers.push_back(std::move(layer));
}

std::int64_t n_bytes(const Store& self) {
    std::int64_t bytes = 0;
    for (const StoredLayer& stored : self.layers) bytes += stored.layer->pattern.n_bytes();
    return bytes;
}

py::tuple shapes(const Store& self) {
    py::tuple shapes(self.layers.size());
    for (std::size_t i = 0; i < self.layers.size(); ++i) {
        const Shape& shape = self.layers[i].layer->pattern.shape;
        shapes[i] = py::make_tuple(shape.batch_size, shape.n_heads, shape.seq_q, shape.seq_k);
    }
    return shapes;
}

py::tuple dtypes(const Store& self) {
    py::tuple dtypes(self.layers.size());
    for (std::size_t i = 0; i < self.layers.size(); ++i) {
        dtypes[i] = py::str(name(self.layers[i].layer->pattern.dtype));
    }
    return dtypes;
}

}  // namespace

py::class_<Store> bind_store(py::module_& module) {
    using namespace py::literals;
    py::class_<Store> store(module, "Store");
    store.def(py::init<>())
        .def("_push", push, "array"_a, "dtype"_a, "stored"_a, "shares_memory"_a)
        .def(
            "_reserve", [](Store& self, std::size_t n_layers) { self.layers.reserve(n_layers); }, "n_layers"_a)
        .def("clear", [](Store& self) { std::vector<StoredLayer>().swap(self.layers); })
        .def("__len__", &Store::n_layers)
        .def_property_readonly("n_layers", &Store::n_layers)
        .def_property_readonly("is_empty", [](const Store& self) { return self.layers.empty(); })
        .def_property_readonly("nbytes", n_bytes)
        .def_property_readonly("shapes", shapes)
        .def_property_readonly("dtypes", dtypes);
    return store;
}

}  // namespace attncache::python
