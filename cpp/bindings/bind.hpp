// The pieces of the module, each in a file of its own.
#pragma once

#include "store.hpp"

namespace attncache::python {

void bind_layer(py::module_& module);
py::class_<Store> bind_store(py::module_& module);
void bind_dlpack(py::module_& module);
void bind_queries(py::module_& module);
void bind_settings(py::module_& module);
void add_hot_calls(const py::class_<Store>& store);

/// Sets the MemoryError of whatever the standard library cannot hold.
inline void set_no_memory() { PyErr_SetString(PyExc_MemoryError, "there is no memory for this many items"); }

}  // namespace attncache::python
