// Store: layers in push order. The hot calls are added by hot_calls.cpp; docstrings live in the Python face.
#include <string>

#include "arrays.hpp"
#include "bind.hpp"

namespace attncache::python {

namespace {

PyTypeObject* store_type = nullptr;  // lives as long as the module, which is never unloaded

}  // namespace

Store& store_of(PyObject* self) {
    if (!PyObject_TypeCheck(self, store_type)) {
        throw py::type_error(std::string("store must be a Store, got ") + Py_TYPE(self)->tp_name);
    }
    // pybind11 keeps the C++ pointer of an object with one bound base in its first slot.
    auto* const instance = reinterpret_cast<py::detail::instance*>(self);
    void* const value = instance->simple_layout
                            ? instance->simple_value_holder[0]
                            : instance->get_value_and_holder(py::detail::get_type_info(typeid(Store))).value_ptr();
    if (value == nullptr) throw py::type_error("AttentionCache.__init__ was not called on this object");
    return *static_cast<Store*>(value);
}

namespace {

void push(const py::object& self, const py::object& array, const std::string& dtype, const std::string& stored,
          bool shares_memory) {
    store_of(self);  // fails before the copy, not after it
    StoredLayer layer = layer_from_array(array, dtype_named(dtype), dtype_named(stored), shares_memory);
    store_of(self).layers.push_back(std::move(layer));
}

std::int64_t n_bytes(const py::object& self) {
    std::int64_t bytes = 0;
    for (const StoredLayer& stored : store_of(self).layers) bytes += stored.layer->pattern.n_bytes();
    return bytes;
}

py::tuple shapes(const py::object& self) {
    const auto& layers = store_of(self).layers;
    py::tuple shapes(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
        const Shape& shape = layers[i].layer->pattern.shape;
        shapes[i] = py::make_tuple(shape.batch_size, shape.n_heads, shape.seq_q, shape.seq_k);
    }
    return shapes;
}

py::tuple dtypes(const py::object& self) {
    const auto& layers = store_of(self).layers;
    py::tuple dtypes(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
        dtypes[i] = py::str(name(layers[i].layer->pattern.dtype));
    }
    return dtypes;
}

}  // namespace

py::class_<Store> bind_store(py::module_& module) {
    using namespace py::literals;
    py::class_<Store> store(module, "Store");
    store_type = reinterpret_cast<PyTypeObject*>(store.ptr());
    store.def(py::init<>())
        .def("_push", push, "array"_a, "dtype"_a, "stored"_a, "shares_memory"_a)
        .def(
            "_reserve", [](const py::object& self, std::size_t n_layers) { store_of(self).layers.reserve(n_layers); },
            "n_layers"_a)
        .def("_clear", [](const py::object& self) { std::vector<StoredLayer>().swap(store_of(self).layers); })
        .def_property_readonly("n_layers", [](const py::object& self) { return store_of(self).n_layers(); })
        .def_property_readonly("is_empty", [](const py::object& self) { return store_of(self).layers.empty(); })
        .def_property_readonly("nbytes", n_bytes)
        .def_property_readonly("shapes", shapes)
        .def_property_readonly("dtypes", dtypes);
    return store;
}

}  // namespace attncache::python
