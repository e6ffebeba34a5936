// The queries: resolve, make the result, let the core release the GIL, call.
#include <algorithm>
#include <string>

#include "arrays.hpp"
#include "bind.hpp"
#include "device_out.hpp"
#include "selection.hpp"

namespace attncache::python {
namespace {

/// Then there is nothing to compute, however large the other axes are.
bool is_empty(const py::object& array) { return PyArray_SIZE(reinterpret_cast<PyArrayObject*>(array.ptr())) == 0; }

/// The result of a query that writes floats: `query(selection, out)` fills it.
template <class Query>
py::object floats_of(const ResolvedSelection& resolved, const py::object& out, const Query& query) {
    if (const auto on_device = device_out(out.ptr(), resolved.device, resolved.dims)) {
        resolved.ask([&](const Selection& selection) { query(selection, *on_device); });
        return out;
    }
    py::object result = result_array(out.ptr(), resolved.dims);
    if (is_empty(result)) return result;
    resolved.ask([&, to = floats(result.ptr())](const Selection& selection) { query(selection, Out(to)); });
    return result;
}

py::object rows_of(const py::object& store, const py::object& layers, const py::object& positions,
                   const py::object& heads, const py::object& batch, const py::object& out) {
    ResolvedSelection resolved = resolve_selection(store_of(store), layers, heads, batch);
    const Indices queries = resolve_selector(positions, {"positions", "seq_q", resolved.shape.seq_q});
    resolved.add(queries);
    resolved.dims.push_back(resolved.shape.seq_k);
    return floats_of(resolved, out,
                     [&](const Selection& selection, const Out& to) { rows(selection, queries.values, to); });
}

py::object columns_of(const py::object& store, const py::object& layers, const py::object& positions,
                      const py::object& heads, const py::object& batch, const py::object& out) {
    ResolvedSelection resolved = resolve_selection(store_of(store), layers, heads, batch);
    const Indices keys = resolve_selector(positions, {"positions", "seq_k", resolved.shape.seq_k});
    resolved.add(keys);
    resolved.dims.push_back(resolved.shape.seq_q);
    return floats_of(resolved, out,
                     [&](const Selection& selection, const Out& to) { columns(selection, keys.values, to); });
}

py::object edges_of(const py::object& store, const py::object& from_positions, const py::object& to_positions,
                    const py::object& layers, const py::object& heads, const py::object& batch, const py::object& out) {
    ResolvedSelection resolved = resolve_selection(store_of(store), layers, heads, batch);
    const Indices queries = resolve_selector(from_positions, {"from_positions", "seq_q", resolved.shape.seq_q});
    const Indices keys = resolve_selector(to_positions, {"to_positions", "seq_k", resolved.shape.seq_k});
    resolved.add(queries);
    resolved.add(keys);
    return floats_of(resolved, out, [&](const Selection& selection, const Out& to) {
        edges(selection, queries.values, keys.values, to);
    });
}

Direction direction_named(const std::string& direction) {
    if (direction == "from") return Direction::from;
    if (direction == "to") return Direction::to;
    throw py::value_error("direction must be \"from\" or \"to\", got \"" + direction + "\"");
}

py::tuple top_k_of(const py::object& store, const py::object& k, const py::object& layers, const py::object& positions,
                   const py::object& heads, const py::object& batch, const py::object& direction_name) {
    const std::int64_t asked = count(k.ptr(), "k");
    ResolvedSelection resolved = resolve_selection(store_of(store), layers, heads, batch);
    const Direction direction = direction_named(text(direction_name, "direction"));
    const Shape& shape = resolved.shape;
    const bool from = direction == Direction::from;
    const Axis axis{"positions", from ? "seq_q" : "seq_k", from ? shape.seq_q : shape.seq_k};
    const Indices chosen = resolve_selector(positions, axis);
    const std::int64_t n_top = std::min(asked, from ? shape.seq_k : shape.seq_q);
    resolved.add(chosen);
    resolved.dims.push_back(n_top);
    const auto top_positions = py::reinterpret_steal<py::object>(new_array(resolved.dims, NPY_INT64));
    const auto top_weights = py::reinterpret_steal<py::object>(new_array(resolved.dims, NPY_FLOAT));
    if (!is_empty(top_positions)) {
        resolved.ask(
            [&, to = integers(top_positions.ptr()), weights = floats(top_weights.ptr())](const Selection& selection) {
                top_k(selection, chosen.values, direction, n_top, to, weights);
            });
    }
    return py::make_tuple(top_positions, top_weights);
}

}  // namespace

void bind_queries(py::module_& module) {
    using namespace py::literals;
    module.def("rows", rows_of, "store"_a, "layers"_a, "positions"_a, "heads"_a, "batch"_a, "out"_a);
    module.def("columns", columns_of, "store"_a, "layers"_a, "positions"_a, "heads"_a, "batch"_a, "out"_a);
    module.def("edges", edges_of, "store"_a, "from_positions"_a, "to_positions"_a, "layers"_a, "heads"_a, "batch"_a,
               "out"_a);
    module.def("top_k", top_k_of, "store"_a, "k"_a, "layers"_a, "positions"_a, "heads"_a, "batch"_a, "direction"_a);
}

}  // namespace attncache::python
