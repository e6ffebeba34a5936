// The pieces of the module, each in a file of its own.
#pragma once

#include "store.hpp"

namespace attncache::python {

py::class_<Store> bind_store(py::module_& module);
void bind_factored(py::class_<Store>& store);
void bind_disk(py::class_<Store>& store);
void bind_part(py::class_<Store>& store);
void bind_device(py::class_<Store>& store);
void bind_dlpack(py::module_& module);
void bind_queries(py::module_& module);
void bind_settings(py::module_& module);
/// Sets the MemoryError of whatever the standard library cannot hold.
inline void set_no_memory() { PyErr_SetString(PyExc_MemoryError, "there is no memory for this many items"); }

void add_hot_calls(const py::class_<Store>& store);

}  // namespace attncache::python
