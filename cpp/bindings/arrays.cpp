// NumPy arrays in, NumPy arrays out.
#include "arrays.hpp"

#include <chrono>
#include <thread>

namespace attncache::python {
namespace {

/// Keeps a Python object alive from C++, whatever thread lets go of it last.
std::shared_ptr<const void> keep_alive(const py::object& object) {
    return {object.inc_ref().ptr(), [](PyObject* p) {
                if (!Py_IsInitialized()) return;
                const py::gil_scoped_acquire gil;
                Py_DECREF(p);
            }};
}

py::object capsule_of(std::shared_ptr<const Layer> layer) {
    return py::capsule(new std::shared_ptr<const Layer>(std::move(layer)),
                       [](void* p) { delete static_cast<std::shared_ptr<const Layer>*>(p); });
}

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

}  // namespace

ReleaseGilForLargeWork::~ReleaseGilForLargeWork() {
    if (state_ == nullptr) return;
    try {
        PyEval_RestoreThread(state_);
    } catch (...) {
        // The interpreter is ending: before 3.14 it ends a thread that asks for the GIL by unwinding it, which would
        // run destructors without the GIL and call std::terminate. Wait here for the end of the process instead.
        while (true) std::this_thread::sleep_for(std::chrono::hours(1));
    }
}

DType dtype_named(const std::string& wanted) {
    for (const DType dtype : {DType::float16, DType::bfloat16, DType::float32, DType::float64}) {
        if (wanted == name(dtype)) return dtype;
    }
    throw py::value_error("dtype must be float16, bfloat16, float32 or float64, got " + wanted);
}

StoredLayer layer_from_array(const py::object& array, DType dtype, DType stored, bool shares_memory) {
    auto* const ndarray = reinterpret_cast<PyArrayObject*>(array.ptr());
    if (!PyArray_Check(array.ptr()) || PyArray_NDIM(ndarray) != 4 ||
        PyArray_ITEMSIZE(ndarray) != static_cast<npy_intp>(item_bytes(dtype))) {
        throw py::type_error("pattern must be a 4-dimensional NumPy array of its dtype's item size");
    }
    const npy_intp* const dims = PyArray_DIMS(ndarray);
    const Shape shape{dims[0], dims[1], dims[2], dims[3]};
    const auto* const data = static_cast<const std::byte*>(PyArray_DATA(ndarray));
    std::shared_ptr<const Layer> layer;
    if (shares_memory) {
        layer = borrow_layer(data, stored, shape, keep_alive(array));
    } else {
        const npy_intp* const strides = PyArray_STRIDES(ndarray);
        const SourceArray source{data, dtype, shape, {strides[0], strides[1], strides[2], strides[3]}};
        const ReleaseGilForLargeWork release(PyArray_NBYTES(ndarray));
        layer = copy_layer(source, stored);
    }
    return {layer, capsule_of(layer)};
}

PyObject* view_of(const StoredLayer& stored) {
    const PatternView& pattern = stored.layer->pattern;
    const Shape& shape = pattern.shape;
    const npy_intp dims[] = {shape.batch_size, shape.n_heads, shape.seq_q, shape.seq_k};
    PyObject* const view = PyArray_NewFromDescr(&PyArray_Type, descriptor_of(pattern.dtype), 4, dims, nullptr,
                                                const_cast<std::byte*>(pattern.data), 0, nullptr);
    if (view == nullptr) throw py::error_already_set();
    if (PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(view), stored.owner.inc_ref().ptr()) < 0) {
        Py_DECREF(view);
        throw py::error_already_set();
    }
    return view;
}

PyObject* new_array(std::span<const npy_intp> dims, int typenum) {
    PyObject* const array = PyArray_SimpleNew(static_cast<int>(dims.size()), dims.data(), typenum);
    if (array == nullptr) throw py::error_already_set();
    return array;
}

}  // namespace attncache::python
