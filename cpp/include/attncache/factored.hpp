// Layers that store queries and keys instead of a pattern, and compute exact weights on demand.
//
// The score of a query q and a key k is scale * (0 + q[0] k[0] + q[1] k[1] + ...), fused in the order of the items;
// then softcap * tanh(score / softcap) if there is a cap; then the mask hides keys. A weight is e^(score - m) / s,
// where m is the greatest visible score of the row and s the sum of e^(score - m): block sums over 256 keys (16 lanes,
// one tree, relative to the block's own greatest score) are rescaled to m and added in the order of the blocks. So a
// weight has the same bits on every SIMD level, for every thread count, and whichever query asks for it.
//
// Bounded, against exact arithmetic on the stored queries and keys, u = 2^-24, d = head_dim, n = seq_k:
//   |score error| <= D = (d + 2) u |scale| sum |q[i] k[i]|     (+ 7 u |score| with a cap)
//   |weight error| <= weight * (e^(2 D_max) - 1 + (m - score + n / 256 + 60) u) + 2^-126, D_max the greatest D of the
//   row.
// The terms: a chain of d fused products and the scale; numerator and sum moved by D_max each; the rounding of score -
// m; n / 256 blocks; 20 additions in a block, four exponentials of 2 u, the division, and for the sum, where light
// weights are many, the rounding of their distance to m, at most log n on average. A weight below 2^-126 is 0. A row
// that sees NaN is NaN everywhere, as in NumPy. A row without a visible key is all zeros, as in torch's SDPA and
// FlashAttention.
#pragma once

#include <atomic>
#include <vector>

#include "attncache/dense.hpp"
#include "attncache/masking.hpp"

namespace attncache {

/// How scores are made of products, and which of them a row sees.
struct Scoring {
    float scale = 1;
    float softcap = 0;        // 0: none
    bool causal = true;       // query i sees keys up to i + seq_k - seq_q: the last query is aligned with the last key
    std::int64_t window = 0;  // 0: none; causal: the last `window` keys of those, otherwise keys up to `window` away
    std::vector<std::vector<Range>> hidden_keys = {};  // by batch item, ascending; empty: none is hidden
    std::vector<float> sinks = {};                     // by head: a score that takes part in each sum; empty: none
};

/// What a factored layer computes from: everything but memory.
struct FactoredView {
    PatternView query;  // [batch, head, query, item]
    PatternView key;    // [batch, key head, key, item]; head h reads key head h / (heads / key heads)
    Scoring scoring;

    /// The shape of the pattern.
    Shape shape() const { return {query.shape.batch_size, query.shape.n_heads, query.shape.seq_q, key.shape.seq_q}; }
    std::int64_t head_dim() const { return query.shape.seq_k; }
    std::int64_t key_head_of(std::int64_t head) const { return head / (query.shape.n_heads / key.shape.n_heads); }

    /// The keys that a query may see, hidden ones among them.
    Range visible_keys(std::int64_t query_position) const;
    /// Whether the key mask hides a key.
    bool hides(std::int64_t batch, std::int64_t key_position) const;
    /// The queries that may see a key; none if it is hidden.
    Range visible_queries(std::int64_t batch, std::int64_t key_position) const;
};

/// The m and s of every row, [batch, head, query]; of a row without visible keys 0 and infinity.
struct RowSums {
    std::vector<float> greatest;
    std::vector<float> sums;
    bool has_nan = false;  // in the sums
};

class GrowingRows;

/// Queries or keys and what keeps their memory alive.
struct Projection {
    PatternView view;  // [batch, head, position, item]
    std::shared_ptr<const void> memory;
    std::shared_ptr<GrowingRows> growing;  // if that memory has room for more positions
};

/// A layer of queries and keys. Never changes once made but for `row_sums`, which appear.
class FactoredLayer final : public Layer {
public:
    /// `lse`, [batch, head, query] or empty, are the normalisers of all rows: the log of the sum of e^score, sinks
    /// included.
    FactoredLayer(Projection query, Projection key, Scoring scoring, std::vector<float> lse);
    ~FactoredLayer() override;

    std::int64_t n_bytes() const override;
    Costs costs() const override;
    void read_lines(const LineRequest& request, const LinesOut& out) const override;

    const FactoredView& view() const { return view_; }
    bool has_given_lse() const { return has_given_lse_; }

    /// The normalisers if they are known, otherwise nullptr.
    const RowSums* known_row_sums() const { return row_sums_.load(std::memory_order_acquire); }
    /// The normalisers: given, or computed in one blocked, parallel pass on the first call and kept. A thread that asks
    /// while another computes them waits for it, unless it computes sums itself or the other stands still. Throws
    /// std::bad_alloc, and what a Watcher throws.
    const RowSums& row_sums() const;
    /// Takes over normalisers that a layer of the same queries, keys and options computed, unless there are some.
    void adopt_row_sums(RowSums rows) const;
    /// Whether to compute them all before `n_rows` are computed once more on their own: as soon as those computed so
    /// far come to as many as the layer has (never more than twice the work of the better choice in hindsight).
    bool row_sums_pay(std::int64_t n_rows) const;

    /// A layer with more positions at the end: `query` [batch, head, n, item], `key` [batch, key head, n, item] and the
    /// hidden ones among those keys by batch item. Takes amortised O(n): the memory of both is shared where it has
    /// room.
    std::shared_ptr<const FactoredLayer> with_more(const SourceArray& query, const SourceArray& key,
                                                   const std::vector<std::vector<Range>>& hidden_keys) const;
    /// The same queries and keys with normalisers that are given as `lse` is, but to the last bit. They count the
    /// sinks, which the layer has no longer.
    std::shared_ptr<const FactoredLayer> with_given(RowSums rows) const;

private:
    FactoredView view_;
    Projection query_;
    Projection key_;
    bool has_given_lse_;
    mutable std::atomic<const RowSums*> row_sums_{nullptr};
    mutable std::atomic<std::int64_t> summing_process_{0};  // in which a thread computes them, or 0
    mutable std::atomic<std::int64_t> rows_passed_{0};      // by all passes so far
    mutable std::atomic<std::int64_t> rows_summed_{0};

    RowSums compute_row_sums() const;
};

/// The logarithms of the sums of e^score of all rows, [batch, head, query]; -infinity of a row without visible keys.
std::vector<float> log_sums(const FactoredLayer& layer);

}  // namespace attncache
