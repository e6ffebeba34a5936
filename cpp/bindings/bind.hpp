// The pieces of the module, each in a file of its own.
#pragma once

#include "attncache/device.hpp"
#include "store.hpp"

namespace attncache::python {

void bind_layer(py::module_& module);
py::class_<Store> bind_store(py::module_& module);
void bind_device(py::module_& module);
void bind_queries(py::module_& module);
void bind_settings(py::module_& module);
void add_hot_calls(const py::class_<Store>& store);

/// Sets the MemoryError of what a device has no memory for, or of whatever the standard library cannot hold.
inline void set_no_memory(const std::exception& error) {
    const bool is_of_device = dynamic_cast<const DeviceMemoryError*>(&error) != nullptr;
    PyErr_SetString(PyExc_MemoryError, is_of_device ? error.what() : "there is no memory for this many items");
}

}  // namespace attncache::python
