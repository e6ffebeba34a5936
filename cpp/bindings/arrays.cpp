// NumPy arrays in, NumPy arrays out.
#include "arrays.hpp"

#include <algorithm>
#include <optional>
#include <string>
#include <thread>
#include <tuple>

namespace attncache::python {
namespace {

/// A new reference to NumPy's dtype for the items of a layer.
PyArray_Descr* descriptor_of(DType dtype) {
    switch (dtype) {
        case DType::float16: return PyArray_DescrFromType(NPY_HALF);
        case DType::float32: return PyArray_DescrFromType(NPY_FLOAT);
        default: break;
    }
    py::object scalar_type;
    try {
        scalar_type = py::module_::import("ml_dtypes").attr("bfloat16");
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_ImportError)) throw;
        throw py::import_error(
            "NumPy can show a bfloat16 layer only with the package ml_dtypes, which is not installed "
            "(pip install ml_dtypes); every query of the layer works without it");
    }
    PyArray_Descr* descriptor = nullptr;
    if (!PyArray_DescrConverter(scalar_type.ptr(), &descriptor)) throw py::error_already_set();
    return descriptor;
}

/// A read-only array, C-contiguous unless strides are given; steals the descriptor.
PyObject* read_only_view(PyArray_Descr* descriptor, std::span<const npy_intp> dims, const void* data,
                         const py::object& owner, const npy_intp* strides = nullptr) {
    PyObject* const view = PyArray_NewFromDescr(&PyArray_Type, descriptor, static_cast<int>(dims.size()), dims.data(),
                                                strides, const_cast<void*>(data), 0, nullptr);
    if (view == nullptr) throw py::error_already_set();
    if (PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(view), owner.inc_ref().ptr()) < 0) {
        Py_DECREF(view);
        throw py::error_already_set();
    }
    return view;
}

/// A read-only array of these rows, contiguous or not; steals the descriptor.
PyObject* rows_view(PyArray_Descr* descriptor, const PatternView& rows, const py::object& owner) {
    const Shape& shape = rows.shape;
    const npy_intp dims[] = {shape.batch_size, shape.n_heads, shape.seq_q, shape.seq_k};
    const npy_intp strides[] = {rows.batch_stride, rows.head_stride, rows.query_stride,
                                static_cast<npy_intp>(item_bytes(rows.dtype))};
    return read_only_view(descriptor, dims, rows.data, owner, strides);
}

void take_gil(PyThreadState* state) {
    try {
        PyEval_RestoreThread(state);
    } catch (...) {
        // The interpreter is ending: before 3.14 it ends a thread that asks for the GIL by unwinding it, which would
        // run destructors without the GIL and call std::terminate. Wait here for the end of the process instead.
        while (true) std::this_thread::sleep_for(std::chrono::hours(1));
    }
}

}  // namespace

void ReleaseGilForLargeWork::release() {
    last_look_ = std::chrono::steady_clock::now();
    watcher_before_ = std::exchange(watcher_of_this_thread(), static_cast<Watcher*>(this));
    state_ = PyEval_SaveThread();
}

ReleaseGilForLargeWork::~ReleaseGilForLargeWork() {
    if (state_ == nullptr) return;
    take_gil(state_);
    watcher_of_this_thread() = watcher_before_;
}

void ReleaseGilForLargeWork::look(std::int64_t done, std::int64_t total) {
    constexpr auto kBetweenLooks = std::chrono::milliseconds(100);
    const auto now = std::chrono::steady_clock::now();
    if (now - last_look_ < kBetweenLooks) return;
    take_gil(state_);
    std::optional<py::error_already_set> error;
    try {
        // Handlers, finalisers and progress may ask for work: who holds the GIL for it must not be made to wait for it.
        const Unwatched unwatched;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        if (progress_ && !progress_.is_none()) progress_(done, total);
    } catch (const py::error_already_set& raised) {
        error.emplace(raised);
    }
    last_look_ = std::chrono::steady_clock::now();
    state_ = PyEval_SaveThread();
    if (error) throw py::error_already_set(*error);
}

