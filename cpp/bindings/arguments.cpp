// Ints, slices and sequences; texts and truth values.
#include "arguments.hpp"

#include <algorithm>
#include <numeric>
#include <string>

#include "arrays.hpp"

namespace attncache::python {
namespace {

[[noreturn]] void raise(PyObject* type, const std::string& message) {
    PyErr_SetString(type, message.c_str());
    throw py::error_already_set();
}

const char* type_name(PyObject* value) { return Py_TYPE(value)->tp_name; }

[[noreturn]] void raise_not_a_selector(const Axis& axis, const std::string& got) {
    raise(PyExc_TypeError,
          std::string(axis.argument) + " must be None, an int, a slice or a sequence of ints, got " + got);
}

Indices from_sequence(PyObject* selector, const Axis& axis) {
    // A tuple that nobody else changes: an __index__ or another thread may take items out of a list.
    const auto items = py::reinterpret_steal<py::object>(PySequence_Tuple(selector));
    if (!items) throw py::error_already_set();
    Indices indices;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items.ptr()); ++i) {
        PyObject* const item = PyTuple_GET_ITEM(items.ptr(), i);
        if (PyList_Check(item) || PyTuple_Check(item)) {
            raise_not_a_selector(axis, std::string("a sequence of sequences"));
        }
        indices.values.push_back(position_of(whole_number(item, axis.argument), item, axis));
    }
    return indices;
}

/// A truth value of Python, NumPy or another library, whose arrays of one item are numbers too.
bool is_bool(PyObject* value) {
    if (PyBool_Check(value) || PyArray_IsScalar(value, Bool)) return true;
    if (PyArray_IsScalar(value, Integer) || PyLong_Check(value)) return false;
    const py::object dtype = py::getattr(py::handle(value), "dtype", py::none());
    return !dtype.is_none() && std::string(py::str(dtype)).find("bool") != std::string::npos;
}

Indices from_array(PyObject* selector, const Axis& axis) {
    refuse_masked(selector, axis.argument);
    auto* const array = reinterpret_cast<PyArrayObject*>(selector);
    if (PyArray_NDIM(array) != 1 || !PyArray_ISINTEGER(array)) {
        const py::object dtype = py::handle(selector).attr("dtype");
        const bool is_mask = PyArray_NDIM(array) == 1 && PyArray_ISBOOL(array);
        raise_not_a_selector(axis, "a " + std::to_string(PyArray_NDIM(array)) + "-dimensional array of " +
                                       std::string(py::str(dtype)) +
                                       (is_mask ? "; np.flatnonzero(mask) gives the positions of a mask" : ""));
    }
    if (PyArray_TYPE(array) == NPY_ULONGLONG || PyArray_TYPE(array) == NPY_ULONG) {  // may not fit into 64 bits
        return from_sequence(selector, axis);
    }
    const auto as_int64 = py::reinterpret_steal<py::object>(
        PyArray_FROMANY(selector, NPY_INT64, 1, 1, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST));
    if (!as_int64) throw py::error_already_set();
    const auto* const values =
        static_cast<const std::int64_t*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(as_int64.ptr())));
    Indices indices;
    indices.values.reserve(static_cast<std::size_t>(PyArray_SIZE(array)));
    for (npy_intp i = 0; i < PyArray_SIZE(array); ++i) {
        const std::int64_t position = values[i] < 0 ? values[i] + axis.size : values[i];
        if (position < 0 || position >= axis.size) raise_out_of_range(py::int_(values[i]), axis);
        indices.values.push_back(position);
    }
    return indices;
}

/// Whether it is an array with axes of another library, such as a tensor of torch: what NumPy can read and has a number
/// of axes above 0. Anything else that is built in is told without an attribute being looked up.
bool is_foreign_array(PyObject* value) {
    if (PyLong_Check(value) || PyList_Check(value) || PyTuple_Check(value) || PySlice_Check(value)) return false;
    const py::handle handle(value);
    if (!py::hasattr(handle, "__array__") || !py::hasattr(handle, "ndim")) return false;
    return whole_number(py::object(handle.attr("ndim")).ptr(), "ndim") > 0;
}

}  // namespace

std::int64_t unusual_number(PyObject* value, const char* argument) {
    if (!PyIndex_Check(value) || is_bool(value)) {
        raise(PyExc_TypeError, std::string(argument) + " must be an int, got " + type_name(value));
    }
    const Py_ssize_t number = PyNumber_AsSsize_t(value, nullptr);
    if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
    return number;
}

void raise_out_of_range(const py::handle& given, const Axis& axis) {
    std::string one(axis.argument);  // of "positions", say, a position
    if (one.back() == 's') one.pop_back();
    raise(PyExc_IndexError, one + " " + std::string(py::str(given)) + " is out of range for " + axis.size_name + "=" +
                                std::to_string(axis.size));
}

std::string text(const py::object& value, const char* argument) {
    if (PyUnicode_Check(value.ptr())) return value.cast<std::string>();
    raise(PyExc_TypeError, std::string(argument) + " must be a str, got " + type_name(value.ptr()));
}

bool flag(PyObject* value, const char* argument) {
    if (value == nullptr || value == Py_False) return false;
    if (value == Py_True) return true;
    raise(PyExc_TypeError, std::string(argument) + " must be True or False, got " + type_name(value));
}

std::int64_t count(PyObject* value, const char* argument) {
    const std::int64_t number = whole_number(value, argument);
    if (number >= 0) return number;
    raise(PyExc_ValueError, std::string(argument) + " must be at least 0, got " + std::string(py::str(value)));
}

Indices resolve_selector(const py::object& selector, const Axis& axis) {
    PyObject* const value = selector.ptr();
    if (value == Py_None) {
        Indices all{std::vector<std::int64_t>(static_cast<std::size_t>(axis.size)), true};
        std::iota(all.values.begin(), all.values.end(), 0);
        return all;
    }
    if (PyArray_Check(value) && PyArray_NDIM(reinterpret_cast<PyArrayObject*>(value)) > 0)
        return from_array(value, axis);
    if (PyBool_Check(value) || PyArray_IsScalar(value, Bool)) raise_not_a_selector(axis, "bool");
    if (is_foreign_array(value)) {
        const auto array = py::reinterpret_steal<py::object>(PyArray_FROM_O(value));
        if (!array) throw py::error_already_set();
        return from_array(array.ptr(), axis);
    }
    if (PySlice_Check(value)) {
        Py_ssize_t start, stop, step;
        if (PySlice_Unpack(value, &start, &stop, &step) < 0) throw py::error_already_set();
        const Py_ssize_t n = PySlice_AdjustIndices(axis.size, &start, &stop, step);
        Indices indices;
        for (Py_ssize_t i = 0; i < n; ++i) indices.values.push_back(start + i * step);
        return indices;
    }
    const bool is_text = PyUnicode_Check(value) || PyBytes_Check(value) || PyByteArray_Check(value);
    if (PySequence_Check(value) && !is_text && PySequence_Size(value) >= 0) return from_sequence(value, axis);
    PyErr_Clear();  // of a 0-dimensional array, which has no size
    if (!PyIndex_Check(value)) raise_not_a_selector(axis, type_name(value));
    return {{position_of(whole_number(value, axis.argument), value, axis)}, false};
}

}  // namespace attncache::python
