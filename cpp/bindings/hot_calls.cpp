// The calls that stand in Python's inner loops, on CPython's shortest path: METH_FASTCALL descriptors on the bound
// class, no conversion layer between the interpreter and the query. Same checks, errors and keywords as everywhere.
#include <array>
#include <new>
#include <stdexcept>
#include <string>

#include "arrays.hpp"
#include "attncache/queries.hpp"
#include "bind.hpp"
#include "indices.hpp"

namespace attncache::python {
namespace {

/// Runs a call and turns what it throws into a Python error, as pybind11 does for bound functions.
template <class Call>
PyObject* guarded(const Call& call) noexcept {
    try {
        return call();
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const py::builtin_exception& error) {
        error.set_error();
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

/// The arguments of one call by position: given in order or by keyword; a missing optional one is nullptr.
template <std::size_t kArguments>
class Arguments {
public:
    struct Signature {
        const char* function;
        std::array<const char*, kArguments> names;
        std::size_t n_required;
    };

    Arguments(const Signature& signature, PyObject* const* arguments, Py_ssize_t n_positional, PyObject* keywords) {
        const auto n_given = static_cast<std::size_t>(n_positional);
        if (n_given > kArguments) {
            fail(signature,
                 "takes at most " + std::to_string(kArguments) + " arguments, got " + std::to_string(n_given));
        }
        for (std::size_t i = 0; i < n_given; ++i) values_[i] = arguments[i];
        if (keywords != nullptr) read_keywords(signature, arguments + n_given, keywords);
        for (std::size_t i = n_given; i < signature.n_required; ++i) {
            if (values_[i] == nullptr) fail(signature, std::string("needs an argument '") + signature.names[i] + "'");
        }
    }

    PyObject* operator[](std::size_t i) const { return values_[i]; }

private:
    [[noreturn]] static void fail(const Signature& signature, const std::string& what) {
        throw py::type_error(std::string(signature.function) + "() " + what);
    }

    void read_keywords(const Signature& signature, PyObject* const* values, PyObject* keywords) {
        for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(keywords); ++k) {
            PyObject* const keyword = PyTuple_GET_ITEM(keywords, k);
            std::size_t i = 0;
            while (i < kArguments && PyUnicode_CompareWithASCIIString(keyword, signature.names[i]) != 0) ++i;
            if (i == kArguments) fail(signature, "has no argument " + std::string(py::repr(keyword)));
            if (values_[i] != nullptr) fail(signature, std::string("got '") + signature.names[i] + "' twice");
            values_[i] = values[k];
        }
    }

    std::array<PyObject*, kArguments> values_{};
};

const StoredLayer& layer_at(const Store& store, PyObject* layer) {
    return store.layers[static_cast<std::size_t>(resolve_index(layer, {"layer", "n_layers", store.n_layers()}))];
}

std::int64_t batch_at(const Shape& shape, PyObject* batch) {
    if (batch == nullptr && shape.batch_size > 0) return 0;
    const py::object zero = py::int_(0);
    return resolve_index(batch == nullptr ? zero.ptr() : batch, {"batch", "batch_size", shape.batch_size});
}

/// A read-only float array of those dimensions, filled by `fill(float*)` without the GIL if that reads many bytes.
template <class Fill>
PyObject* read_only_floats(std::span<const npy_intp> dims, std::int64_t bytes, const Fill& fill) {
    auto result = py::reinterpret_steal<py::object>(new_array(dims, NPY_FLOAT));
    {
        const ReleaseGilForLargeWork release(bytes);
        fill(floats(result.ptr()));
    }
    make_read_only(result.ptr());
    return result.release().ptr();
}

/// What a mean over `n` items of each head costs, in bytes of sequential reading.
std::int64_t bytes_of(const PatternView& pattern, std::int64_t n, std::int64_t bytes_per_item) {
    return pattern.shape.n_heads * n * bytes_per_item;
}

constexpr std::int64_t kCacheLine = 64;

PyObject* attention_from_position(PyObject* self, PyObject* const* values, Py_ssize_t n, PyObject* keywords) noexcept {
    static constexpr Arguments<3>::Signature signature{"attention_from_position", {"layer", "position", "batch"}, 2};
    return guarded([&] {
        const Arguments<3> arguments(signature, values, n, keywords);
        const auto layer = layer_at(store_of(self), arguments[0]).layer;
        const PatternView& pattern = layer->pattern;
        const std::int64_t query = resolve_index(arguments[1], {"position", "seq_q", pattern.shape.seq_q});
        const std::int64_t batch = batch_at(pattern.shape, arguments[2]);
        const npy_intp dims[] = {pattern.shape.seq_k};
        const auto bytes = bytes_of(pattern, dims[0], static_cast<std::int64_t>(item_bytes(pattern.dtype)));
        return read_only_floats(dims, bytes, [&](float* out) { mean_row(pattern, batch, query, out); });
    });
}

PyObject* attention_to_position(PyObject* self, PyObject* const* values, Py_ssize_t n, PyObject* keywords) noexcept {
    static constexpr Arguments<3>::Signature signature{"attention_to_position", {"layer", "position", "batch"}, 2};
    return guarded([&] {
        const Arguments<3> arguments(signature, values, n, keywords);
        const auto layer = layer_at(store_of(self), arguments[0]).layer;
        const PatternView& pattern = layer->pattern;
        const std::int64_t key = resolve_index(arguments[1], {"position", "seq_k", pattern.shape.seq_k});
        const std::int64_t batch = batch_at(pattern.shape, arguments[2]);
        const npy_intp dims[] = {pattern.shape.seq_q};
        const auto bytes = bytes_of(pattern, dims[0], kCacheLine);
        return read_only_floats(dims, bytes, [&](float* out) { mean_column(pattern, batch, key, out); });
    });
}

PyObject* head_mean_call(PyObject* self, PyObject* const* values, Py_ssize_t n, PyObject* keywords) noexcept {
    static constexpr Arguments<2>::Signature signature{"head_mean", {"layer", "batch"}, 1};
    return guarded([&] {
        const Arguments<2> arguments(signature, values, n, keywords);
        const auto layer = layer_at(store_of(self), arguments[0]).layer;
        const PatternView& pattern = layer->pattern;
        const std::int64_t batch = batch_at(pattern.shape, arguments[1]);
        const npy_intp dims[] = {pattern.shape.seq_q, pattern.shape.seq_k};
        const auto bytes = bytes_of(pattern, dims[0] * dims[1], static_cast<std::int64_t>(item_bytes(pattern.dtype)));
        return read_only_floats(dims, bytes, [&](float* out) { head_mean(pattern, batch, out); });
    });
}

/// [(position, weight), ...] as Python numbers.
PyObject* list_of_pairs(std::span<const std::int64_t> positions, const float* weights) {
    auto list = py::reinterpret_steal<py::object>(PyList_New(static_cast<Py_ssize_t>(positions.size())));
    if (!list) throw py::error_already_set();
    for (std::size_t i = 0; i < positions.size(); ++i) {
        auto position = py::reinterpret_steal<py::object>(PyLong_FromLongLong(positions[i]));
        auto weight = py::reinterpret_steal<py::object>(PyFloat_FromDouble(weights[positions[i]]));
        PyObject* const pair = position && weight ? PyTuple_New(2) : nullptr;
        if (pair == nullptr) throw py::error_already_set();
        PyTuple_SET_ITEM(pair, 0, position.release().ptr());
        PyTuple_SET_ITEM(pair, 1, weight.release().ptr());
        PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), pair);
    }
    return list.release().ptr();
}

PyObject* top_attended_positions(PyObject* self, PyObject* const* values, Py_ssize_t n, PyObject* keywords) noexcept {
    static constexpr Arguments<4>::Signature signature{
        "top_attended_positions", {"layer", "from_position", "k", "batch"}, 3};
    return guarded([&] {
        const Arguments<4> arguments(signature, values, n, keywords);
        const auto layer = layer_at(store_of(self), arguments[0]).layer;
        const PatternView& pattern = layer->pattern;
        const std::int64_t seq_k = pattern.shape.seq_k;
        const std::int64_t query = resolve_index(arguments[1], {"from_position", "seq_q", pattern.shape.seq_q});
        const std::int64_t k = std::min(count(arguments[2], "k"), seq_k);
        const std::int64_t batch = batch_at(pattern.shape, arguments[3]);
        std::vector<float> row(static_cast<std::size_t>(seq_k));
        std::vector<std::int64_t> positions(static_cast<std::size_t>(k));
        {
            const ReleaseGilForLargeWork release(
                bytes_of(pattern, seq_k, static_cast<std::int64_t>(item_bytes(pattern.dtype))));
            mean_row(pattern, batch, query, row.data());
            heaviest(row.data(), seq_k, k, positions.data());
        }
        return list_of_pairs(positions, row.data());
    });
}

PyObject* get_layer(PyObject* self, PyObject* const* values, Py_ssize_t n, PyObject* keywords) noexcept {
    static constexpr Arguments<1>::Signature signature{"get_layer", {"layer"}, 1};
    return guarded([&]() -> PyObject* {
        const Arguments<1> arguments(signature, values, n, keywords);
        const Store& store = store_of(self);
        std::int64_t layer = whole_number(arguments[0], "layer");
        if (layer < 0) layer += store.n_layers();
        if (layer < 0 || layer >= store.n_layers()) Py_RETURN_NONE;
        return view_of(store.layers[static_cast<std::size_t>(layer)]);
    });
}

/// cache[i] is a view, cache[a:b] a tuple of views.
PyObject* get_item(PyObject* self, PyObject* key) noexcept {
    return guarded([&]() -> PyObject* {
        const Store& store = store_of(self);
        if (!PySlice_Check(key)) return view_of(layer_at(store, key));
        const Indices layers =
            resolve_selector(py::reinterpret_borrow<py::object>(key), {"layer", "n_layers", store.n_layers()});
        py::tuple views(layers.values.size());
        for (std::size_t i = 0; i < layers.values.size(); ++i) {
            views[i] =
                py::reinterpret_steal<py::object>(view_of(store.layers[static_cast<std::size_t>(layers.values[i])]));
        }
        return views.release().ptr();
    });
}

PyObject* length(PyObject* self, PyObject*) noexcept {
    return guarded([&] { return PyLong_FromLongLong(store_of(self).n_layers()); });
}

template <class Function>
PyCFunction as_method(Function* function) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

constexpr int kFastCall = METH_FASTCALL | METH_KEYWORDS;

// The text before "--" is what inspect.signature reads.
PyMethodDef hot_methods[] = {
    {"attention_from_position", as_method(attention_from_position), kFastCall,
     R"(attention_from_position($self, layer, position, batch=0)
--

What one query position attends to, averaged over heads.

Args:
    layer: index of the layer; negative counts from the end.
    position: query position in [-seq_q, seq_q).
    batch: batch item.

Returns:
    Read-only float32 array of shape [seq_k]. Exact: the bits of
    ``pattern[batch].mean(axis=0, dtype=np.float32)[position]``.

Raises:
    IndexError: an index is out of range. TypeError: an index is not an int.

>>> cache = AttentionCache()
>>> cache.push(np.array([[[[1.0, 0.0], [0.25, 0.75]]]], np.float32))
>>> cache.attention_from_position(0, 1)
array([0.25, 0.75], dtype=float32)
)"},
    {"attention_to_position", as_method(attention_to_position), kFastCall,
     R"(attention_to_position($self, layer, position, batch=0)
--

Who attends to one key position, averaged over heads.

Args:
    layer: index of the layer; negative counts from the end.
    position: key position in [-seq_k, seq_k).
    batch: batch item.

Returns:
    Read-only float32 array of shape [seq_q]. Exact: the bits of
    ``pattern[batch].mean(axis=0, dtype=np.float32)[:, position]``.

Raises:
    IndexError: an index is out of range. TypeError: an index is not an int.

>>> cache = AttentionCache()
>>> cache.push(np.array([[[[1.0, 0.0], [0.25, 0.75]]]], np.float32))
>>> cache.attention_to_position(0, 0)
array([1.  , 0.25], dtype=float32)
)"},
    {"top_attended_positions", as_method(top_attended_positions), kFastCall,
     R"(top_attended_positions($self, layer, from_position, k, batch=0)
--

The k key positions that one query attends to most, averaged over heads.

Args:
    layer: index of the layer; negative counts from the end.
    from_position: query position in [-seq_q, seq_q).
    k: how many; more than seq_k gives all of them.
    batch: batch item.

Returns:
    List of (position, weight), heaviest first, equal weights to the lower position, NaN last. Exact.

Raises:
    IndexError: an index is out of range. ValueError: k is negative. TypeError: not an int.

>>> cache = AttentionCache()
>>> cache.push(np.array([[[[1.0, 0.0], [0.25, 0.75]]]], np.float32))
>>> cache.top_attended_positions(0, 1, k=1)
[(1, 0.75)]
)"},
    {"head_mean", as_method(head_mean_call), kFastCall,
     R"(head_mean($self, layer, batch=0)
--

The mean over heads of a whole layer.

Args:
    layer: index of the layer; negative counts from the end.
    batch: batch item.

Returns:
    Read-only float32 array of shape [seq_q, seq_k]. Exact: the bits of
    ``pattern[batch].mean(axis=0, dtype=np.float32)``.

Raises:
    IndexError: an index is out of range. TypeError: an index is not an int.

>>> cache = AttentionCache()
>>> cache.push(np.array([[[[1.0, 0.0], [0.25, 0.75]]]], np.float32))
>>> cache.head_mean(0)
array([[1.  , 0.  ],
       [0.25, 0.75]], dtype=float32)
)"},
    {"get_layer", as_method(get_layer), kFastCall,
     R"(get_layer($self, layer)
--

The pattern of one layer, or None if there is no such layer.

Args:
    layer: index of the layer; negative counts from the end.

Returns:
    Read-only array of shape [batch, head, query, key] that shares the cache's memory and keeps it alive.

Raises:
    TypeError: layer is not an int. ImportError: the layer is bfloat16 and ml_dtypes is not installed.

>>> AttentionCache().get_layer(0) is None
True
)"},
    {"__len__", length, METH_NOARGS | METH_COEXIST, "__len__($self, /)\n--\n\nThe number of layers."},
    {"__getitem__", get_item, METH_O | METH_COEXIST,
     R"(__getitem__($self, layer, /)
--

The view of one layer as in get_layer, but IndexError if absent; a slice gives a tuple of views.)"},
};

}  // namespace

void add_hot_calls(const py::class_<Store>& store) {
    auto* const type = reinterpret_cast<PyTypeObject*>(store.ptr());
    for (PyMethodDef& method : hot_methods) {
        const auto descriptor = py::reinterpret_steal<py::object>(PyDescr_NewMethod(type, &method));
        if (!descriptor) throw py::error_already_set();
        store.attr(method.ml_name) = descriptor;
    }
}

}  // namespace attncache::python