DType dtype_named(const std::string& wanted) {
    for (const DType dtype : {DType::float16, DType::bfloat16, DType::float32, DType::float64}) {
        if (wanted == name(dtype)) return dtype;
    }
    throw py::value_error("dtype must be float16, bfloat16, float32 or float64, got " + wanted);
}

std::shared_ptr<const void> keep_alive(const py::object& object) {
    return {object.inc_ref().ptr(), [](PyObject* p) {
                if (!Py_IsInitialized()) return;
                const py::gil_scoped_acquire gil;
                const Unwatched unwatched;  // a finaliser may ask for work
                Py_DECREF(p);
            }};
}

namespace {

/// The source of a layer that lies over the memory of `array`.
SourceArray shared_source_of(const py::object& array, DType dtype, DType stored) {
    const SourceArray source = source_of_array(array, dtype);
    if (dtype == stored && PyArray_ISCARRAY_RO(reinterpret_cast<PyArrayObject*>(array.ptr()))) return source;
    throw py::type_error("memory can be shared of an aligned C-contiguous array of the stored dtype alone");
}

}  // namespace

SourceArray source_of_array(const py::object& array, DType dtype) {
    auto* const ndarray = reinterpret_cast<PyArrayObject*>(array.ptr());
    if (!PyArray_Check(array.ptr()) || PyArray_NDIM(ndarray) != 4 ||
        PyArray_ITEMSIZE(ndarray) != static_cast<npy_intp>(item_bytes(dtype))) {
        throw py::type_error("a layer must be a 4-dimensional NumPy array of its dtype's item size");
    }
    const npy_intp* const dims = PyArray_DIMS(ndarray);
    const npy_intp* const strides = PyArray_STRIDES(ndarray);
    return {static_cast<const std::byte*>(PyArray_DATA(ndarray)),
            dtype,
            {dims[0], dims[1], dims[2], dims[3]},
            {strides[0], strides[1], strides[2], strides[3]}};
}

Rows rows_from_array(const py::object& array, DType dtype, DType stored, bool shares_memory) {
    const SourceArray source = shares_memory ? shared_source_of(array, dtype, stored) : source_of_array(array, dtype);
    if (shares_memory) return {contiguous_view(source.data, stored, source.shape), keep_alive(array), nullptr};
    const ReleaseGilForLargeWork release(PyArray_NBYTES(reinterpret_cast<PyArrayObject*>(array.ptr())));
    const auto copy = copy_layer(source, stored);
    return {copy->pattern, copy->memory, nullptr};
}

std::shared_ptr<StoredLayer> layer_from_array(const py::object& array, DType dtype, DType stored, bool shares_memory,
                                              bool indexes) {
    const SourceArray source = shares_memory ? shared_source_of(array, dtype, stored) : source_of_array(array, dtype);
    const Shape& shape = source.shape;
    indexes = indexes && shape.n_heads > 0;  // the mean of no heads is NaN: nothing to keep
    std::shared_ptr<const Layer> layer;
    std::vector<HeadMeanIndex> built;
    const std::shared_ptr<const void> owner = shares_memory ? keep_alive(array) : nullptr;
    {
        const npy_intp n_bytes = PyArray_NBYTES(reinterpret_cast<PyArrayObject*>(array.ptr()));
        const ReleaseGilForLargeWork release(shares_memory && !indexes ? 0 : n_bytes);
        if (shares_memory) {
            layer = borrow_layer(source.data, stored, shape, owner);
            for (std::int64_t b = 0; indexes && b < shape.batch_size; ++b) {
                built.push_back(build_index(layer->pattern, b));
            }
        } else if (indexes) {
            std::tie(layer, built) = copy_and_index_layer(source, stored);
        } else {
            layer = copy_layer(source, stored);
        }
    }
    auto result = std::make_shared<StoredLayer>(std::move(layer));
    for (std::size_t b = 0; b < built.size(); ++b) set_index(result->indexes[b], std::move(built[b]));
    return result;
}

