// layers, heads and batch, in the order in which the errors are checked.
#include "selection.hpp"

#include <string>

namespace attncache::python {
namespace {

std::string text_of(const Shape& shape) {
    return "[" + std::to_string(shape.batch_size) + ", " + std::to_string(shape.n_heads) + ", " +
           std::to_string(shape.seq_q) + ", " + std::to_string(shape.seq_k) + "]";
}

using Layers = std::vector<std::shared_ptr<const Layer>>;

Layers take_layers(const Layers& all, const std::vector<std::int64_t>& numbers) {
    Layers layers;
    layers.reserve(numbers.size());
    for (const std::int64_t number : numbers) layers.push_back(all[static_cast<std::size_t>(number)]);
    return layers;
}

/// A layer with the one shape and on the one device of those layers; of no layers: of all layers of the store.
const Layer& common_layer(const Layers& all, const std::vector<std::int64_t>& numbers, const Layers& chosen) {
    const Layers& layers = chosen.empty() ? all : chosen;
    if (layers.empty()) throw py::value_error("the cache has no layers, so a selection has no shape");
    const auto number = [&](std::size_t i) {
        return std::to_string(chosen.empty() ? static_cast<std::int64_t>(i) : numbers[i]);
    };
    const auto device = [](const Layer& layer) { return layer.device() == nullptr ? "cpu" : layer.device()->name(); };
    const Layer& first = *layers.front();
    for (std::size_t i = 1; i < layers.size(); ++i) {
        const Layer& other = *layers[i];
        if (other.shape() != first.shape()) {
            throw py::value_error("layers must have one shape to be selected together, but layer " + number(0) +
                                  " has " + text_of(first.shape()) + " and layer " + number(i) + " has " +
                                  text_of(other.shape()));
        }
        if (other.device() != first.device()) {
            throw py::value_error("layers must lie on one device to be selected together, but layer " + number(0) +
                                  " lies on " + device(first) + " and layer " + number(i) + " on " + device(other));
        }
    }
    return first;
}

bool is_mean(const py::handle& value) {
    return PyUnicode_Check(value.ptr()) && PyUnicode_CompareWithASCIIString(value.ptr(), "mean") == 0;
}

/// heads: a selector, "mean", or ("mean", selector).
Indices resolve_heads(const py::object& heads, const Axis& axis, Heads& treat_heads) {
    treat_heads = Heads::mean;
    Indices indices;
    if (is_mean(heads)) {
        indices = resolve_selector(py::none(), axis);
    } else if (PyTuple_Check(heads.ptr()) && PyTuple_GET_SIZE(heads.ptr()) == 2 &&
               is_mean(PyTuple_GET_ITEM(heads.ptr(), 0))) {
        indices = resolve_selector(py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(heads.ptr(), 1)), axis);
    } else if (PyUnicode_Check(heads.ptr())) {
        throw py::type_error("heads must be \"mean\" if it is a string, got " + std::string(py::repr(heads)));
    } else {
        treat_heads = Heads::each;
        return resolve_selector(heads, axis);
    }
    indices.keeps_axis = false;
    return indices;
}

}  // namespace

ResolvedSelection resolve_selection(const Store& store, const py::object& layers, const py::object& heads,
                                    const py::object& batch) {
    ResolvedSelection resolved;
    Indices chosen_layers{{}, false};
    std::shared_ptr<const Layer> only;  // the short way of a plain number: the other layers are not looked at
    if (PyLong_CheckExact(layers.ptr())) only = store.layer(whole_number(layers.ptr(), "layers"));
    if (only != nullptr) {
        resolved.shape = only->shape();
        resolved.device = only->device();
        resolved.layers.push_back(std::move(only));
    } else {
        const Layers all = store.layers();  // what is asked, whatever reading a selector or another thread changes
        chosen_layers = resolve_selector(layers, {"layers", "n_layers", static_cast<std::int64_t>(all.size())});
        resolved.layers = take_layers(all, chosen_layers.values);
        const Layer& common = common_layer(all, chosen_layers.values, resolved.layers);
        resolved.shape = common.shape();
        resolved.device = common.device();
    }
    resolved.policy = store.policy();
    const Shape& shape = resolved.shape;
    Indices chosen_heads = resolve_heads(heads, {"heads", "n_heads", shape.n_heads}, resolved.treat_heads);
    Indices batches = resolve_selector(batch, {"batch", "batch_size", shape.batch_size});
    resolved.add(chosen_layers);
    resolved.add(batches);
    resolved.add(chosen_heads);
    resolved.heads = std::move(chosen_heads.values);
    resolved.batches = std::move(batches.values);
    return resolved;
}

}  // namespace attncache::python
