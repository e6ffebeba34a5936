// The calls that stand in Python's inner loops, on CPython's shortest path: METH_FASTCALL descriptors on the bound
// class, no conversion layer between the interpreter and the query. Same checks, errors and keywords as everywhere.
#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>

#include "arrays.hpp"
#include "attncache/queries.hpp"
#include "bind.hpp"
#include "indices.hpp"
#include "on_device.hpp"

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
        set_no_memory();
    } catch (const std::length_error&) {
        set_no_memory();
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
        std::size_t n_positional;  // those after it are given by keyword alone
    };

    Arguments(const Signature& signature, PyObject* const* arguments, Py_ssize_t n_given, PyObject* keywords) {
        const auto n = static_cast<std::size_t>(n_given);
        if (n > signature.n_positional) {
            fail(signature, "takes at most " + std::to_string(signature.n_positional) + " positional arguments, got " +
                                std::to_string(n));
        }
        for (std::size_t i = 0; i < n; ++i) values_[i] = arguments[i];
        if (keywords != nullptr) read_keywords(signature, arguments + n, keywords);
        for (std::size_t i = n; i < signature.n_required; ++i) {
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

/// An index as it was given, read from Python but not yet checked against its axis.
struct GivenIndex {
    std::int64_t number;
    PyObject* given;

    GivenIndex(PyObject* value, const char* argument) : number(whole_number(value, argument)), given(value) {}
    std::int64_t on(const Axis& axis) const { return position_of(number, given, axis); }
};

/// The layer, and with it everything that may change, is looked up after all arguments have been read: reading one may
/// run Python code.
const std::shared_ptr<StoredLayer>& layer_at(const Store& store, const GivenIndex& layer) {
    return store.layers[static_cast<std::size_t>(layer.on({"layer", "n_layers", store.n_layers()}))];
}

/// The batch item; 0 if none is given.
struct GivenBatch {
    std::int64_t number;
    PyObject* given;

    explicit GivenBatch(PyObject* value) : number(value == nullptr ? 0 : whole_number(value, "batch")), given(value) {}
    std::int64_t on(const Shape& shape) const {
        if (given == nullptr && shape.batch_size > 0) return 0;
        const Axis axis{"batch", "batch_size", shape.batch_size};
        return position_of(number, given == nullptr ? py::int_(0).ptr() : given, axis);
    }
};

/// Answers one question about the mean of a batch item: from the index if that is built or now pays, otherwise
/// directly. `from_index(index)` and `directly(layer, bytes)` give the result; `cost` picks what it costs without an
/// index.
template <class Cost, class FromIndex, class Directly>
PyObject* answer(const Store& store, const std::shared_ptr<StoredLayer>& stored, std::int64_t batch, const Cost& cost,
                 const FromIndex& from_index, const Directly& directly) {
    const BatchIndex& ready = stored->indexes[static_cast<std::size_t>(batch)];
    if (ready.index.is_built()) return from_index(ready);
    const auto layer = stored;  // shared: the GIL may be released from here on
    if (layer->is_factored()) return directly(*layer, ReleaseGilForLargeWork::kLarge);
    const std::int64_t bytes = cost(index_costs(layer->pattern()));
    if (const BatchIndex* index = index_for_query(store, layer, batch, bytes)) return from_index(*index);
    return directly(*layer, bytes);
}

/// The result of `answer` as an array of floats: a view of the index, or what `fill(layer, float*)`, given the dense or
/// factored layer, writes into `out` or a new array.
template <class Cost, class InIndex, class Fill>
PyObject* floats_of_mean(const Store& store, const std::shared_ptr<StoredLayer>& stored, std::int64_t batch,
                         std::span<const npy_intp> dims, PyObject* out, const Cost& cost, const InIndex& in_index,
                         const Fill& fill) {
    const auto from_index = [&](const BatchIndex& found) -> PyObject* {
        const float* const weights = in_index(found.index);
        if (out == nullptr || out == Py_None) return view_of_floats(weights, dims, found.owner);
        py::object result = result_array(out, dims);
        std::memcpy(floats(result.ptr()), weights,
                    static_cast<std::size_t>(PyArray_NBYTES(reinterpret_cast<PyArrayObject*>(result.ptr()))));
        return result.release().ptr();
    };
    const auto directly = [&](const StoredLayer& layer, std::int64_t bytes) -> PyObject* {
        py::object result = result_array(out, dims);
        if (PyArray_SIZE(reinterpret_cast<PyArrayObject*>(result.ptr())) > 0) {
            const ReleaseGilForLargeWork release(bytes);
            layer.ask([&](const auto& asked) { fill(asked, floats(result.ptr())); });
        }
        if (result.ptr() != out) make_read_only(result.ptr());
        return result.release().ptr();
    };
    return answer(store, stored, batch, cost, from_index, directly);
}

PyObject* attention_from_position(PyObject* self, PyObject* const* values, Py_ssize_t n, PyObject* keywords) noexcept {
    static constexpr Arguments<5>::Signature signature{
        "attention_from_position", {"layer", "position", "batch", "out", "device_result"}, 2, 3};
    return guarded([&] {
        const Arguments<5> arguments(signature, values, n, keywords);
        const GivenIndex given_layer(arguments[0], "layer");
        const GivenIndex given_position(arguments[1], "position");
        const GivenBatch given_batch(arguments[2]);
        const bool device_result = flag(arguments[4], "device_result");
        const Store& store = store_in(self);
        const auto& stored = layer_at(store, given_layer);
        const Shape& shape = stored->shape();
        const std::int64_t query = given_position.on({"position", "seq_q", shape.seq_q});
        const std::int64_t batch = given_batch.on(shape);
        const npy_intp dims[] = {shape.seq_k};
        if (device_result || stored->is_on_device()) {
            return mean_on_device("rows", stored, batch, {&query, 1}, dims, arguments[3], device_result);
        }
        return floats_of_mean(
            store, stored, batch, dims, arguments[3], [](const IndexCosts& costs) { return costs.row; },
            [&](const HeadMeanIndex& index) { return index.by_query + query * dims[0]; },
            [&](const auto& layer, float* out) { mean_row(layer, batch, query, out); });
    });
}

PyObject* attention_to_position(PyObject* self, PyObject* const* values, Py_ssize_t n, PyObject* keywords) noexcept {
    static constexpr Arguments<5>::Signature signature{
        "attention_to_position", {"layer", "position", "batch", "out", "device_result"}, 2, 3};
    return guarded([&] {
        const Arguments<5> arguments(signature, values, n, keywords);
        const GivenIndex given_layer(arguments[0], "layer");
        const GivenIndex given_position(arguments[1], "position");
        const GivenBatch given_batch(arguments[2]);
        const bool device_result = flag(arguments[4], "device_result");
        const Store& store = store_in(self);
        const auto& stored = layer_at(store, given_layer);
        const Shape& shape = stored->shape();
        const std::int64_t key = given_position.on({"position", "seq_k", shape.seq_k});
        const std::int64_t batch = given_batch.on(shape);
        const npy_intp dims[] = {shape.seq_q};
        if (device_result || stored->is_on_device()) {
            return mean_on_device("columns", stored, batch, {&key, 1}, dims, arguments[3], device_result);
        }
        return floats_of_mean(
            store, stored, batch, dims, arguments[3], [](const IndexCosts& costs) { return costs.column; },
            [&](const HeadMeanIndex& index) { return index.by_key + key * dims[0]; },
            [&](const auto& layer, float* out) { mean_column(layer, batch, key, out); });
    });
}

PyObject* head_mean_call(PyObject* self, PyObject* const* values, Py_ssize_t n, PyObject* keywords) noexcept {
    static constexpr Arguments<4>::Signature signature{"head_mean", {"layer", "batch", "out", "device_result"}, 1, 2};
    return guarded([&] {
        const Arguments<4> arguments(signature, values, n, keywords);
        const GivenIndex given_layer(arguments[0], "layer");
        const GivenBatch given_batch(arguments[1]);
        const bool device_result = flag(arguments[3], "device_result");
        const Store& store = store_in(self);
        const auto& stored = layer_at(store, given_layer);
        const Shape& shape = stored->shape();
        const std::int64_t batch = given_batch.on(shape);
        const npy_intp dims[] = {shape.seq_q, shape.seq_k};
        if (device_result || stored->is_on_device()) {
            std::vector<std::int64_t> all(static_cast<std::size_t>(shape.seq_q));
            std::iota(all.begin(), all.end(), 0);
            return mean_on_device("rows", stored, batch, all, dims, arguments[2], device_result);
        }
        return floats_of_mean(
            store, stored, batch, dims, arguments[2], [](const IndexCosts& costs) { return costs.layer; },
            [](const HeadMeanIndex& index) { return index.by_query; },
            [&](const auto& layer, float* out) { head_mean(layer, batch, out); });
    });
}

/// [(position, weight), ...] of the k heaviest weights as Python numbers.
PyObject* list_of_heaviest(const float* weights, std::int64_t n, std::int64_t k) {
    std::vector<std::int64_t> positions(static_cast<std::size_t>(k));
    {
        const ReleaseGilForLargeWork release(n * static_cast<std::int64_t>(sizeof(float)));
        heaviest(weights, n, k, positions.data());
    }
    auto list = py::reinterpret_steal<py::object>(PyList_New(static_cast<Py_ssize_t>(k)));
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
        "top_attended_positions", {"layer", "from_position", "k", "batch"}, 3, 4};
    return guarded([&] {
        const Arguments<4> arguments(signature, values, n, keywords);
        const GivenIndex given_layer(arguments[0], "layer");
        const GivenIndex given_position(arguments[1], "from_position");
        const std::int64_t given_k = count(arguments[2], "k");
        const GivenBatch given_batch(arguments[3]);
        const Store& store = store_in(self);
        const auto& stored = layer_at(store, given_layer);
        const Shape& shape = stored->shape();
        const std::int64_t seq_k = shape.seq_k;
        const std::int64_t query = given_position.on({"from_position", "seq_q", shape.seq_q});
        const std::int64_t k = std::min(given_k, seq_k);
        const std::int64_t batch = given_batch.on(shape);
        if (stored->is_on_device()) return heaviest_on_device(stored, batch, query, k);
        return answer(
            store, stored, batch, [](const IndexCosts& costs) { return costs.row; },
            [&](const BatchIndex& found) {
                const auto memory = found.index.memory;  // shared: a long row releases the GIL
                return list_of_heaviest(found.index.by_query + query * seq_k, seq_k, k);
            },
            [&](const StoredLayer& layer, std::int64_t bytes) {
                std::vector<float> row(static_cast<std::size_t>(seq_k));
                {
                    const ReleaseGilForLargeWork release(bytes);
                    layer.ask([&](const auto& asked) { mean_row(asked, batch, query, row.data()); });
                }
                return list_of_heaviest(row.data(), seq_k, k);
            });
    });
}

PyObject* get_layer(PyObject* self, PyObject* const* values, Py_ssize_t n, PyObject* keywords) noexcept {
    static constexpr Arguments<1>::Signature signature{"get_layer", {"layer"}, 1, 1};
    return guarded([&]() -> PyObject* {
        const Arguments<1> arguments(signature, values, n, keywords);
        std::int64_t layer = whole_number(arguments[0], "layer");
        const Store& store = store_in(self);
        if (layer < 0) layer += store.n_layers();
        if (layer < 0 || layer >= store.n_layers()) Py_RETURN_NONE;
        const auto stored = store.layers[static_cast<std::size_t>(layer)];  // shared: a bfloat16 view imports a package
        return view_of(*stored);
    });
}

/// cache[i] is a view, cache[a:b] a tuple of views.
PyObject* get_item(PyObject* self, PyObject* key) noexcept {
    return guarded([&]() -> PyObject* {
        if (!PySlice_Check(key)) {
            const GivenIndex given_layer(key, "layer");
            const auto stored = layer_at(store_in(self), given_layer);  // shared: a bfloat16 view imports a package
            return view_of(*stored);
        }
        Py_ssize_t start, stop, step;
        if (PySlice_Unpack(key, &start, &stop, &step) < 0) throw py::error_already_set();
        const Store& store = store_in(self);
        const Py_ssize_t n = PySlice_AdjustIndices(store.n_layers(), &start, &stop, step);
        std::vector<std::shared_ptr<StoredLayer>> layers;
        for (Py_ssize_t i = 0; i < n; ++i) layers.push_back(store.layers[static_cast<std::size_t>(start + i * step)]);
        py::tuple views(layers.size());
        for (std::size_t i = 0; i < layers.size(); ++i) {
            views[i] = py::reinterpret_steal<py::object>(view_of(*layers[i]));
        }
        return views.release().ptr();
    });
}

PyObject* length(PyObject* self, PyObject*) noexcept {
    return guarded([&] { return PyLong_FromLongLong(store_in(self).n_layers()); });
}

template <class Function>
PyCFunction as_method(Function* function) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

constexpr int kFastCall = METH_FASTCALL | METH_KEYWORDS;

// The text before "--" is what inspect.signature reads.
PyMethodDef hot_methods[] = {
    {"attention_from_position", as_method(attention_from_position), kFastCall,
     R"(attention_from_position($self, layer, position, batch=0, *, out=None, device_result=False)
--

What one query position attends to, averaged over heads.

Args:
    layer: index of the layer; negative counts from the end.
    position: query position in [-seq_q, seq_q).
    batch: batch item.
    out: None, or a writable C-contiguous float32 array of shape [seq_k] to write into and return.
    device_result: of a layer on a device, whether to return an attncache.cuda.DeviceArray, without waiting for it.

Returns:
    Read-only float32 array of shape [seq_k], a view of the index if that is built. Exact: the bits of
    ``pattern[batch].mean(axis=0, dtype=np.float32)[position]``. Bounded on factored layers.

Raises:
    IndexError: an index is out of range. TypeError: an index is not an int. ValueError: out does not fit, or
        device_result is True and the layer lies in CPU memory.

>>> cache = AttentionCache()
>>> cache.push(np.array([[[[1.0, 0.0], [0.25, 0.75]]]], np.float32))
>>> cache.attention_from_position(0, 1)
array([0.25, 0.75], dtype=float32)
)"},
    {"attention_to_position", as_method(attention_to_position), kFastCall,
     R"(attention_to_position($self, layer, position, batch=0, *, out=None, device_result=False)
--

Who attends to one key position, averaged over heads.

Args:
    layer: index of the layer; negative counts from the end.
    position: key position in [-seq_k, seq_k).
    batch: batch item.
    out: None, or a writable C-contiguous float32 array of shape [seq_q] to write into and return.
    device_result: of a layer on a device, whether to return an attncache.cuda.DeviceArray, without waiting for it.

Returns:
    Read-only float32 array of shape [seq_q], a view of the index if that is built. Exact: the bits of
    ``pattern[batch].mean(axis=0, dtype=np.float32)[:, position]``. Bounded on factored layers.

Raises:
    IndexError: an index is out of range. TypeError: an index is not an int. ValueError: out does not fit, or
        device_result is True and the layer lies in CPU memory.

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
    List of (position, weight), heaviest first, equal weights to the lower position, NaN last. Exact
    on stored patterns; of factored layers the order is exact and the weights are bounded.

Raises:
    IndexError: an index is out of range. ValueError: k is negative. TypeError: not an int.

>>> cache = AttentionCache()
>>> cache.push(np.array([[[[1.0, 0.0], [0.25, 0.75]]]], np.float32))
>>> cache.top_attended_positions(0, 1, k=1)
[(1, 0.75)]
)"},
    {"head_mean", as_method(head_mean_call), kFastCall,
     R"(head_mean($self, layer, batch=0, *, out=None, device_result=False)
--

The mean over heads of a whole layer.

Args:
    layer: index of the layer; negative counts from the end.
    batch: batch item.
    out: None, or a writable C-contiguous float32 array of shape [seq_q, seq_k] to write into and return.
    device_result: of a layer on a device, whether to return an attncache.cuda.DeviceArray, without waiting for it.

Returns:
    Read-only float32 array of shape [seq_q, seq_k], a view of the index if that is built. Exact: the bits of
    ``pattern[batch].mean(axis=0, dtype=np.float32)``. Bounded on factored layers.

Raises:
    IndexError: an index is out of range. TypeError: an index is not an int. ValueError: out does not fit, or
        device_result is True and the layer lies in CPU memory.

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
    Read-only array of shape [batch, head, query, key] that shares the cache's memory and keeps it alive. A factored
    layer has no such memory: its pattern is computed each time, block by block, as a new float32 array of
    4 * batch * head * query * key bytes.

Raises:
    TypeError: layer is not an int. ValueError: the layer lies on a device; cache.cpu() copies it. ImportError: it is
        bfloat16 and ml_dtypes is not installed.

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
