// The only place that turns NumPy arrays into patterns and back: dtypes, strides, owners, flags.
#pragma once

#include <span>
#include <string>

#include "attncache/device.hpp"
#include "attncache/factored.hpp"
#include "gil.hpp"

namespace attncache::python {

/// What capsules of ours are called.
constexpr const char* kCapsuleName = "attncache";

/// A Python object that shares memory that nobody writes any more, to be the base of views of it.
template <class T>
py::object capsule_of(std::shared_ptr<T> shared) {
    return py::capsule(new std::shared_ptr<T>(std::move(shared)), kCapsuleName,
                       [](void* p) { delete static_cast<std::shared_ptr<T>*>(p); });
}

/// A dtype by its Python name; ValueError if there is none of that name.
DType dtype_named(const std::string& name);

/// A layer over the memory of `array` (shared) or in a converted copy of it, with its head means if they are wanted at
/// once. `dtype` says what its items are: NumPy shows bfloat16 as uint16.
std::shared_ptr<const DenseLayer> layer_from_array(const py::object& array, DType dtype, DType stored,
                                                   bool shares_memory, bool with_head_means);

/// Queries or keys over the memory of `array` or in a converted copy of it, as `layer_from_array`.
Projection projection_from_array(const py::object& array, DType dtype, DType stored, bool shares_memory);

/// Queries or keys over the memory of an array that nobody writes; its rows alone need to be contiguous.
Projection projection_over(const py::object& array, DType dtype);

/// `array`, 4-dimensional and of that dtype, as a source to copy from.
SourceArray source_of_array(const py::object& array, DType dtype);

/// Raises the ValueError of what reads the memory of a layer that lies on a device.
void check_in_cpu_memory(const Layer& layer);

/// A read-only view of a pattern that shares its memory, or that of another kind of layer computed into memory of its
/// own. ImportError for bfloat16 without ml_dtypes.
PyObject* view_of(const Layer& layer);

/// A read-only view of rows that `owner` keeps alive.
PyObject* view_of_rows(const PatternView& rows, const py::object& owner);

/// The same as the bytes they are: NumPy shows bfloat16 as uint16.
PyObject* view_of_bytes(const PatternView& rows, const py::object& owner);

/// The capsule that owns views of a dense layer's memory, or of what is derived from a layer.
py::handle owner_of(const DenseLayer& layer);
py::handle owner_of(const Derived& derived);

/// A read-only array over floats that `owner` keeps alive.
PyObject* view_of_floats(const float* data, std::span<const npy_intp> dims, py::handle owner);

/// The items of a float32 array of those dimensions, C-contiguous and aligned; ValueError if it is none.
const float* floats_in(const py::object& array, const char* argument, std::span<const npy_intp> dims);

/// A new array to be written by a query.
PyObject* new_array(std::span<const npy_intp> dims, int typenum);

/// Raises a ValueError for a numpy.ma array with masked items, whose mask would be lost.
void refuse_masked(PyObject* array, const char* argument);

/// `out` as an array that a result of those dimensions can be written into, or a new one if it is None or nullptr.
/// TypeError or ValueError if it is not a writable C-contiguous float32 array of that shape.
py::object result_array(PyObject* out, std::span<const npy_intp> dims);

inline float* floats(PyObject* array) {
    return static_cast<float*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(array)));
}
inline std::int64_t* integers(PyObject* array) {
    return static_cast<std::int64_t*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(array)));
}

inline void make_read_only(PyObject* array) {
    PyArray_CLEARFLAGS(reinterpret_cast<PyArrayObject*>(array), NPY_ARRAY_WRITEABLE);
}

}  // namespace attncache::python
