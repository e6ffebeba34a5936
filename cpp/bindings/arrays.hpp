// The only place that turns NumPy arrays into patterns and back: dtypes, strides, owners, flags.
#pragma once

#include <span>

#include "store.hpp"

namespace attncache::python {

/// A dtype by its Python name; ValueError if there is none of that name.
DType dtype_named(const std::string& name);

/// A layer over the memory of `array` (shared) or in a converted copy of it, with its indexes if they are wanted at
/// once. `dtype` says what its items are: NumPy shows bfloat16 as uint16. Large work releases the GIL.
std::shared_ptr<StoredLayer> layer_from_array(const py::object& array, DType dtype, DType stored, bool shares_memory,
                                              bool indexes);

/// A read-only view of a layer that shares its memory. ImportError for bfloat16 without ml_dtypes.
PyObject* view_of(const StoredLayer& layer);

/// A read-only array over floats that `owner` keeps alive.
PyObject* view_of_floats(const float* data, std::span<const npy_intp> dims, const py::object& owner);

/// A new array to be written by a query.
PyObject* new_array(std::span<const npy_intp> dims, int typenum);

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

/// Releases the GIL for work on that many bytes, if that is worth what it may cost to get it back.
class ReleaseGilForLargeWork {
public:
    explicit ReleaseGilForLargeWork(std::int64_t bytes) : state_(bytes >= kWorthIt ? PyEval_SaveThread() : nullptr) {}
    ~ReleaseGilForLargeWork();
    ReleaseGilForLargeWork(const ReleaseGilForLargeWork&) = delete;
    ReleaseGilForLargeWork& operator=(const ReleaseGilForLargeWork&) = delete;

private:
    /// About 50 us of reading: releasing costs 50 ns alone, but much more if another thread then holds the GIL.
    static constexpr std::int64_t kWorthIt = 512 * 1024;
    PyThreadState* state_;
};

}  // namespace attncache::python
