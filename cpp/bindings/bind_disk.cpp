// What a cache on disk needs of a store: the bytes of its layers and what was computed from them, out and in again.
#include <pybind11/stl.h>

#include <string>
#include <tuple>

#include "arrays.hpp"
#include "bind.hpp"
#include "indices.hpp"

namespace attncache::python {
namespace {

using Runs = std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>>;

std::shared_ptr<StoredLayer> layer_at(const py::object& self, const py::object& layer) {
    const std::int64_t number = whole_number(layer.ptr(), "layer");
    const Store& store = store_of(self);
    return store
        .layers[static_cast<std::size_t>(position_of(number, layer.ptr(), {"layer", "n_layers", store.n_layers()}))];
}

std::shared_ptr<const FactoredLayer> factored_at(const py::object& self, const py::object& layer) {
    const auto stored = layer_at(self, layer);
    if (stored->factored() == nullptr) throw py::value_error("layer must be a factored one, got a dense one");
    return stored->factored();
}

/// The items of a float32 array of those dimensions, C-contiguous and aligned.
const float* checked_floats(const py::object& array, std::span<const npy_intp> dims) {
    auto* const ndarray = reinterpret_cast<PyArrayObject*>(array.ptr());
    const bool fits = PyArray_Check(array.ptr()) && PyArray_TYPE(ndarray) == NPY_FLOAT &&
                      PyArray_ISCARRAY_RO(ndarray) && PyArray_NDIM(ndarray) == static_cast<int>(dims.size()) &&
                      std::equal(dims.begin(), dims.end(), PyArray_DIMS(ndarray));
    if (!fits) throw py::value_error("expected an aligned C-contiguous float32 array of the layer's shape");
    return floats(array.ptr());
}

/// The pattern of a dense layer, or the queries and keys of a factored one.
py::tuple memory_of(const py::object& self, const py::object& layer) {
    const auto stored = layer_at(self, layer);
    const auto view = [](const PatternView& rows, const py::object& owner) {
        return py::reinterpret_steal<py::object>(view_of_bytes(rows, owner));
    };
    const auto factored_layer = stored->factored();
    if (factored_layer == nullptr) return py::make_tuple(view(stored->pattern(), stored->owner()));
    const py::object owner = capsule_of(factored_layer);
    const FactoredView& factored = factored_layer->view();
    return py::make_tuple(view(factored.query, owner), view(factored.key, owner));
}

/// (scale, softcap, causal, window, hidden_keys, sinks, whether lse was given) of a factored layer, as _push_qk takes.
py::tuple options_of(const py::object& self, const py::object& layer) {
    const auto factored = factored_at(self, layer);
    const FactoredView& view = factored->view();
    Runs hidden;
    for (const auto& ranges : view.hidden_keys) {
        auto& runs = hidden.emplace_back();
        for (const Range& range : ranges) runs.emplace_back(range.begin, range.end);
    }
    const Scoring& scoring = view.scoring;
    return py::make_tuple(scoring.scale, scoring.softcap, scoring.causal, scoring.window, hidden, view.sinks,
                          factored->has_given_lse());
}

py::object new_floats(const std::vector<float>& values, const Shape& shape) {
    const npy_intp dims[] = {shape.batch_size, shape.n_heads, shape.seq_q};
    auto array = py::reinterpret_steal<py::object>(new_array(dims, NPY_FLOAT));
    std::copy(values.begin(), values.end(), floats(array.ptr()));
    return array;
}

/// The greatest score and the sum of every row if they are known, otherwise None.
py::object row_sums_of(const py::object& self, const py::object& layer) {
    const auto factored = factored_at(self, layer);
    const RowSums* const rows = factored->known_row_sums();
    if (rows == nullptr) return py::none();
    const Shape shape = factored->view().shape();
    return py::make_tuple(new_floats(rows->greatest, shape), new_floats(rows->sums, shape));
}

void set_row_sums(const py::object& self, const py::object& layer, const py::object& greatest, const py::object& sums) {
    const auto factored = factored_at(self, layer);
    const Shape shape = factored->view().shape();
    const npy_intp dims[] = {shape.batch_size, shape.n_heads, shape.seq_q};
    const auto n = static_cast<std::size_t>(shape.batch_size * shape.n_heads * shape.seq_q);
    const float* const first_greatest = checked_floats(greatest, dims);
    const float* const first_sum = checked_floats(sums, dims);
    factored->adopt_row_sums({{first_greatest, first_greatest + n}, {first_sum, first_sum + n}});
}

/// Lays the index of one batch item over [query, key] and [key, query] arrays, whose memory it shares.
void set_layer_index(const py::object& self, const py::object& layer, const py::object& batch,
                     const py::object& by_query, const py::object& by_key) {
    const std::int64_t item = whole_number(batch.ptr(), "batch");
    const auto stored = layer_at(self, layer);
    const Shape& shape = stored->pattern().shape;
    if (stored->factored() != nullptr) throw py::value_error("layer must be a dense one, got a factored one");
    const std::int64_t at = position_of(item, batch.ptr(), {"batch", "batch_size", shape.batch_size});
    const npy_intp by_query_dims[] = {shape.seq_q, shape.seq_k};
    const npy_intp by_key_dims[] = {shape.seq_k, shape.seq_q};
    HeadMeanIndex index;
    index.by_query = checked_floats(by_query, by_query_dims);
    index.by_key = checked_floats(by_key, by_key_dims);
    index.n_bytes = 2 * shape.seq_q * shape.seq_k * static_cast<std::int64_t>(sizeof(float));
    index.memory = keep_alive(py::make_tuple(by_query, by_key));
    set_index(stored->indexes[static_cast<std::size_t>(at)], std::move(index));
}

}  // namespace

void bind_disk(py::class_<Store>& store) {
    using namespace py::literals;
    store.def("_memory", memory_of, "layer"_a)
        .def("_options", options_of, "layer"_a)
        .def("_row_sums", row_sums_of, "layer"_a)
        .def("_set_row_sums", set_row_sums, "layer"_a, "greatest"_a, "sums"_a)
        .def("_set_index", set_layer_index, "layer"_a, "batch"_a, "by_query"_a, "by_key"_a);
}

}  // namespace attncache::python
