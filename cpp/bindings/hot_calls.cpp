// The calls that stand in Python's inner loops, on CPython's shortest path: METH_FASTCALL descriptors on the bound
// class, no conversion layer between the interpreter and the query. Same checks, errors and keywords as everywhere.
#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "arguments.hpp"
#include "arrays.hpp"
#include "bind.hpp"
#include "device_out.hpp"
#include "hot_docs.hpp"

namespace attncache::python {
namespace {

/// Runs a call and turns what it throws into a Python error, as pybind11 does for bound functions.
template <class Call>
PyObject* guarded(const Call& call) noexcept {
    try {
        return call();
    } catch (...) {
        py::detail::try_translate_exceptions();
        return nullptr;
    }
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
LookedAtLayer layer_at(const Store& store, const GivenIndex& layer) {
    if (auto found = look_at_layer(store, layer.number)) return found;
    raise_out_of_range(layer.given, {"layer", "n_layers", n_layers_of(store)});
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

/// The head mean that answers a query of that cost if it is kept or now pays, otherwise nullptr. The layer is shared.
std::shared_ptr<const HeadMean> head_mean_now(const Store& store, const Layer& layer, std::int64_t batch,
                                              std::int64_t query_bytes) {
    const CoreWork work;
    return head_mean_for(layer, batch, store.policy(), query_bytes);
}

/// A copy in `out` of what lies in the index.
PyObject* copied(const float* weights, std::span<const npy_intp> dims, PyObject* out) {
    py::object result = result_array(out, dims);
    std::memcpy(floats(result.ptr()), weights,
                static_cast<std::size_t>(PyArray_NBYTES(reinterpret_cast<PyArrayObject*>(result.ptr()))));
    return result.release().ptr();
}

/// Lines of the mean over all heads: from the index if that is built or now pays, otherwise computed. `in_index(mean)`
/// is where they lie there; `cost` is what they cost without it, and `compute(layer, out)` writes them.
template <class InIndex, class Compute>
PyObject* mean_of(const Store& store, const Layer& looked_at, std::int64_t batch, std::span<const npy_intp> dims,
                  PyObject* out, std::int64_t Costs::* cost, const InIndex& in_index, const Compute& compute) {
    const bool is_new = out == nullptr || out == Py_None;
    if (const LookedAtHeadMean ready = look_at_head_mean(looked_at, batch); is_new && ready != nullptr) {
        return view_of_floats(in_index(*ready), dims, owner_of(*ready));
    }
    const auto layer = looked_at.shared_from_this();  // the GIL may be released from here on
    if (const auto mean = head_mean_now(store, *layer, batch, layer->costs().*cost)) {
        return is_new ? view_of_floats(in_index(*mean), dims, owner_of(*mean)) : copied(in_index(*mean), dims, out);
    }
    if (const auto on_device = device_out(out, layer->device(), dims)) {
        const CoreWork work;
        compute(*layer, *on_device);
        return Py_NewRef(out);
    }
    py::object result = result_array(out, dims);
    if (PyArray_SIZE(reinterpret_cast<PyArrayObject*>(result.ptr())) > 0) {
        const Out to(floats(result.ptr()));
        const CoreWork work;
        compute(*layer, to);
    }
    if (result.ptr() != out) make_read_only(result.ptr());
    return result.release().ptr();
}

/// attention_from_position and attention_to_position
template <Direction kDirection>
PyObject* attention(PyObject* self, PyObject* const* values, Py_ssize_t n, PyObject* keywords) noexcept {
    constexpr bool kFrom = kDirection == Direction::from;
    static constexpr Arguments<4>::Signature signature{
        kFrom ? "attention_from_position" : "attention_to_position", {"layer", "position", "batch", "out"}, 2, 3};
    return guarded([&] {
        const Arguments<4> arguments(signature, values, n, keywords);
        const GivenIndex given_layer(arguments[0], "layer");
        const GivenIndex given_position(arguments[1], "position");
        const GivenBatch given_batch(arguments[2]);
        const Store& store = store_in(self);
        const LookedAtLayer layer = layer_at(store, given_layer);
        const Shape& shape = layer->shape();
        const Axis axis = kFrom ? Axis{"position", "seq_q", shape.seq_q} : Axis{"position", "seq_k", shape.seq_k};
        const std::int64_t position = given_position.on(axis);
        const std::int64_t batch = given_batch.on(shape);
        const npy_intp dims[] = {kFrom ? shape.seq_k : shape.seq_q};
        return mean_of(
            store, *layer, batch, dims, arguments[3], kFrom ? &Costs::row : &Costs::column,
            [&](const HeadMean& mean) { return (kFrom ? mean.by_query : mean.by_key) + position * dims[0]; },
            [&](const Layer& asked, const Out& to) { mean_lines(asked, batch, kDirection, {&position, 1}, to); });
    });
}

PyObject* head_mean_call(PyObject* self, PyObject* const* values, Py_ssize_t n, PyObject* keywords) noexcept {
    static constexpr Arguments<3>::Signature signature{"head_mean", {"layer", "batch", "out"}, 1, 2};
    return guarded([&] {
        const Arguments<3> arguments(signature, values, n, keywords);
        const GivenIndex given_layer(arguments[0], "layer");
        const GivenBatch given_batch(arguments[1]);
        const Store& store = store_in(self);
        const LookedAtLayer layer = layer_at(store, given_layer);
        const Shape& shape = layer->shape();
        const std::int64_t batch = given_batch.on(shape);
        const npy_intp dims[] = {shape.seq_q, shape.seq_k};
        return mean_of(
            store, *layer, batch, dims, arguments[2], &Costs::layer, [](const HeadMean& mean) { return mean.by_query; },
            [&](const Layer& asked, const Out& to) { head_mean(asked, batch, to); });
    });
}

/// [(position, weight), ...] of the k heaviest weights as Python numbers.
PyObject* list_of_heaviest(const float* weights, std::int64_t n, std::int64_t k) {
    std::vector<std::int64_t> positions(static_cast<std::size_t>(k));
    {
        const CoreWork work;
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
        const LookedAtLayer looked_at = layer_at(store, given_layer);
        const Shape& shape = looked_at->shape();
        const std::int64_t seq_k = shape.seq_k;
        const std::int64_t query = given_position.on({"from_position", "seq_q", shape.seq_q});
        const std::int64_t k = std::min(given_k, seq_k);
        const std::int64_t batch = given_batch.on(shape);
        const auto layer = looked_at->shared_from_this();  // a long row releases the GIL
        if (const auto mean = head_mean_now(store, *layer, batch, layer->costs().row)) {
            return list_of_heaviest(mean->by_query + query * seq_k, seq_k, k);
        }
        std::vector<float> row(static_cast<std::size_t>(seq_k));
        {
            const CoreWork work;
            mean_lines(*layer, batch, Direction::from, {&query, 1}, row.data());
        }
        return list_of_heaviest(row.data(), seq_k, k);
    });
}

PyObject* get_layer(PyObject* self, PyObject* const* values, Py_ssize_t n, PyObject* keywords) noexcept {
    static constexpr Arguments<1>::Signature signature{"get_layer", {"layer"}, 1, 1};
    return guarded([&]() -> PyObject* {
        const Arguments<1> arguments(signature, values, n, keywords);
        const std::int64_t number = whole_number(arguments[0], "layer");
        const LookedAtLayer layer = look_at_layer(store_in(self), number);
        if (layer == nullptr) Py_RETURN_NONE;
        return view_of(*layer->shared_from_this());  // shared: a bfloat16 view imports a package
    });
}

/// cache[i] is a view, cache[a:b] a tuple of views.
PyObject* get_item(PyObject* self, PyObject* key) noexcept {
    return guarded([&]() -> PyObject* {
        if (!PySlice_Check(key)) {
            const GivenIndex given_layer(key, "layer");
            return view_of(*layer_at(store_in(self), given_layer)->shared_from_this());
        }
        Py_ssize_t start, stop, step;
        if (PySlice_Unpack(key, &start, &stop, &step) < 0) throw py::error_already_set();
        const auto layers = store_in(self).layers();
        const Py_ssize_t n = PySlice_AdjustIndices(static_cast<Py_ssize_t>(layers.size()), &start, &stop, step);
        py::tuple views(static_cast<std::size_t>(n));
        for (Py_ssize_t i = 0; i < n; ++i) {
            const Layer& layer = *layers[static_cast<std::size_t>(start + i * step)];
            views[static_cast<std::size_t>(i)] = py::reinterpret_steal<py::object>(view_of(layer));
        }
        return views.release().ptr();
    });
}

PyObject* length(PyObject* self, PyObject*) noexcept {
    return guarded([&] { return PyLong_FromLongLong(n_layers_of(store_in(self))); });
}

template <class Function>
PyCFunction as_method(Function* function) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

constexpr int kFastCall = METH_FASTCALL | METH_KEYWORDS;

PyMethodDef hot_methods[] = {
    {"attention_from_position", as_method(attention<Direction::from>), kFastCall, docs::kAttentionFromPosition},
    {"attention_to_position", as_method(attention<Direction::to>), kFastCall, docs::kAttentionToPosition},
    {"top_attended_positions", as_method(top_attended_positions), kFastCall, docs::kTopAttendedPositions},
    {"head_mean", as_method(head_mean_call), kFastCall, docs::kHeadMean},
    {"get_layer", as_method(get_layer), kFastCall, docs::kGetLayer},
    {"__len__", length, METH_NOARGS | METH_COEXIST, docs::kLength},
    {"__getitem__", get_item, METH_O | METH_COEXIST, docs::kGetItem},
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
