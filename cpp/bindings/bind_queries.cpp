// The selections: resolve, make the result, release the GIL, call.
#include <algorithm>
#include <string>

#include "arrays.hpp"
#include "bind.hpp"
#include "on_device.hpp"

namespace attncache::python {
namespace {

py::object steal(PyObject* array) { return py::reinterpret_steal<py::object>(array); }

/// Then there is nothing to compute, however large the other axes are.
bool is_empty(const py::object& array) { return PyArray_SIZE(reinterpret_cast<PyArrayObject*>(array.ptr())) == 0; }

void append(std::vector<npy_intp>& dims, const Indices& indices) {
    if (indices.keeps_axis) dims.push_back(static_cast<npy_intp>(indices.values.size()));
}

py::object rows_of(const py::object& store, const py::object& layers, const py::object& positions,
                   const py::object& heads, const py::object& batch, const py::object& out,
                   const py::object& device_result) {
    const bool on_device = flag(device_result.ptr(), "device_result");
    ResolvedSelection resolved = resolve_selection(store_of(store), layers, heads, batch);
    const Indices queries = resolve_selector(positions, {"positions", "seq_q", resolved.shape.seq_q});
    append(resolved.dims, queries);
    resolved.dims.push_back(resolved.shape.seq_k);
    check_device_result(on_device, resolved);
    if (resolved.home) return floats_on_device("rows", resolved, {queries.values}, on_device, out.ptr());
    py::object result = result_array(out.ptr(), resolved.dims);
    if (is_empty(result)) return result;
    const auto n_queries = static_cast<std::int64_t>(queries.values.size());
    resolved.use_indexes(store_of(store), [&](const IndexCosts& costs) { return n_queries * costs.row; });
    const ReleaseGilForLargeWork release(resolved.bytes_of(n_queries * resolved.shape.seq_k));
    rows(resolved.selection, queries.values, floats(result.ptr()));
    return result;
}

py::object columns_of(const py::object& store, const py::object& layers, const py::object& positions,
                      const py::object& heads, const py::object& batch, const py::object& out,
                      const py::object& device_result) {
    const bool on_device = flag(device_result.ptr(), "device_result");
    ResolvedSelection resolved = resolve_selection(store_of(store), layers, heads, batch);
    const Indices keys = resolve_selector(positions, {"positions", "seq_k", resolved.shape.seq_k});
    append(resolved.dims, keys);
    resolved.dims.push_back(resolved.shape.seq_q);
    check_device_result(on_device, resolved);
    if (resolved.home) return floats_on_device("columns", resolved, {keys.values}, on_device, out.ptr());
    py::object result = result_array(out.ptr(), resolved.dims);
    if (is_empty(result)) return result;
    const auto n_keys = static_cast<std::int64_t>(keys.values.size());
    resolved.use_indexes(store_of(store),
                         [&](const IndexCosts& costs) { return std::min(n_keys * costs.column, costs.layer); });
    const ReleaseGilForLargeWork release(resolved.bytes_of(n_keys * resolved.shape.seq_q));
    columns(resolved.selection, keys.values, floats(result.ptr()));
    return result;
}

py::object edges_of(const py::object& store, const py::object& from_positions, const py::object& to_positions,
                    const py::object& layers, const py::object& heads, const py::object& batch, const py::object& out,
                    const py::object& device_result) {
    const bool on_device = flag(device_result.ptr(), "device_result");
    ResolvedSelection resolved = resolve_selection(store_of(store), layers, heads, batch);
    const Indices queries = resolve_selector(from_positions, {"from_positions", "seq_q", resolved.shape.seq_q});
    const Indices keys = resolve_selector(to_positions, {"to_positions", "seq_k", resolved.shape.seq_k});
    append(resolved.dims, queries);
    append(resolved.dims, keys);
    check_device_result(on_device, resolved);
    if (resolved.home) return floats_on_device("edges", resolved, {queries.values, keys.values}, on_device, out.ptr());
    py::object result = result_array(out.ptr(), resolved.dims);
    if (is_empty(result)) return result;
    const auto n_edges = static_cast<std::int64_t>(queries.values.size() * keys.values.size());
    resolved.use_indexes(store_of(store),
                         [&](const IndexCosts& costs) { return std::min(n_edges * costs.edge, costs.layer); });
    const ReleaseGilForLargeWork release(resolved.bytes_of(n_edges));
    edges(resolved.selection, queries.values, keys.values, floats(result.ptr()));
    return result;
}

Direction direction_named(const std::string& direction) {
    if (direction == "from") return Direction::from;
    if (direction == "to") return Direction::to;
    throw py::value_error("direction must be \"from\" or \"to\", got \"" + direction + "\"");
}

py::tuple top_k_of(const py::object& store, const py::object& k, const py::object& layers, const py::object& positions,
                   const py::object& heads, const py::object& batch, const py::object& direction_name,
                   const py::object& device_result) {
    const bool on_device = flag(device_result.ptr(), "device_result");
    const std::int64_t asked = count(k.ptr(), "k");
    ResolvedSelection resolved = resolve_selection(store_of(store), layers, heads, batch);
    const Direction direction = direction_named(text(direction_name, "direction"));
    const Shape& shape = resolved.shape;
    const bool from = direction == Direction::from;
    const Axis axis{"positions", from ? "seq_q" : "seq_k", from ? shape.seq_q : shape.seq_k};
    const Indices chosen = resolve_selector(positions, axis);
    const std::int64_t length = from ? shape.seq_k : shape.seq_q;
    const std::int64_t n_top = std::min(asked, length);
    append(resolved.dims, chosen);
    resolved.dims.push_back(n_top);
    check_device_result(on_device, resolved);
    if (resolved.home) return top_k_on_device(resolved, chosen.values, direction, on_device);
    py::object top_positions = steal(new_array(resolved.dims, NPY_INT64));
    py::object top_weights = steal(new_array(resolved.dims, NPY_FLOAT));
    if (!is_empty(top_positions)) {
        const auto n_lines = static_cast<std::int64_t>(chosen.values.size());
        resolved.use_indexes(store_of(store), [&](const IndexCosts& costs) {
            return from ? n_lines * costs.row : std::min(n_lines * costs.column, costs.layer);
        });
        const ReleaseGilForLargeWork release(resolved.bytes_of(n_lines * length));
        top_k(resolved.selection, chosen.values, direction, n_top, integers(top_positions.ptr()),
              floats(top_weights.ptr()));
    }
    return py::make_tuple(top_positions, top_weights);
}

}  // namespace

void bind_queries(py::module_& module) {
    using namespace py::literals;
    module.def("rows", rows_of, "store"_a, "layers"_a, "positions"_a, "heads"_a, "batch"_a, "out"_a, "device_result"_a);
    module.def("columns", columns_of, "store"_a, "layers"_a, "positions"_a, "heads"_a, "batch"_a, "out"_a,
               "device_result"_a);
    module.def("edges", edges_of, "store"_a, "from_positions"_a, "to_positions"_a, "layers"_a, "heads"_a, "batch"_a,
               "out"_a, "device_result"_a);
    module.def("top_k", top_k_of, "store"_a, "k"_a, "layers"_a, "positions"_a, "heads"_a, "batch"_a, "direction"_a,
               "device_result"_a);
}

}  // namespace attncache::python
