// Arguments from Python, and indices checked against the axis they index: one wording of every message.
#pragma once

#include <string>
#include <vector>

#include "numpy_api.hpp"

namespace attncache::python {

namespace py = pybind11;

/// An axis as errors name it: the argument that indexes it and the size it has.
struct Axis {
    const char* argument;
    const char* size_name;
    std::int64_t size;
};

/// `whole_number` of what is no plain int that fits into 64 bits.
std::int64_t unusual_number(PyObject* value, const char* argument);

/// A whole number from a Python int or anything with __index__; TypeError for others, a bool included. Too large for
/// 64 bits: clipped, which no axis reaches. May run Python code, which may change anything: what depends on the state
/// of a cache is read afterwards.
inline std::int64_t whole_number(PyObject* value, const char* argument) {
    if (PyLong_CheckExact(value)) {  // which a bool is not: the short way of every inner loop
        int overflow = 0;
        const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow == 0) return number;
    }
    return unusual_number(value, argument);
}

/// Raises the IndexError of a position that the axis does not have.
[[noreturn]] void raise_out_of_range(const py::handle& given, const Axis& axis);

/// The position of a whole number on the axis, negative ones counted from the end; `given` is what the caller gave.
/// IndexError beyond it.
inline std::int64_t position_of(std::int64_t number, PyObject* given, const Axis& axis) {
    const std::int64_t position = number < 0 ? number + axis.size : number;
    if (position >= 0 && position < axis.size) return position;
    raise_out_of_range(given, axis);
}

/// Several positions on an axis, and whether the result keeps the axis.
struct Indices {
    std::vector<std::int64_t> values;
    bool keeps_axis = true;
};

/// None is all, an int drops the axis, a slice or a sequence of ints keeps it.
Indices resolve_selector(const py::object& selector, const Axis& axis);

/// A str; TypeError if it is anything else, bytes included.
std::string text(const py::object& value, const char* argument);

/// True or False, False if it is not given; TypeError for anything else.
bool flag(PyObject* value, const char* argument);

/// A count that may be 0; ValueError if it is negative.
std::int64_t count(PyObject* value, const char* argument);

}  // namespace attncache::python
