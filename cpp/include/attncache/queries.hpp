// Every query: signature and contract. On dense layers all are exact, on factored ones bounded
// (attncache/factored.hpp); on both they have the same bits on every SIMD level and for every thread count. They trust
// their arguments: each index is inside its axis, each output is large enough.
//
// A mean over heads is widened to float, added in the order in which the heads are listed (from +0), then divided by
// their number; the mean of no heads is NaN.
#pragma once

#include <span>
#include <vector>

#include "attncache/factored.hpp"
#include "attncache/pattern_view.hpp"

namespace attncache {

/// How a selection treats its heads: each on its own, or their mean in place of the head axis.
enum class Heads : std::uint8_t { each, mean };

/// The mean over all heads of one batch item, if an index has it: float [query, key] and [key, query].
struct HeadMeans {
    const float* by_query = nullptr;
    const float* by_key = nullptr;
};

/// What a selection picks: layers of one shape, and indices into their axes, in any order, repeats allowed.
struct Selection {
    std::vector<PatternView> layers;
    std::vector<std::int64_t> batches;
    std::vector<std::int64_t> heads;
    Heads treat_heads = Heads::mean;
    std::vector<HeadMeans> means;                // for a mean over all heads in order: of each (layer, batch), or empty
    std::vector<const FactoredLayer*> factored;  // in the place of a view that has a shape alone: of each layer,
                                                 // nullptr for a dense one; or empty if all are dense

    /// The length of the head axis of a result.
    std::size_t n_head_results() const { return treat_heads == Heads::mean ? 1 : heads.size(); }
    /// How many (layer, batch, head) planes of [query, key] a result has.
    std::size_t n_planes() const { return layers.size() * batches.size() * n_head_results(); }
};

/// Whose weights `top_k` ranks: the keys of a query, or the queries of a key.
enum class Direction : std::uint8_t { from, to };

/// What one query attends to, mean over all heads of a batch item; writes seq_k floats.
void mean_row(const PatternView& pattern, std::int64_t batch, std::int64_t query, float* out);

/// Who attends to one key, mean over all heads of a batch item; writes seq_q floats.
void mean_column(const PatternView& pattern, std::int64_t batch, std::int64_t key, float* out);

/// The mean over all heads of a batch item; writes [query, key].
void head_mean(const PatternView& pattern, std::int64_t batch, float* out);

/// The same of a factored layer. A column needs the sums of all rows, which its layer keeps.
void mean_row(const FactoredLayer& layer, std::int64_t batch, std::int64_t query, float* out);
void mean_column(const FactoredLayer& layer, std::int64_t batch, std::int64_t key, float* out);
void head_mean(const FactoredLayer& layer, std::int64_t batch, float* out);

/// The positions of the k <= n heaviest of n weights, heaviest first, ties and NaN as in `top_k`.
void heaviest(const float* weights, std::int64_t n, std::int64_t k, std::int64_t* positions);

/// What queries attend to. `positions` are queries; writes [layer, batch, head, position, key].
void rows(const Selection& selection, std::span<const std::int64_t> positions, float* out);

/// Who attends to keys. `positions` are keys; writes [layer, batch, head, position, query].
void columns(const Selection& selection, std::span<const std::int64_t> positions, float* out);

/// The weights of (query, key) pairs; writes [layer, batch, head, from, to].
void edges(const Selection& selection, std::span<const std::int64_t> from_positions,
           std::span<const std::int64_t> to_positions, float* out);

/// The k heaviest keys of queries (Direction::from) or queries of keys (Direction::to): heaviest first, equal
/// weights (-0 equals +0) to the lower position, NaN after every number. k is at most the length of the ranked axis.
/// Writes [layer, batch, head, position, k] twice: positions and the weights found there.
void top_k(const Selection& selection, std::span<const std::int64_t> positions, Direction direction, std::int64_t k,
           std::int64_t* top_positions, float* top_weights);

}  // namespace attncache
