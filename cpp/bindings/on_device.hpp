// Queries of layers on a device: with checked indices in hand, a function of attncache.cuda.queries answers.
#pragma once

#include <initializer_list>

#include "selection.hpp"

namespace attncache::python {

/// True or False, False if it is not given; TypeError for anything else.
inline bool flag(PyObject* value, const char* argument) {
    if (value == nullptr || value == Py_False) return false;
    if (value == Py_True) return true;
    throw py::type_error(std::string(argument) + " must be True or False, got " + Py_TYPE(value)->tp_name);
}

/// Raises the ValueError of a result that is wanted on a device by layers that lie in CPU memory.
[[noreturn]] void refuse_device_result();

/// Refuses a device result of layers in CPU memory.
inline void check_device_result(bool device_result, const ResolvedSelection& resolved) {
    if (device_result && !resolved.home) refuse_device_result();
}

/// The answer of `query` ("rows", "columns" or "edges") about those positions, of dimensions `resolved.dims`: a device
/// array, or floats in `out` or a new NumPy array. ValueError if there is an `out` for a device array.
py::object floats_on_device(const char* query, const ResolvedSelection& resolved,
                            std::initializer_list<std::span<const std::int64_t>> positions, bool device_result,
                            PyObject* out);

/// The answer of top_k: positions and weights, two device arrays or two NumPy arrays.
py::tuple top_k_on_device(const ResolvedSelection& resolved, std::span<const std::int64_t> positions,
                          Direction direction, bool device_result);

/// The answer of `query` ("rows" or "columns") about the mean over all heads of a batch item, as a new reference to
/// what `floats_on_device` gives; read-only if it is a new NumPy array. ValueError if the layer lies in CPU memory.
PyObject* mean_on_device(const char* query, const std::shared_ptr<StoredLayer>& stored, std::int64_t batch,
                         std::span<const std::int64_t> positions, std::span<const npy_intp> dims, PyObject* out,
                         bool device_result);

/// [(position, weight), ...] of the k heaviest keys of a query in that mean, a new reference.
PyObject* heaviest_on_device(const std::shared_ptr<StoredLayer>& stored, std::int64_t batch, std::int64_t query,
                             std::int64_t k);

}  // namespace attncache::python
