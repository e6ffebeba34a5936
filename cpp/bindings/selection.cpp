// layers, heads and batch, in the order in which the errors are checked.
#include "selection.hpp"

#include "arrays.hpp"

#include <string>

namespace attncache::python {
namespace {

std::string text_of(const Shape& shape) {
    return "[" + std::to_string(shape.batch_size) + ", " + std::to_string(shape.n_heads) + ", " +
           std::to_string(shape.seq_q) + ", " + std::to_string(shape.seq_k) + "]";
}

/// The layers of that number, checked again: reading a selector may have run Python code that changed the store.
std::vector<std::shared_ptr<StoredLayer>> take_layers(const Store& store, const std::vector<std::int64_t>& numbers) {
    std::vector<std::shared_ptr<StoredLayer>> layers;
    for (const std::int64_t number : numbers) {
        const std::int64_t layer =
            position_of(number, py::int_(number).ptr(), {"layers", "n_layers", store.n_layers()});
        layers.push_back(store.layers[static_cast<std::size_t>(layer)]);
    }
    return layers;
}

/// A layer with the one shape and on the one device of those layers; of no layers: of all layers of the store.
std::shared_ptr<StoredLayer> common_layer(const Store& store, const std::vector<std::int64_t>& numbers,
                                          const std::vector<std::shared_ptr<StoredLayer>>& chosen) {
    const auto& layers = chosen.empty() ? store.layers : chosen;
    if (layers.empty()) throw py::value_error("the cache has no layers, so a selection has no shape");
    const auto number = [&](std::size_t i) {
        return std::to_string(chosen.empty() ? static_cast<std::int64_t>(i) : numbers[i]);
    };
    const StoredLayer& first = *layers.front();
    for (std::size_t i = 1; i < layers.size(); ++i) {
        const StoredLayer& other = *layers[i];
        if (other.shape() != first.shape()) {
            throw py::value_error("layers must have one shape to be selected together, but layer " + number(0) +
                                  " has " + text_of(first.shape()) + " and layer " + number(i) + " has " +
                                  text_of(other.shape()));
        }
        if (other.device() != first.device()) {
            throw py::value_error("layers must lie on one device to be selected together, but layer " + number(0) +
                                  " lies on " + first.device() + " and layer " + number(i) + " on " + other.device());
        }
    }
    return layers.front();
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

/// Makes the selection read its layers, which lie in CPU memory.
void point_at_layers(ResolvedSelection& resolved) {
    Selection& selection = resolved.selection;
    for (const auto& layer : resolved.layers) {
        selection.layers.push_back(layer->pattern());
        selection.factored.push_back(layer->factored().get());
        resolved.has_factored |= layer->is_factored();
    }
    if (!resolved.has_factored) selection.factored.clear();
}

}  // namespace

std::int64_t ResolvedSelection::bytes_of(std::int64_t n_items_per_plane) const {
    if (has_factored) return ReleaseGilForLargeWork::kLarge;
    const auto n_heads = static_cast<std::int64_t>(selection.heads.size());
    const auto n_items = static_cast<std::int64_t>(selection.layers.size() * selection.batches.size()) * n_heads;
    return n_items * n_items_per_plane * 2;
}

bool ResolvedSelection::is_mean_of_all_heads() const {
    if (selection.treat_heads != Heads::mean) return false;
    if (static_cast<std::int64_t>(selection.heads.size()) != shape.n_heads) return false;
    for (std::size_t h = 0; h < selection.heads.size(); ++h) {
        if (selection.heads[h] != static_cast<std::int64_t>(h)) return false;
    }
    return true;
}

void ResolvedSelection::use_index(const Store& store, const std::shared_ptr<StoredLayer>& layer, std::int64_t batch,
                                  std::int64_t query_bytes) {
    const BatchIndex* const found = index_for_query(store, layer, batch, query_bytes);
    selection.means.push_back(found == nullptr ? HeadMeans{} : HeadMeans{found->index.by_query, found->index.by_key});
    if (found != nullptr) keep_alive.push_back(found->index.memory);
}

ResolvedSelection resolve_selection(const Store& store, const py::object& layers, const py::object& heads,
                                    const py::object& batch) {
    ResolvedSelection resolved;
    const Indices chosen_layers = resolve_selector(layers, {"layers", "n_layers", store.n_layers()});
    resolved.layers = take_layers(store, chosen_layers.values);
    const auto common = common_layer(store, chosen_layers.values, resolved.layers);
    resolved.shape = common->shape();
    resolved.home = common->device_layer();
    const Shape& shape = resolved.shape;
    Selection& selection = resolved.selection;
    if (!resolved.home) point_at_layers(resolved);
    Indices chosen_heads = resolve_heads(heads, {"heads", "n_heads", shape.n_heads}, selection.treat_heads);
    Indices batches = resolve_selector(batch, {"batch", "batch_size", shape.batch_size});
    if (chosen_layers.keeps_axis) resolved.dims.push_back(static_cast<npy_intp>(chosen_layers.values.size()));
    if (batches.keeps_axis) resolved.dims.push_back(static_cast<npy_intp>(batches.values.size()));
    if (chosen_heads.keeps_axis) resolved.dims.push_back(static_cast<npy_intp>(chosen_heads.values.size()));
    selection.heads = std::move(chosen_heads.values);
    selection.batches = std::move(batches.values);
    return resolved;
}

}  // namespace attncache::python