PyObject* view_of(const StoredLayer& stored) {
    const PatternView& pattern = stored.pattern();
    const Shape& shape = pattern.shape;
    const npy_intp dims[] = {shape.batch_size, shape.n_heads, shape.seq_q, shape.seq_k};
    if (stored.factored() == nullptr) {
        return read_only_view(descriptor_of(pattern.dtype), dims, pattern.data, stored.owner());
    }
    std::shared_ptr<const Layer> dense;
    {
        const ReleaseGilForLargeWork release(ReleaseGilForLargeWork::kLarge);
        dense = dense_layer(*stored.factored(), DType::float32);
    }
    const std::byte* const data = dense->pattern.data;
    return read_only_view(descriptor_of(DType::float32), dims, data, capsule_of(std::move(dense)));
}

PyObject* view_of_rows(const PatternView& rows, std::shared_ptr<const FactoredLayer> layer) {
    return rows_view(descriptor_of(rows.dtype), rows, capsule_of(std::move(layer)));
}

PyObject* view_of_bytes(const PatternView& rows, const py::object& owner) {
    const bool is_bfloat16 = rows.dtype == DType::bfloat16;
    PyArray_Descr* const descriptor = is_bfloat16 ? PyArray_DescrFromType(NPY_UINT16) : descriptor_of(rows.dtype);
    return rows_view(descriptor, rows, owner);
}

PyObject* view_of_floats(const float* data, std::span<const npy_intp> dims, const py::object& owner) {
    static PyArray_Descr* const descriptor = PyArray_DescrFromType(NPY_FLOAT);  // a singleton of NumPy's
    Py_INCREF(descriptor);
    return read_only_view(descriptor, dims, data, owner);
}

PyObject* new_array(std::span<const npy_intp> dims, int typenum) {
    PyObject* const array = PyArray_SimpleNew(static_cast<int>(dims.size()), dims.data(), typenum);
    if (array == nullptr) throw py::error_already_set();
    return array;
}

void refuse_masked(PyObject* array, const char* argument) {
    if (PyArray_CheckExact(array)) return;
    const py::object mask = py::getattr(py::handle(array), "mask", py::none());
    if (mask.is_none() || !py::cast<bool>(py::bool_(mask.attr("any")()))) return;
    throw py::value_error(std::string(argument) + " must have no masked items, got a numpy.ma array with some; pass " +
                          argument + ".filled(0) or another array without a mask");
}

py::object result_array(PyObject* out, std::span<const npy_intp> dims) {
    if (out == nullptr || out == Py_None) return py::reinterpret_steal<py::object>(new_array(dims, NPY_FLOAT));
    auto* const array = reinterpret_cast<PyArrayObject*>(out);
    if (!PyArray_Check(out)) {
        throw py::type_error(std::string("out must be a NumPy array, got ") + Py_TYPE(out)->tp_name);
    }
    refuse_masked(out, "out");
    const bool fits = PyArray_NDIM(array) == static_cast<int>(dims.size()) &&
                      std::equal(dims.begin(), dims.end(), PyArray_DIMS(array));
    if (PyArray_TYPE(array) == NPY_FLOAT && fits && PyArray_ISCARRAY(array)) {
        return py::reinterpret_borrow<py::object>(out);
    }
    py::list shape;
    for (const npy_intp dim : dims) shape.append(dim);
    const py::handle handle(out);
    throw py::value_error(
        "out must be a writable, aligned, C-contiguous float32 array of shape " +
        std::string(py::str(py::tuple(shape))) + ", got " + std::string(py::str(handle.attr("dtype"))) + " of shape " +
        std::string(py::str(handle.attr("shape"))) + " with " + (PyArray_ISWRITEABLE(array) ? "" : "read-only ") +
        "strides " + std::string(py::str(handle.attr("strides"))));
}

}  // namespace attncache::python
