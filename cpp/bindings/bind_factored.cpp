// Factored layers: push them, extend them, see their pattern and their sums. The Python face has checked every
// argument.
#include <pybind11/stl.h>

#include <string>
#include <tuple>

#include "arrays.hpp"
#include "bind.hpp"
#include "indices.hpp"

namespace attncache::python {
namespace {

/// An array, the dtype of its items, the dtype to store them in, and whether its memory is shared.
using Source = std::tuple<py::object, std::string, std::string, bool>;
using Runs = std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>>;

Rows rows_of(const Source& source) {
    const auto& [array, dtype, stored, shares_memory] = source;
    return rows_from_array(array, dtype_named(dtype), dtype_named(stored), shares_memory);
}

std::vector<std::vector<Range>> ranges_of(const Runs& runs) {
    std::vector<std::vector<Range>> ranges;
    for (const auto& of_batch : runs) {
        auto& of_result = ranges.emplace_back();
        for (const auto& [begin, end] : of_batch) of_result.push_back({begin, end});
    }
    return ranges;
}

std::vector<float> floats_of(const py::object& array) {
    if (array.is_none()) return {};
    auto* const ndarray = reinterpret_cast<PyArrayObject*>(array.ptr());
    if (!PyArray_Check(array.ptr()) || PyArray_TYPE(ndarray) != NPY_FLOAT || !PyArray_ISCARRAY_RO(ndarray)) {
        throw py::type_error("expected a C-contiguous float32 array");
    }
    const float* const items = floats(array.ptr());
    return {items, items + PyArray_SIZE(ndarray)};
}

void check(bool holds, const char* rule) {
    if (!holds) throw py::value_error(rule);
}

/// Whether hidden keys are ascending runs of the keys of each batch item, or there are none at all.
void check_hidden(const std::vector<std::vector<Range>>& hidden_keys, const Shape& keys) {
    if (hidden_keys.empty()) return;
    check(static_cast<std::int64_t>(hidden_keys.size()) == keys.batch_size, "hidden keys must be of each batch item");
    for (const auto& ranges : hidden_keys) {
        std::int64_t end = 0;
        for (const Range& range : ranges) {
            check(end <= range.begin && range.begin < range.end && range.end <= keys.seq_q,
                  "hidden keys must be ascending runs of the keys");
            end = range.end;
        }
    }
}

/// All that the core computes with, checked once more when nothing is read any longer: while Python code was run to
/// read one option, it may have changed what another was checked against.
void check_fit(const Rows& query, const Rows& key, const FactoredView& options, const py::object& lse,
               std::size_t n_lse) {
    const Shape& queries = query.view.shape;
    const Shape& keys = key.view.shape;
    check(queries.batch_size == keys.batch_size, "query and key must have one batch size");
    check(queries.seq_k == keys.seq_k && keys.seq_k > 0, "query and key must have the same number of items");
    check(keys.n_heads > 0 && queries.n_heads > 0 && queries.n_heads % keys.n_heads == 0,
          "the heads of query must be a multiple of those of key");
    check_hidden(options.hidden_keys, keys);
    check(options.sinks.empty() || static_cast<std::int64_t>(options.sinks.size()) == queries.n_heads,
          "sinks must be one for each head");
    check(lse.is_none() || static_cast<std::int64_t>(n_lse) == queries.batch_size * queries.n_heads * queries.seq_q,
          "lse must be one for each row");
}

void push_qk(const py::object& self, const Source& query, const Source& key, float scale, float softcap, bool causal,
             std::int64_t window, const Runs& hidden_keys, const py::object& sinks, const py::object& lse) {
    FactoredView options;
    options.scoring = {scale, softcap, causal, window};
    options.hidden_keys = ranges_of(hidden_keys);
    options.sinks = floats_of(sinks);
    std::vector<float> row_lse = floats_of(lse);
    Rows queries = rows_of(query);
    Rows keys = rows_of(key);
    check_fit(queries, keys, options, lse, row_lse.size());
    auto layer = std::make_shared<const FactoredLayer>(std::move(queries), std::move(keys), std::move(options),
                                                       std::move(row_lse));
    store_of(self).layers.push_back(std::make_shared<StoredLayer>(std::move(layer)));
}

/// The layer of that number; ValueError if it is dense.
std::shared_ptr<const FactoredLayer> factored_at(const py::object& self, const py::object& layer) {
    const std::int64_t number = whole_number(layer.ptr(), "layer");
    const Store& store = store_of(self);
    const std::int64_t position = position_of(number, layer.ptr(), {"layer", "n_layers", store.n_layers()});
    const auto& stored = store.layers[static_cast<std::size_t>(position)];
    if (stored->factored() != nullptr) return stored->factored();
    throw py::value_error("layer must be a factored one, got " + std::string(py::str(layer)) +
                          ", which is dense: it has a pattern but no queries and keys");
}

void check_size(const char* what, std::int64_t got, std::int64_t wanted) {
    if (got == wanted) return;
    throw py::value_error(std::string(what) + " must be " + std::to_string(wanted) + " as in the layer, got " +
                          std::to_string(got));
}

/// Whether more positions fit behind those of a layer.
void check_more(const FactoredLayer& layer, const SourceArray& query, const SourceArray& key) {
    const FactoredView& view = layer.view();
    if (layer.has_given_lse())
        throw py::value_error("layer must be one that was pushed without lse: its sums would change");
    check_size("the batch size of query and key", query.shape.batch_size, view.query.shape.batch_size);
    check_size("the heads of query", query.shape.n_heads, view.query.shape.n_heads);
    check_size("the heads of key", key.shape.n_heads, view.key.shape.n_heads);
    check_size("the items of query and key", query.shape.seq_k, view.head_dim());
    if (query.shape.seq_q == key.shape.seq_q) return;
    throw py::value_error("query and key must have as many positions as each other, got " +
                          std::to_string(query.shape.seq_q) + " and " + std::to_string(key.shape.seq_q));
}

void append_qk(const py::object& self, const py::object& layer, const py::object& query, const std::string& query_dtype,
               const py::object& key, const std::string& key_dtype, const Runs& hidden_keys) {
    const auto before = factored_at(self, layer);
    const SourceArray queries = source_of_array(query, dtype_named(query_dtype));
    const SourceArray keys = source_of_array(key, dtype_named(key_dtype));
    const auto hidden = ranges_of(hidden_keys);
    check_more(*before, queries, keys);
    check_hidden(hidden, keys.shape);
    std::shared_ptr<const FactoredLayer> after;
    {
        const ReleaseGilForLargeWork release(PyArray_NBYTES(reinterpret_cast<PyArrayObject*>(key.ptr())));
        after = before->with_more(queries, keys, hidden);
    }
    // Made before the search, and what it takes the place of let go after it: either may run Python code, which may
    // change the layers.
    auto fresh = std::make_shared<StoredLayer>(std::move(after));
    for (auto& stored : store_of(self).layers) {
        if (!stored->is_on_device() && stored->factored() == before) return stored.swap(fresh);
    }
    throw py::value_error("layer was changed or removed by another thread while it was appended to");
}

py::object queries_of(const py::object& self, const py::object& layer) {
    const auto factored = factored_at(self, layer);
    return py::reinterpret_steal<py::object>(view_of_rows(factored->view().query, factored));
}

py::object keys_of(const py::object& self, const py::object& layer) {
    const auto factored = factored_at(self, layer);
    return py::reinterpret_steal<py::object>(view_of_rows(factored->view().key, factored));
}

py::object lse_of(const py::object& self, const py::object& layer, const py::object& progress) {
    const auto factored = factored_at(self, layer);
    const Shape shape = factored->view().shape();
    std::vector<float> sums;
    {
        const ReleaseGilForLargeWork release(ReleaseGilForLargeWork::kLarge, progress);
        sums = log_sums(*factored);
    }
    const npy_intp dims[] = {shape.batch_size, shape.n_heads, shape.seq_q};
    auto result = py::reinterpret_steal<py::object>(new_array(dims, NPY_FLOAT));
    std::copy(sums.begin(), sums.end(), floats(result.ptr()));
    make_read_only(result.ptr());
    return result;
}

void push_dense_of(const py::object& self, const py::object& source, const py::object& layer,
                   const std::string& dtype) {
    const auto factored = factored_at(source, layer);
    const DType stored = dtype_named(dtype);
    std::shared_ptr<const Layer> dense;
    {
        const ReleaseGilForLargeWork release(ReleaseGilForLargeWork::kLarge);
        dense = dense_layer(*factored, stored);
    }
    store_of(self).layers.push_back(std::make_shared<StoredLayer>(std::move(dense)));
}

py::tuple kinds(const py::object& self) {
    const auto layers = store_of(self).layers;  // a copy: making a tuple may collect garbage, whose finaliser may clear
    py::tuple kinds(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) kinds[i] = py::str(layers[i]->is_factored() ? "factored" : "dense");
    return kinds;
}

}  // namespace

void bind_factored(py::class_<Store>& store) {
    using namespace py::literals;
    store
        .def("_push_qk", push_qk, "query"_a, "key"_a, "scale"_a, "softcap"_a, "causal"_a, "window"_a, "hidden_keys"_a,
             "sinks"_a, "lse"_a)
        .def("_append_qk", append_qk, "layer"_a, "query"_a, "query_dtype"_a, "key"_a, "key_dtype"_a, "hidden_keys"_a)
        .def("_queries", queries_of, "layer"_a)
        .def("_keys", keys_of, "layer"_a)
        .def("_lse", lse_of, "layer"_a, "progress"_a)
        .def("_push_dense_of", push_dense_of, "source"_a, "layer"_a, "dtype"_a)
        .def_property_readonly("kinds", kinds);
}

}  // namespace attncache::python
