// Store: layers in push order. The hot calls are added by hot_calls.cpp; docstrings live in the Python face.
#include <new>
#include <string>

#include "arrays.hpp"
#include "attncache/row_sample.hpp"
#include "bind.hpp"
#include "indices.hpp"

namespace attncache::python {

namespace {

PyTypeObject* store_type = nullptr;  // lives as long as the module, which is never unloaded

}  // namespace

Store& store_of(PyObject* self) {
    if (!PyObject_TypeCheck(self, store_type)) {
        throw py::type_error(std::string("store must be a Store, got ") + Py_TYPE(self)->tp_name);
    }
    return store_in(self);
}

Store& store_in(PyObject* self) {
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
    const bool indexes = store_of(self).policy == IndexPolicy::eager;
    auto layer = layer_from_array(array, dtype_named(dtype), dtype_named(stored), shares_memory, indexes);
    store_of(self).layers.push_back(std::move(layer));
}

/// What a few rows of an array look like: how many are judged, their least weight, and the least and greatest sum.
py::tuple row_sample(const py::object& array, const std::string& dtype) {
    const RowSample sample = sample_rows(source_of_array(array, dtype_named(dtype)));
    return py::make_tuple(sample.n_rows, sample.least_weight, sample.least_sum, sample.greatest_sum);
}

/// Makes a layer of another store the one at `at`, or the next one if `at` is n_layers. The two stores share it.
void put_layer(const py::object& self, const py::object& at, const py::object& source, const py::object& layer) {
    const std::int64_t number = whole_number(at.ptr(), "at");
    const std::int64_t from = whole_number(layer.ptr(), "layer");
    const Store& other = store_of(source);
    auto taken =
        other.layers[static_cast<std::size_t>(position_of(from, layer.ptr(), {"layer", "n_layers", other.n_layers()}))];
    Store& store = store_of(self);
    const std::int64_t position = position_of(number, at.ptr(), {"at", "n_layers + 1", store.n_layers() + 1});
    if (position == store.n_layers()) {
        store.layers.push_back(std::move(taken));
    } else {
        store.layers[static_cast<std::size_t>(position)].swap(taken);  // let go last: that may run Python code
    }
}

void reserve(const py::object& self, const py::object& n_layers) {
    const std::int64_t n = count(n_layers.ptr(), "n_layers");
    auto& layers = store_of(self).layers;
    if (static_cast<std::size_t>(n) > layers.max_size()) throw std::bad_alloc();
    layers.reserve(static_cast<std::size_t>(n));
}

std::int64_t index_n_bytes(const py::object& self) {
    std::int64_t bytes = 0;
    for (const auto& stored : store_of(self).layers) {
        for (const BatchIndex& place : stored->indexes) bytes += place.index.n_bytes;
    }
    return bytes;
}

std::int64_t n_bytes(const py::object& self) {
    std::int64_t bytes = index_n_bytes(self);
    for (const auto& stored : store_of(self).layers) {
        bytes += stored->n_bytes();
    }
    return bytes;
}

void drop_index(const py::object& self) {
    for (const auto& stored : store_of(self).layers) {
        for (BatchIndex& place : stored->indexes) {
            place.index = {};
            place.owner = {};
            place.rule.reset();
        }
    }
}

/// Whether the base of an array is a capsule of this library.
bool is_own_memory(const py::object& base) { return PyCapsule_IsValid(base.ptr(), kCapsuleName) != 0; }

constexpr const char* kPolicyNames[] = {"off", "auto", "eager"};

void set_index_policy(const py::object& self, const py::object& index) {
    const std::string policy = text(index, "index");
    for (const auto known : {IndexPolicy::off, IndexPolicy::automatic, IndexPolicy::eager}) {
        if (policy == kPolicyNames[static_cast<int>(known)]) {
            store_of(self).policy = known;
            return;
        }
    }
    throw py::value_error("index must be \"off\", \"auto\" or \"eager\", got \"" + policy + "\"");
}

py::tuple shapes(const py::object& self) {
    const auto layers = store_of(self).layers;  // a copy: making a tuple may collect garbage, whose finaliser may clear
    py::tuple shapes(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
        const Shape& shape = layers[i]->shape();
        shapes[i] = py::make_tuple(shape.batch_size, shape.n_heads, shape.seq_q, shape.seq_k);
    }
    return shapes;
}

py::tuple dtypes(const py::object& self) {
    const auto layers = store_of(self).layers;  // a copy: making a tuple may collect garbage, whose finaliser may clear
    py::tuple dtypes(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
        dtypes[i] = py::str(name(layers[i]->dtype()));
    }
    return dtypes;
}

}  // namespace

py::class_<Store> bind_store(py::module_& module) {
    using namespace py::literals;
    py::class_<Store> store(module, "Store");
    store_type = reinterpret_cast<PyTypeObject*>(store.ptr());
    module.def("row_sample", row_sample, "array"_a, "dtype"_a);
    store.def(py::init<>())
        .def("_push", push, "array"_a, "dtype"_a, "stored"_a, "shares_memory"_a)
        .def("_put_layer", put_layer, "at"_a, "source"_a, "layer"_a)
        .def("_reserve", reserve, "n_layers"_a)
        .def("_clear",
             [](const py::object& self) { std::vector<std::shared_ptr<StoredLayer>>().swap(store_of(self).layers); })
        .def_property_readonly("n_layers", [](const py::object& self) { return store_of(self).n_layers(); })
        .def_property_readonly("is_empty", [](const py::object& self) { return store_of(self).layers.empty(); })
        .def("_set_index_policy", set_index_policy, "index"_a)
        .def("_drop_index", drop_index)
        .def_property_readonly(
            "index",
            [](const py::object& self) { return py::str(kPolicyNames[static_cast<int>(store_of(self).policy)]); })
        .def_property_readonly("index_nbytes", index_n_bytes)
        .def_property_readonly("nbytes", n_bytes)
        .def_property_readonly("shapes", shapes)
        .def_property_readonly("dtypes", dtypes);
    module.def("is_own_memory", is_own_memory, "base"_a);
    return store;
}

}  // namespace attncache::python
