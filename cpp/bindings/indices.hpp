// Python indices and selectors, checked against the axis they index: one wording of every message.
#pragma once

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

/// A whole number from a Python int or anything with __index__; a bool is TypeError. Too large for 64 bits:
/// clipped, which no axis reaches.
std::int64_t whole_number(PyObject* value, const char* argument);

/// A position on the axis, negative ones counted from the end. IndexError beyond it.
std::int64_t resolve_index(PyObject* value, const Axis& axis);

/// Several positions on an axis, and whether the result keeps the axis.
struct Indices {
    std::vector<std::int64_t> values;
    bool keeps_axis = true;
};

/// None is all, an int drops the axis, a slice or a sequence of ints keeps it.
Indices resolve_selector(const py::object& selector, const Axis& axis);

/// A count that may be 0; ValueError if it is negative.
std::int64_t count(PyObject* value, const char* argument);

}  // namespace attncache::python
