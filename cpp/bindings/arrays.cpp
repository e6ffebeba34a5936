// NumPy arrays in, NumPy arrays out.
#include "arrays.hpp"

#include <algorithm>
#include <string>

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
PyObject* read_only_view(PyArray_Descr* descriptor, std::span<const npy_intp> dims, const void* data, py::handle owner,
                         const npy_intp* strides = nullptr) {
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

}  // namespace

DType dtype_named(const std::string& wanted) {
    for (const DType dtype : {DType::float16, DType::bfloat16, DType::float32, DType::float64}) {
        if (wanted == name(dtype)) return dtype;
    }
    throw py::value_error("dtype must be float16, bfloat16, float32 or float64, got " + wanted);
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

Projection projection_from_array(const py::object& array, DType dtype, DType stored, bool shares_memory) {
    if (shares_memory) {
        const SourceArray source = shared_source_of(array, dtype, stored);
        return {contiguous_view(source.data, stored, source.shape), keep_alive(array), nullptr};
    }
    const SourceArray source = source_of_array(array, dtype);
    const CoreWork work;
    const auto copy = copy_layer(source, stored);
    return {copy->pattern(), copy->memory(), nullptr};
}

Projection projection_over(const py::object& array, DType dtype) {
    const SourceArray source = source_of_array(array, dtype);
    auto* const ndarray = reinterpret_cast<PyArrayObject*>(array.ptr());
    if (PyArray_SIZE(ndarray) == 0) {
        return {contiguous_view(source.data, dtype, source.shape), keep_alive(array), nullptr};
    }
    const auto item = static_cast<std::int64_t>(item_bytes(dtype));
    if (!PyArray_ISALIGNED(ndarray) || (source.strides[3] != item && source.shape.seq_k > 1)) {
        throw py::value_error("memory can be shared of an aligned array whose last axis is contiguous");
    }
    const PatternView view{source.data, dtype, source.shape, source.strides[0], source.strides[1], source.strides[2]};
    return {view, keep_alive(array), nullptr};
}

std::shared_ptr<const DenseLayer> layer_from_array(const py::object& array, DType dtype, DType stored,
                                                   bool shares_memory, bool with_head_means) {
    if (shares_memory) {
        const SourceArray source = shared_source_of(array, dtype, stored);
        auto owner = keep_alive(array);
        const CoreWork work;
        return borrow_layer(source.data, stored, source.shape, std::move(owner), with_head_means);
    }
    const SourceArray source = source_of_array(array, dtype);
    const CoreWork work;
    return copy_layer(source, stored, with_head_means);
}

namespace {

/// The object that a face keeps, or a capsule of that memory, kept from now on.
py::handle owner_in(const Face& face, const std::shared_ptr<const void>& memory) {
    if (void* const kept = face.get()) return static_cast<PyObject*>(kept);
    py::object capsule = capsule_of(memory);
    if (face.keep(capsule.ptr())) return capsule.release();
    return static_cast<PyObject*>(face.get());
}

}  // namespace

py::handle owner_of(const DenseLayer& layer) { return owner_in(layer.owner, layer.memory()); }

py::handle owner_of(const Derived& derived) { return owner_in(derived.owner, derived.memory); }

void check_in_cpu_memory(const Layer& layer) {
    if (layer.device() == nullptr) return;
    throw py::value_error("the layer must lie in CPU memory, got one on " + layer.device()->name() +
                          "; cache.cpu() gives a copy of the cache there");
}

PyObject* view_of(const Layer& layer) {
    const Shape& shape = layer.shape();
    const npy_intp dims[] = {shape.batch_size, shape.n_heads, shape.seq_q, shape.seq_k};
    if (layer.stored() != nullptr) {
        const auto& dense = static_cast<const DenseLayer&>(layer);
        return read_only_view(descriptor_of(layer.dtype()), dims, dense.pattern().data, owner_of(dense));
    }
    check_in_cpu_memory(layer);
    std::shared_ptr<const DenseLayer> dense;
    {
        const CoreWork work;
        dense = dense_layer(layer, DType::float32);
    }
    return read_only_view(descriptor_of(DType::float32), dims, dense->pattern().data, owner_of(*dense));
}

PyObject* view_of_rows(const PatternView& rows, const py::object& owner) {
    return rows_view(descriptor_of(rows.dtype), rows, owner);
}

PyObject* view_of_bytes(const PatternView& rows, const py::object& owner) {
    const bool is_bfloat16 = rows.dtype == DType::bfloat16;
    PyArray_Descr* const descriptor = is_bfloat16 ? PyArray_DescrFromType(NPY_UINT16) : descriptor_of(rows.dtype);
    return rows_view(descriptor, rows, owner);
}

const float* floats_in(const py::object& array, const char* argument, std::span<const npy_intp> dims) {
    auto* const ndarray = reinterpret_cast<PyArrayObject*>(array.ptr());
    const bool fits = PyArray_Check(array.ptr()) && PyArray_TYPE(ndarray) == NPY_FLOAT &&
                      PyArray_ISCARRAY_RO(ndarray) && PyArray_NDIM(ndarray) == static_cast<int>(dims.size()) &&
                      std::equal(dims.begin(), dims.end(), PyArray_DIMS(ndarray));
    if (!fits) {
        throw py::value_error(std::string(argument) +
                              " must be an aligned C-contiguous float32 array of the layer's shape");
    }
    return floats(array.ptr());
}

PyObject* view_of_floats(const float* data, std::span<const npy_intp> dims, py::handle owner) {
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
