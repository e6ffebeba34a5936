// The selectors of a query, resolved against the layers of a store.
#pragma once

#include "attncache/queries.hpp"
#include "indices.hpp"
#include "store.hpp"

namespace attncache::python {

/// What a query reads and the leading dimensions of its result. Shares the layers, so that the GIL may be released.
struct ResolvedSelection {
    Selection selection;
    Shape shape;                                          // of every selected layer
    std::vector<npy_intp> dims;                           // layer, batch, head: those that are kept
    std::vector<std::shared_ptr<StoredLayer>> layers;     // whose memory `selection` points at
    std::vector<std::shared_ptr<const void>> keep_alive;  // the indexes that it points at
    bool has_factored = false;
    py::object home;  // of layers on a device: one of them, in the place of what `selection` points at; otherwise null

    /// Lets a mean over all heads use the indexes of its layers. `cost(costs)` is what this query costs a layer and
    /// batch item without one, in bytes.
    template <class Cost>
    void use_indexes(const Store& store, const Cost& cost) {
        if (!is_mean_of_all_heads() || selection.batches.empty()) return;
        for (const auto& layer : layers) {
            const std::int64_t query_bytes = cost(index_costs(layer->pattern()));
            for (const std::int64_t batch : selection.batches) use_index(store, layer, batch, query_bytes);
        }
    }

    /// About how much a query over that many items of each plane reads, in bytes.
    std::int64_t bytes_of(std::int64_t n_items_per_plane) const;

private:
    bool is_mean_of_all_heads() const;
    void use_index(const Store& store, const std::shared_ptr<StoredLayer>& layer, std::int64_t batch,
                   std::int64_t query_bytes);
};

/// The rules and their errors are those of docs/queries.md, "Selectors".
ResolvedSelection resolve_selection(const Store& store, const py::object& layers, const py::object& heads,
                                    const py::object& batch);

}  // namespace attncache::python
