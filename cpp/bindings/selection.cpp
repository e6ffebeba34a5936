// layers, heads and batch, in the order in which the errors are checked.
#include "selection.hpp"

#include <string>

namespace attncache::python {
namespace {

std::string text_of(const Shape& shape) {
    return "[" + std::to_string(shape.batch_size) + ", " + std::to_string(shape.n_heads) + ", " +
           std::to_string(shape.seq_q) + ", " + std::to_string(shape.seq_k) + "]";
}

const Shape& shape_of(const Store& store, std::int64_t layer) {
    return store.layers[static_cast<std::size_t>(layer)].layer->pattern.shape;
}

/// The one shape of those layers; of no layers: the one shape of all layers of the store.
Shape common_shape(const Store& store, const std::vector<std::int64_t>& layers) {
    if (store.layers.empty()) throw py::value_error("the cache has no layers, so a selection has no shape");
    const auto n = static_cast<std::int64_t>(layers.empty() ? store.layers.size() : layers.size());
    const auto layer_at = [&](std::int64_t i) { return layers.empty() ? i : layers[static_cast<std::size_t>(i)]; };
    const Shape& shape = shape_of(store, layer_at(0));
    for (std::int64_t i = 1; i < n; ++i) {
        const Shape& other = shape_of(store, layer_at(i));
        if (other == shape) continue;
        throw py::value_error("layers must have one shape to be selected together, but layer " +
                              std::to_string(layer_at(0)) + " has " + text_of(shape) + " and layer " +
                              std::to_string(layer_at(i)) + " has " + text_of(other));
    }
    return shape;
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

std::int64_t ResolvedSelection::bytes_of(std::int64_t n_items_per_plane) const {
    const auto n_heads = static_cast<std::int64_t>(selection.heads.size());
    return static_cast<std::int64_t>(selection.layers.size() * selection.batches.size()) * n_heads * n_items_per_plane *
           2;
}

ResolvedSelection resolve_selection(const Store& store, const py::object& layers, const py::object& heads,
                                    const py::object& batch) {
    ResolvedSelection resolved;
    const Indices chosen_layers = resolve_selector(layers, {"layers", "n_layers", store.n_layers()});
    resolved.shape = common_shape(store, chosen_layers.values);
    const Shape& shape = resolved.shape;
    Selection& selection = resolved.selection;
    Indices chosen_heads = resolve_heads(heads, {"heads", "n_heads", shape.n_heads}, selection.treat_heads);
    Indices batches = resolve_selector(batch, {"batch", "batch_size", shape.batch_size});
    for (const std::int64_t index : chosen_layers.values) {
        const auto& layer = store.layers[static_cast<std::size_t>(index)].layer;
        selection.layers.push_back(layer->pattern);
        resolved.keep_alive.push_back(layer);
    }
    if (chosen_layers.keeps_axis) resolved.dims.push_back(static_cast<npy_intp>(chosen_layers.values.size()));
    if (batches.keeps_axis) resolved.dims.push_back(static_cast<npy_intp>(batches.values.size()));
    if (chosen_heads.keeps_axis) resolved.dims.push_back(static_cast<npy_intp>(chosen_heads.values.size()));
    selection.heads = std::move(chosen_heads.values);
    selection.batches = std::move(batches.values);
    return resolved;
}

}  // namespace attncache::python
