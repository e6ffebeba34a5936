// _core.Layer: how layers are made, what they hold, what was computed from them. The Python face has checked arguments.
#include <string>
#include <tuple>

#include "arguments.hpp"
#include "attncache/row_sample.hpp"
#include "bind.hpp"
#include "layer_arguments.hpp"

namespace attncache::python {
namespace {

/// An array, the dtype of its items, the dtype to store them in, and whether its memory is shared.
using Source = std::tuple<py::object, std::string, std::string, bool>;

py::object steal(PyObject* object) { return py::reinterpret_steal<py::object>(object); }

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
Held factored_layer(Projection query, Projection key, Scoring scoring, std::vector<float> lse) {
    const Shape& queries = query.view.shape;
    const Shape& keys = key.view.shape;
    check(queries.batch_size == keys.batch_size, "query and key must have one batch size");
    check(queries.seq_k == keys.seq_k && keys.seq_k > 0, "query and key must have the same number of items");
    check(keys.n_heads > 0 && queries.n_heads > 0 && queries.n_heads % keys.n_heads == 0,
          "the heads of query must be a multiple of those of key");
    check_hidden(scoring.hidden_keys, keys);
    check(scoring.sinks.empty() || static_cast<std::int64_t>(scoring.sinks.size()) == queries.n_heads,
          "sinks must be one for each head");
    const std::int64_t n_rows = queries.batch_size * queries.n_heads * queries.seq_q;
    check(lse.empty() || static_cast<std::int64_t>(lse.size()) == n_rows, "lse must be one for each row");
    return std::make_shared<FactoredLayer>(std::move(query), std::move(key), std::move(scoring), std::move(lse));
}

Held dense(const py::object& array, const std::string& dtype, const std::string& stored, bool shares_memory,
           bool with_head_means) {
    return std::const_pointer_cast<DenseLayer>(
        layer_from_array(array, dtype_named(dtype), dtype_named(stored), shares_memory, with_head_means));
}

Held factored(const Source& query, const Source& key, const ScoringTuple& scoring, const py::object& lse) {
    const auto read = [](const Source& source) {
        const auto& [array, dtype, stored, shares_memory] = source;
        return projection_from_array(array, dtype_named(dtype), dtype_named(stored), shares_memory);
    };
    Projection queries = read(query);
    Projection keys = read(key);
    std::vector<float> row_lse = lse_from(lse, queries.view.shape);
    return factored_layer(std::move(queries), std::move(keys), scoring_of(scoring), std::move(row_lse));
}

Held factored_over(const py::object& query, const py::object& key, const std::string& dtype,
                   const ScoringTuple& scoring) {
    return factored_layer(projection_over(query, dtype_named(dtype)), projection_over(key, dtype_named(dtype)),
                          scoring_of(scoring), {});
}

const FactoredLayer& as_factored(const Held& layer) {
    check_in_cpu_memory(*layer);
    if (const auto* const factored = dynamic_cast<const FactoredLayer*>(layer.get())) return *factored;
    throw py::value_error("layer must be a factored one");
}

const DenseLayer& as_dense(const Held& layer) {
    check_in_cpu_memory(*layer);
    if (const auto* const dense = dynamic_cast<const DenseLayer*>(layer.get())) return *dense;
    throw py::value_error("layer must be a dense one");
}

void check_size(const char* what, std::int64_t got, std::int64_t wanted) {
    if (got == wanted) return;
    throw py::value_error(std::string(what) + " must be " + std::to_string(wanted) + " as in the layer, got " +
                          std::to_string(got));
}

/// Whether more positions fit behind those of a layer.
void check_more(const FactoredLayer& layer, const SourceArray& query, const SourceArray& key) {
    const FactoredView& view = layer.view();
    if (layer.has_given_lse()) {
        throw py::value_error("layer must be one that was pushed without lse: its sums would change");
    }
    check_size("the batch size of query and key", query.shape.batch_size, view.query.shape.batch_size);
    check_size("the heads of query", query.shape.n_heads, view.query.shape.n_heads);
    check_size("the heads of key", key.shape.n_heads, view.key.shape.n_heads);
    check_size("the items of query and key", query.shape.seq_k, view.head_dim());
    if (query.shape.seq_q == key.shape.seq_q) return;
    throw py::value_error("query and key must have as many positions as each other, got " +
                          std::to_string(query.shape.seq_q) + " and " + std::to_string(key.shape.seq_q));
}

Held with_more(const Held& layer, const py::object& query, const std::string& query_dtype, const py::object& key,
               const std::string& key_dtype, const Runs& hidden_keys) {
    const FactoredLayer& before = as_factored(layer);
    const SourceArray queries = source_of_array(query, dtype_named(query_dtype));
    const SourceArray keys = source_of_array(key, dtype_named(key_dtype));
    const auto hidden = ranges_of(hidden_keys);
    check_more(before, queries, keys);
    check_hidden(hidden, keys.shape);
    const CoreWork work;
    return std::const_pointer_cast<FactoredLayer>(before.with_more(queries, keys, hidden));
}

Held to_dense(const Held& layer, const std::string& dtype) {
    const DType stored = dtype_named(dtype);
    const CoreWork work;
    return std::const_pointer_cast<DenseLayer>(dense_layer(*layer, stored));
}

/// The pattern of a dense layer, or the queries and keys of a factored one, as the bytes they are.
py::tuple memory_of(const Held& layer) {
    if (const auto* const dense = dynamic_cast<const DenseLayer*>(layer.get())) {
        const auto owner = py::reinterpret_borrow<py::object>(owner_of(*dense));
        return py::make_tuple(steal(view_of_bytes(dense->pattern(), owner)));
    }
    const FactoredView& view = as_factored(layer).view();
    const py::object owner = capsule_of(layer);
    return py::make_tuple(steal(view_of_bytes(view.query, owner)), steal(view_of_bytes(view.key, owner)));
}

py::tuple projections_of(const Held& layer) {
    const FactoredView& view = as_factored(layer).view();
    const py::object owner = capsule_of(layer);
    return py::make_tuple(steal(view_of_rows(view.query, owner)), steal(view_of_rows(view.key, owner)));
}

ScoringTuple scoring_tuple(const Held& layer) {
    const Scoring& scoring = as_factored(layer).view().scoring;
    Runs hidden;
    for (const auto& ranges : scoring.hidden_keys) {
        auto& runs = hidden.emplace_back();
        for (const Range& range : ranges) runs.emplace_back(range.begin, range.end);
    }
    return {scoring.scale, scoring.softcap, scoring.causal, scoring.window, std::move(hidden), scoring.sinks};
}

py::object new_floats(const std::vector<float>& values, const Shape& shape) {
    const npy_intp dims[] = {shape.batch_size, shape.n_heads, shape.seq_q};
    py::object array = steal(new_array(dims, NPY_FLOAT));
    std::copy(values.begin(), values.end(), floats(array.ptr()));
    return array;
}

py::object lse_of(const Held& layer, const py::object& progress) {
    const FactoredLayer& factored = as_factored(layer);
    std::vector<float> sums;
    {
        const CoreWork work(progress);
        sums = log_sums(factored);
    }
    py::object result = new_floats(sums, factored.shape());
    make_read_only(result.ptr());
    return result;
}

/// The greatest score and the sum of every row if they are known, otherwise None.
py::object row_sums_of(const Held& layer) {
    const FactoredLayer& factored = as_factored(layer);
    const RowSums* const rows = factored.known_row_sums();
    if (rows == nullptr) return py::none();
    return py::make_tuple(new_floats(rows->greatest, factored.shape()), new_floats(rows->sums, factored.shape()));
}

RowSums row_sums_from(const Shape& shape, const py::object& greatest, const py::object& sums) {
    const npy_intp dims[] = {shape.batch_size, shape.n_heads, shape.seq_q};
    const std::int64_t n = shape.batch_size * shape.n_heads * shape.seq_q;
    const float* const first_greatest = floats_in(greatest, "greatest", dims);
    const float* const first_sum = floats_in(sums, "sums", dims);
    return {{first_greatest, first_greatest + n}, {first_sum, first_sum + n}};
}

/// Takes over normalisers that a layer of the same queries, keys and options computed.
void adopt_row_sums(const Held& layer, const py::object& greatest, const py::object& sums) {
    as_factored(layer).adopt_row_sums(row_sums_from(layer->shape(), greatest, sums));
}

/// The layer with those normalisers for good, in the place of what its scores and sinks would give.
Held with_row_sums(const Held& layer, const py::object& greatest, const py::object& sums) {
    const FactoredLayer& factored = as_factored(layer);
    return std::const_pointer_cast<FactoredLayer>(factored.with_given(row_sums_from(layer->shape(), greatest, sums)));
}

std::int64_t batch_of(const Held& layer, const py::object& batch) {
    const std::int64_t item = whole_number(batch.ptr(), "batch");
    return position_of(item, batch.ptr(), {"batch", "batch_size", layer->shape().batch_size});
}

/// The head mean of a batch item by query and by key, built if it is not kept; None if the layer must not keep it.
py::object head_mean_of(const Held& layer, const py::object& batch) {
    const std::int64_t item = batch_of(layer, batch);
    std::shared_ptr<const HeadMean> mean;
    {
        const CoreWork work;
        mean = head_mean_for(*layer, item, IndexPolicy::eager, Costs::kNever);
    }
    if (mean == nullptr) return py::none();
    const npy_intp by_query[] = {layer->shape().seq_q, layer->shape().seq_k};
    const npy_intp by_key[] = {layer->shape().seq_k, layer->shape().seq_q};
    const py::handle owner = owner_of(*mean);
    return py::make_tuple(steal(view_of_floats(mean->by_query, by_query, owner)),
                          steal(view_of_floats(mean->by_key, by_key, owner)));
}

/// Lays the head mean of one batch item over [query, key] and [key, query] arrays, whose memory it shares.
void set_head_mean(const Held& layer, const py::object& batch, const py::object& by_query, const py::object& by_key) {
    const std::int64_t item = batch_of(layer, batch);
    const Shape& shape = as_dense(layer).shape();
    const npy_intp by_query_dims[] = {shape.seq_q, shape.seq_k};
    const npy_intp by_key_dims[] = {shape.seq_k, shape.seq_q};
    const auto mean = std::make_shared<HeadMean>();
    mean->by_query = floats_in(by_query, "by_query", by_query_dims);
    mean->by_key = floats_in(by_key, "by_key", by_key_dims);
    mean->n_bytes = 2 * shape.seq_q * shape.seq_k * static_cast<std::int64_t>(sizeof(float));
    mean->memory = keep_alive(py::make_tuple(by_query, by_key));
    layer->slot(Derivation::head_mean, item).put(mean);
}

/// What a few rows of an array look like: how many are judged, their least weight, and the least and greatest sum.
py::tuple row_sample(const py::object& array, const std::string& dtype) {
    const RowSample sample = sample_rows(source_of_array(array, dtype_named(dtype)));
    return py::make_tuple(sample.n_rows, sample.least_weight, sample.least_sum, sample.greatest_sum);
}

/// The layer itself if it lies in CPU memory, otherwise a copy there.
Held cpu(const Held& layer) {
    if (layer->device() == nullptr) return layer;
    const CoreWork work;
    return std::const_pointer_cast<Layer>(layer->device()->cpu(*layer));
}

py::tuple shape_of(const Held& layer) {
    const Shape& shape = layer->shape();
    return py::make_tuple(shape.batch_size, shape.n_heads, shape.seq_q, shape.seq_k);
}

}  // namespace

void bind_layer(py::module_& module) {
    using namespace py::literals;
    py::class_<Layer, Held> layer(module, "Layer", py::is_final());
    layer.def_static("dense", dense, "array"_a, "dtype"_a, "stored"_a, "shares_memory"_a, "with_head_means"_a = false)
        .def_static("factored", factored, "query"_a, "key"_a, "scoring"_a, "lse"_a)
        .def_static("factored_over", factored_over, "query"_a, "key"_a, "dtype"_a, "scoring"_a)
        .def_property_readonly("kind", [](const Held& self) { return py::str(name(self->kind())); })
        .def_property_readonly("shape", shape_of)
        .def_property_readonly("dtype", [](const Held& self) { return py::str(name(self->dtype())); })
        .def_property_readonly(
            "device",
            [](const Held& self) { return py::str(self->device() == nullptr ? "cpu" : self->device()->name()); })
        .def_property_readonly("nbytes", [](const Held& self) { return self->n_bytes() + self->derived_bytes(); })
        .def_property_readonly("memory", memory_of)
        .def_property_readonly("scoring", scoring_tuple)
        .def_property_readonly("projections", projections_of)
        .def_property_readonly("has_given_lse", [](const Held& self) { return as_factored(self).has_given_lse(); })
        .def_property_readonly("row_sums", row_sums_of)
        .def("cpu", cpu)
        .def("pattern", [](const Held& self) { return steal(view_of(*self)); })
        .def("to_dense", to_dense, "dtype"_a)
        .def("with_more", with_more, "query"_a, "query_dtype"_a, "key"_a, "key_dtype"_a, "hidden_keys"_a)
        .def("with_row_sums", with_row_sums, "greatest"_a, "sums"_a)
        .def("adopt_row_sums", adopt_row_sums, "greatest"_a, "sums"_a)
        .def("lse", lse_of, "progress"_a)
        .def("head_mean", head_mean_of, "batch"_a)
        .def("set_head_mean", set_head_mean, "batch"_a, "by_query"_a, "by_key"_a);
    module.def("row_sample", row_sample, "array"_a, "dtype"_a);
    // Whether the base of an array is a capsule of this library.
    module.def(
        "is_own_memory", [](const py::object& base) { return PyCapsule_IsValid(base.ptr(), kCapsuleName) != 0; },
        "base"_a);
}

}  // namespace attncache::python
