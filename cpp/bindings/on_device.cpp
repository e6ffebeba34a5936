// Hands resolved selections to Python, and NumPy arrays to be filled.
#include "on_device.hpp"

#include <algorithm>
#include <numeric>

#include "arrays.hpp"

namespace attncache::python {
namespace {

py::object array_of(std::span<const std::int64_t> values) {
    const npy_intp dims[] = {static_cast<npy_intp>(values.size())};
    auto array = py::reinterpret_steal<py::object>(new_array(dims, NPY_INT64));
    std::copy(values.begin(), values.end(), integers(array.ptr()));
    return array;
}

/// What attncache.cuda.queries.Picked holds.
py::tuple picked(const ResolvedSelection& resolved) {
    py::list layers;
    for (const auto& layer : resolved.layers) layers.append(layer->device_layer());
    const Selection& selection = resolved.selection;
    return py::make_tuple(resolved.home, layers, array_of(selection.batches), array_of(selection.heads),
                          selection.treat_heads == Heads::mean);
}

py::tuple tuple_of(std::span<const npy_intp> dims) {
    py::tuple result(dims.size());
    for (std::size_t i = 0; i < dims.size(); ++i) result[i] = py::int_(dims[i]);
    return result;
}

py::object query_named(const char* name) { return py::module_::import("attncache.cuda.queries").attr(name); }

}  // namespace

void refuse_device_result() { throw py::value_error("device_result must be False for layers in CPU memory, got True"); }

namespace {

/// The mean over all heads of one batch item, as a selection.
ResolvedSelection mean_of(const std::shared_ptr<StoredLayer>& layer, std::int64_t batch) {
    if (!layer->is_on_device()) refuse_device_result();
    ResolvedSelection resolved;
    resolved.shape = layer->shape();
    resolved.layers.push_back(layer);
    resolved.home = layer->device_layer();
    resolved.selection.batches.push_back(batch);
    resolved.selection.heads.resize(static_cast<std::size_t>(resolved.shape.n_heads));
    std::iota(resolved.selection.heads.begin(), resolved.selection.heads.end(), 0);
    return resolved;
}

}  // namespace

py::object floats_on_device(const char* query, const ResolvedSelection& resolved,
                            std::initializer_list<std::span<const std::int64_t>> positions, bool device_result,
                            PyObject* out) {
    const bool has_out = out != nullptr && out != Py_None;
    if (device_result && has_out) throw py::value_error("out must be None if device_result is True, got an array");
    const py::object result = device_result ? py::none() : result_array(out, resolved.dims);
    py::list indices;
    for (const auto& values : positions) indices.append(array_of(values));
    const py::object answer = query_named(query)(picked(resolved), py::tuple(indices), tuple_of(resolved.dims), result);
    return device_result ? answer : result;
}

py::tuple top_k_on_device(const ResolvedSelection& resolved, std::span<const std::int64_t> positions,
                          Direction direction, bool device_result) {
    py::object into = py::none();
    if (!device_result) {
        auto top_positions = py::reinterpret_steal<py::object>(new_array(resolved.dims, NPY_INT64));
        into = py::make_tuple(top_positions, py::reinterpret_steal<py::object>(new_array(resolved.dims, NPY_FLOAT)));
    }
    const char* const lines = direction == Direction::from ? "rows" : "columns";
    const py::object answer =
        query_named("top_k")(picked(resolved), lines, array_of(positions), tuple_of(resolved.dims), into);
    return device_result ? answer : into;
}

PyObject* mean_on_device(const char* query, const std::shared_ptr<StoredLayer>& stored, std::int64_t batch,
                         std::span<const std::int64_t> positions, std::span<const npy_intp> dims, PyObject* out,
                         bool device_result) {
    ResolvedSelection resolved = mean_of(stored, batch);
    resolved.dims.assign(dims.begin(), dims.end());
    py::object result = floats_on_device(query, resolved, {positions}, device_result, out);
    if (!device_result && result.ptr() != out) make_read_only(result.ptr());
    return result.release().ptr();
}

PyObject* heaviest_on_device(const std::shared_ptr<StoredLayer>& stored, std::int64_t batch, std::int64_t query,
                             std::int64_t k) {
    ResolvedSelection resolved = mean_of(stored, batch);
    resolved.dims.push_back(static_cast<npy_intp>(k));
    const py::tuple found = top_k_on_device(resolved, {&query, 1}, Direction::from, false);
    const py::object pairs =
        py::module_::import("builtins").attr("zip")(found[0].attr("tolist")(), found[1].attr("tolist")());
    return py::list(pairs).release().ptr();
}

}  // namespace attncache::python
