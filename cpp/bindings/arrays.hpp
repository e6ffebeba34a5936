// The only place that turns NumPy arrays into patterns and back: dtypes, strides, owners, flags.
#pragma once

#include <chrono>
#include <span>

#include "../src/watcher.hpp"
#include "store.hpp"

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

/// A layer over the memory of `array` (shared) or in a converted copy of it, with its indexes if they are wanted at
/// once. `dtype` says what its items are: NumPy shows bfloat16 as uint16. Large work releases the GIL.
std::shared_ptr<StoredLayer> layer_from_array(const py::object& array, DType dtype, DType stored, bool shares_memory,
                                              bool indexes);

/// Queries or keys over the memory of `array` or in a converted copy of it, as `layer_from_array`.
Rows rows_from_array(const py::object& array, DType dtype, DType stored, bool shares_memory);

/// `array`, 4-dimensional and of that dtype, as a source to copy from.
SourceArray source_of_array(const py::object& array, DType dtype);

/// A read-only view of a layer that shares its memory, or the pattern of a factored layer computed into memory of its
/// own. ImportError for bfloat16 without ml_dtypes.
PyObject* view_of(const StoredLayer& layer);

/// A read-only view of the queries or keys of a factored layer.
PyObject* view_of_rows(const PatternView& rows, std::shared_ptr<const FactoredLayer> layer);

/// A read-only view of rows that `owner` keeps alive, as the bytes they are: NumPy shows bfloat16 as uint16.
PyObject* view_of_bytes(const PatternView& rows, const py::object& owner);

/// Keeps a Python object alive from C++, whatever thread lets go of it last.
std::shared_ptr<const void> keep_alive(const py::object& object);

/// A read-only array over floats that `owner` keeps alive.
PyObject* view_of_floats(const float* data, std::span<const npy_intp> dims, const py::object& owner);

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

/// Releases the GIL for work on that many bytes, if that is worth what it may cost to get it back. Ten times a second
/// the work looks for signals, so that Ctrl-C ends it, and tells `progress(done, total)` if that is a callable.
class ReleaseGilForLargeWork final : Watcher {
public:
    explicit ReleaseGilForLargeWork(std::int64_t bytes, py::object progress = {})
        : state_(nullptr), progress_(std::move(progress)) {
        if (bytes >= kWorthIt) release();
    }
    ~ReleaseGilForLargeWork() override;
    ReleaseGilForLargeWork(const ReleaseGilForLargeWork&) = delete;
    ReleaseGilForLargeWork& operator=(const ReleaseGilForLargeWork&) = delete;

    /// Work of unknown size, always worth it.
    static constexpr std::int64_t kLarge = INT64_MAX;

private:
    /// About 50 us of reading: releasing costs 50 ns alone, but much more if another thread then holds the GIL.
    static constexpr std::int64_t kWorthIt = 512 * 1024;

    void release();
    void look(std::int64_t done, std::int64_t total) override;

    PyThreadState* state_;
    py::object progress_;
    Watcher* watcher_before_ = nullptr;
    std::chrono::steady_clock::time_point last_look_;
};

}  // namespace attncache::python
