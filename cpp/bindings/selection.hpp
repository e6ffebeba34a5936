// The selectors of a query, resolved against the layers of a store.
#pragma once

#include "attncache/queries.hpp"
#include "indices.hpp"
#include "store.hpp"

namespace attncache::python {

/// What a query reads and the leading dimensions of its result. Shares the layers, so that the GIL may be released.
struct ResolvedSelection {
    Selection selection;
    Shape shape;                 // of every selected layer
    std::vector<npy_intp> dims;  // layer, batch, head: those that are kept
    std::vector<std::shared_ptr<const Layer>> keep_alive;

    /// About how much a query over `n` lines of a plane reads, in bytes.
    std::int64_t bytes_of(std::int64_t n_items_per_plane) const;
};

/// The rules and their errors are those of docs/queries.md, "Selectors".
ResolvedSelection resolve_selection(const Store& store, const py::object& layers, const py::object& heads,
                                    const py::object& batch);

}  // namespace attncache::python
