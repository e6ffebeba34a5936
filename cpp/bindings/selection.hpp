// The selectors of a query, resolved against the layers of a store.
#pragma once

#include "arguments.hpp"
#include "attncache/device.hpp"
#include "gil.hpp"
#include "store.hpp"

namespace attncache::python {

/// What a query reads and the leading dimensions of its result. Shares the layers, so that the GIL may be released.
struct ResolvedSelection {
    std::vector<std::shared_ptr<const Layer>> layers;
    std::vector<std::int64_t> batches;
    std::vector<std::int64_t> heads;
    Heads treat_heads = Heads::mean;
    IndexPolicy policy = IndexPolicy::off;
    Shape shape;                     // of every selected layer
    const Device* device = nullptr;  // of every selected layer
    std::vector<npy_intp> dims;      // layer, batch, head: those that are kept

    /// Adds the dimension of an axis, if it is kept.
    void add(const Indices& indices) {
        if (indices.keeps_axis) dims.push_back(static_cast<npy_intp>(indices.values.size()));
    }

    /// Calls query(selection), during which the core may release the GIL.
    template <class Query>
    void ask(const Query& query) const {
        std::vector<const Layer*> pointers;
        for (const auto& layer : layers) pointers.push_back(layer.get());
        const CoreWork work;
        query(Selection{pointers, batches, heads, treat_heads, policy});
    }
};

/// The rules and their errors are those of docs/queries.md, "Selectors".
ResolvedSelection resolve_selection(const Store& store, const py::object& layers, const py::object& heads,
                                    const py::object& batch);

}  // namespace attncache::python
