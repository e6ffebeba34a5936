// Layers on a device: Python objects that the store keeps among its layers, and where each layer lies.
#include <string>
#include <utility>

#include "arrays.hpp"
#include "bind.hpp"
#include "indices.hpp"

namespace attncache::python {
namespace {

void push_device(const py::object& self, const py::object& layer) {
    const auto number = [](const py::handle& value) { return value.cast<std::int64_t>(); };
    const py::tuple shape = layer.attr("shape");
    const auto text_of = [&](const char* name) { return layer.attr(name).cast<std::string>(); };
    DeviceLayer device{layer, text_of("device"), text_of("kind") == "factored", number(layer.attr("nbytes"))};
    auto stored =
        std::make_shared<StoredLayer>(Shape{number(shape[0]), number(shape[1]), number(shape[2]), number(shape[3])},
                                      dtype_named(text_of("dtype")), std::move(device));
    store_of(self).layers.push_back(std::move(stored));
}

/// The Python object of a layer on a device, None of one in CPU memory.
py::object device_layer(const py::object& self, const py::object& layer) {
    const std::int64_t number = whole_number(layer.ptr(), "layer");
    const Store& store = store_of(self);
    const std::int64_t at = position_of(number, layer.ptr(), {"layer", "n_layers", store.n_layers()});
    const StoredLayer& stored = *store.layers[static_cast<std::size_t>(at)];
    return stored.is_on_device() ? stored.device_layer() : py::none();
}

py::tuple devices(const py::object& self) {
    const auto layers = store_of(self).layers;  // a copy: making a tuple may collect garbage, whose finaliser may clear
    py::tuple devices(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) devices[i] = py::str(layers[i]->device());
    return devices;
}

}  // namespace

void bind_device(py::class_<Store>& store) {
    using namespace py::literals;
    store.def("_push_device", push_device, "layer"_a)
        .def("_device_layer", device_layer, "layer"_a)
        .def_property_readonly("devices", devices);
}

}  // namespace attncache::python
