// Answers that are written into an array on a device.
#pragma once

#include <optional>
#include <span>

#include "attncache/queries.hpp"
#include "numpy_api.hpp"

namespace attncache::python {

/// Where an answer of those dimensions goes if `out` is an array on the device of the layers that are asked; nullopt if
/// they lie in CPU memory (`device` is nullptr), or it is no array on a device. May run Python code.
/// ValueError if it lies on another device, or is no writable C-contiguous float32 array of those dimensions.
std::optional<Out> device_out(PyObject* out, const Device* device, std::span<const npy_intp> dims);

}  // namespace attncache::python
