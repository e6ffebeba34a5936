// What a part of a factored layer needs of a store: queries and keys in memory that is there already, and known sums.
#include <pybind11/stl.h>

#include <string>

#include "arrays.hpp"
#include "bind.hpp"
#include "indices.hpp"

namespace attncache::python {
namespace {

using Runs = std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>>;

/// Queries or keys over the memory of an array that nobody writes; its rows alone need to be contiguous.
Rows rows_over(const py::object& array, DType dtype) {
    const SourceArray source = source_of_array(array, dtype);
    auto* const ndarray = reinterpret_cast<PyArrayObject*>(array.ptr());
    if (PyArray_SIZE(ndarray) == 0)
        return {contiguous_view(source.data, dtype, source.shape), keep_alive(array), nullptr};
    const auto item = static_cast<std::int64_t>(item_bytes(dtype));
    const bool is_aligned = PyArray_ISALIGNED(ndarray) != 0;
    if (!is_aligned || (source.strides[3] != item && source.shape.seq_k > 1)) {
        throw py::value_error("memory can be shared of an aligned array whose last axis is contiguous");
    }
    const PatternView view{source.data, dtype, source.shape, source.strides[0], source.strides[1], source.strides[2]};
    return {view, keep_alive(array), nullptr};
}

/// Appends queries and keys that fit each other, with options of a layer that they are a part of.
void push_qk_over(const py::object& self, const py::object& query, const py::object& key, const std::string& dtype,
                  float scale, float softcap, bool causal, std::int64_t window, const Runs& hidden_keys,
                  const std::vector<float>& sinks) {
    FactoredView options;
    options.scoring = {scale, softcap, causal, window};
    for (const auto& of_batch : hidden_keys) {
        auto& ranges = options.hidden_keys.emplace_back();
        for (const auto& [begin, end] : of_batch) ranges.push_back({begin, end});
    }
    options.sinks = sinks;
    Rows queries = rows_over(query, dtype_named(dtype));
    Rows keys = rows_over(key, dtype_named(dtype));
    const Shape& rows = queries.view.shape;
    const Shape& others = keys.view.shape;
    const bool fits = rows.batch_size == others.batch_size && rows.seq_k == others.seq_k && others.n_heads > 0 &&
                      rows.n_heads > 0 && rows.n_heads % others.n_heads == 0 &&
                      (sinks.empty() || static_cast<std::int64_t>(sinks.size()) == rows.n_heads) &&
                      (hidden_keys.empty() || static_cast<std::int64_t>(hidden_keys.size()) == rows.batch_size);
    if (!fits) throw py::value_error("queries, keys and options must fit each other");
    auto layer = std::make_shared<const FactoredLayer>(std::move(queries), std::move(keys), std::move(options),
                                                       std::vector<float>{});
    store_of(self).layers.push_back(std::make_shared<StoredLayer>(std::move(layer)));
}

std::vector<float> floats_of(const py::object& array, std::int64_t n) {
    auto* const ndarray = reinterpret_cast<PyArrayObject*>(array.ptr());
    if (!PyArray_Check(array.ptr()) || PyArray_TYPE(ndarray) != NPY_FLOAT || !PyArray_ISCARRAY_RO(ndarray) ||
        PyArray_SIZE(ndarray) != n) {
        throw py::value_error("expected an aligned C-contiguous float32 array with one item for each row");
    }
    return {floats(array.ptr()), floats(array.ptr()) + n};
}

/// Makes normalisers those of a factored layer for good, in the place of what its scores and sinks would give.
void give_row_sums(const py::object& self, const py::object& layer, const py::object& greatest,
                   const py::object& sums) {
    const std::int64_t number = whole_number(layer.ptr(), "layer");
    Store& store = store_of(self);
    auto& stored = store.layers[static_cast<std::size_t>(
        position_of(number, layer.ptr(), {"layer", "n_layers", store.n_layers()}))];
    const auto factored = stored->factored();
    if (factored == nullptr) throw py::value_error("layer must be a factored one, got a dense one");
    const Shape shape = factored->view().shape();
    const std::int64_t n_rows = shape.batch_size * shape.n_heads * shape.seq_q;
    auto fresh =
        std::make_shared<StoredLayer>(factored->with_given({floats_of(greatest, n_rows), floats_of(sums, n_rows)}));
    stored.swap(fresh);  // what it takes the place of is let go last: that may run Python code
}

}  // namespace

void bind_part(py::class_<Store>& store) {
    using namespace py::literals;
    store
        .def("_push_qk_over", push_qk_over, "query"_a, "key"_a, "dtype"_a, "scale"_a, "softcap"_a, "causal"_a,
             "window"_a, "hidden_keys"_a, "sinks"_a)
        .def("_give_row_sums", give_row_sums, "layer"_a, "greatest"_a, "sums"_a);
}

}  // namespace attncache::python
