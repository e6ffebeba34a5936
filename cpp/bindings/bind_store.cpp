// _core.Store: layers in push order. The hot calls are added by hot_calls.cpp; docstrings live in the Python face.
#include <string>

#include "arguments.hpp"
#include "arrays.hpp"
#include "bind.hpp"
#include "store.hpp"

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

using Held = std::shared_ptr<Layer>;

/// The Python object of a layer that other threads may ask for too.
py::object object_of(const Store::LayerPointer& layer) {
#ifdef Py_GIL_DISABLED
    // pybind11 lets other threads find an object before the layer is in it. No Python code runs meanwhile.
    static PyMutex mutex{};
    const struct Alone {
        Alone() { PyMutex_Lock(&mutex); }
        ~Alone() { PyMutex_Unlock(&mutex); }
    } alone;
#endif
    return py::cast(std::const_pointer_cast<Layer>(layer));
}

/// The layer of that number.
py::object layer_at(const py::object& self, const py::object& layer) {
    const std::int64_t number = whole_number(layer.ptr(), "layer");
    const Store& store = store_of(self);
    if (const auto found = store.layer(number)) return object_of(found);
    raise_out_of_range(layer, {"layer", "n_layers", store.n_layers()});
}

/// A Python object that says where a layer comes from; None says nothing.
Store::Source source_of(const py::object& source) { return source.is_none() ? nullptr : keep_alive(source); }

py::object source_object(const Store::Source& source) {
    if (source == nullptr) return py::none();
    return py::reinterpret_borrow<py::object>(static_cast<PyObject*>(const_cast<void*>(source.get())));
}

void append_layer(const py::object& self, const Held& layer, const py::object& source) {
    store_of(self).push(layer, source_of(source));
}

/// Makes a layer the one at `at`, or the next one if `at` is n_layers.
void put_layer(const py::object& self, const py::object& at, const Held& layer, const py::object& source) {
    const std::int64_t number = whole_number(at.ptr(), "at");
    Store& store = store_of(self);
    if (!store.put(number, layer, source_of(source))) {
        raise_out_of_range(at, {"at", "n_layers + 1", store.n_layers() + 1});
    }
}

/// A tuple of what `of` makes of each of some values.
template <class Values, class Of>
py::tuple tuple_of(const Values& values, const Of& of) {
    py::tuple objects(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) objects[i] = of(values[i]);
    return objects;
}

/// One value for each layer.
template <class Of>
py::tuple of_each(const py::object& self, const Of& of) {
    return tuple_of(store_of(self).layers(), [&](const auto& layer) { return of(*layer); });
}

template <class Of>
std::int64_t sum_of(const py::object& self, const Of& of) {
    std::int64_t sum = 0;
    for (const auto& layer : store_of(self).layers()) sum += of(*layer);
    return sum;
}

constexpr const char* kPolicyNames[] = {"off", "auto", "eager"};

void set_index_policy(const py::object& self, const py::object& index) {
    const std::string policy = text(index, "index");
    for (const auto known : {IndexPolicy::off, IndexPolicy::automatic, IndexPolicy::eager}) {
        if (policy == kPolicyNames[static_cast<int>(known)]) return store_of(self).set_policy(known);
    }
    throw py::value_error("index must be \"off\", \"auto\" or \"eager\", got \"" + policy + "\"");
}

}  // namespace

py::class_<Store> bind_store(py::module_& module) {
    using namespace py::literals;
    py::class_<Store> store(module, "Store");
    store_type = reinterpret_cast<PyTypeObject*>(store.ptr());
    store.def(py::init<>())
        .def("_append", append_layer, "layer"_a, "source"_a = py::none())
        .def("_put", put_layer, "at"_a, "layer"_a, "source"_a)
        .def(
            "_replace",
            [](const py::object& self, const Held& before, const Held& after) {
                return store_of(self).replace(before.get(), after);
            },
            "before"_a, "after"_a)
        .def("_layer", layer_at, "layer"_a)
        .def(
            "_reserve",
            [](const py::object& self, const py::object& n_layers) {
                store_of(self).reserve(count(n_layers.ptr(), "n_layers"));
            },
            "n_layers"_a)
        .def("_clear", [](const py::object& self) { store_of(self).clear(); })
        .def("_set_index_policy", set_index_policy, "index"_a)
        .def("_drop_index",
             [](const py::object& self) {
                 for (const auto& layer : store_of(self).layers()) layer->drop_derived();
             })
        .def_property_readonly("_sourced",
                               [](const py::object& self) {
                                   return tuple_of(store_of(self).sourced(), [](const Store::Sourced& one) {
                                       return py::make_tuple(object_of(one.layer), source_object(one.source));
                                   });
                               })
        .def_property_readonly("_sources",
                               [](const py::object& self) {
                                   return tuple_of(store_of(self).sourced(),
                                                   [](const Store::Sourced& one) { return source_object(one.source); });
                               })
        .def_property_readonly("n_layers", [](const py::object& self) { return store_of(self).n_layers(); })
        .def_property_readonly("is_empty", [](const py::object& self) { return store_of(self).n_layers() == 0; })
        .def_property_readonly(
            "index", [](const py::object& self) { return kPolicyNames[static_cast<int>(store_of(self).policy())]; })
        .def_property_readonly(
            "index_nbytes",
            [](const py::object& self) { return sum_of(self, [](const Layer& one) { return one.derived_bytes(); }); })
        .def_property_readonly("nbytes",
                               [](const py::object& self) {
                                   return sum_of(self,
                                                 [](const Layer& one) { return one.n_bytes() + one.derived_bytes(); });
                               })
        .def_property_readonly("kinds",
                               [](const py::object& self) {
                                   return of_each(self, [](const Layer& one) { return py::str(name(one.kind())); });
                               })
        .def_property_readonly("devices",
                               [](const py::object& self) {
                                   return of_each(self, [](const Layer& one) {
                                       return py::str(one.device() == nullptr ? "cpu" : one.device()->name());
                                   });
                               })
        .def_property_readonly("shapes",
                               [](const py::object& self) {
                                   return of_each(self, [](const Layer& one) {
                                       const Shape& shape = one.shape();
                                       return py::make_tuple(shape.batch_size, shape.n_heads, shape.seq_q, shape.seq_k);
                                   });
                               })
        .def_property_readonly("dtypes", [](const py::object& self) {
            return of_each(self, [](const Layer& one) { return py::str(name(one.dtype())); });
        });
    return store;
}

}  // namespace attncache::python
