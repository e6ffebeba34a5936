// Queries on one factored layer: its rows or columns are computed, as many at a time as fit into a slab, and the slab
// is asked what a dense layer would be asked. Arguments and results are those of attncache/queries.hpp.
#pragma once

#include "attncache/factored.hpp"
#include "attncache/queries.hpp"

namespace attncache {

/// What a query picks of a factored layer.
struct FactoredSelection {
    const FactoredLayer& layer;
    std::span<const std::int64_t> batches;
    std::span<const std::int64_t> heads;
    Heads treat_heads;
};

/// Writes [batch, head, position, key] (Direction::from: rows of queries) or [batch, head, position, query] (columns).
void factored_lines(const FactoredSelection& selection, Direction direction, std::span<const std::int64_t> positions,
                    float* out);

/// Writes [batch, head, from, to].
void factored_edges(const FactoredSelection& selection, std::span<const std::int64_t> from_positions,
                    std::span<const std::int64_t> to_positions, float* out);

/// Writes [batch, head, position, k] twice.
void factored_top_k(const FactoredSelection& selection, std::span<const std::int64_t> positions, Direction direction,
                    std::int64_t k, std::int64_t* top_positions, float* top_weights);

}  // namespace attncache
