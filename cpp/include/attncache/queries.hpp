// Every query: signature and contract. On dense layers all are exact, on factored ones bounded
// (attncache/factored.hpp); on both they have the same bits on every SIMD level and for every thread count. They trust
// their arguments: each index is inside its axis, each output is large enough.
//
// A mean over heads is widened to float, added in the order in which the heads are listed (from +0), then divided by
// their number; the mean of no heads is NaN. A mean over all heads in order comes from the kept head mean of its layer
// if there is one, or if building it now pays; the bits are the same.
#pragma once

#include <span>

#include "attncache/head_mean.hpp"
#include "attncache/layer.hpp"

namespace attncache {

/// How a selection treats its heads: each on its own, or their mean in place of the head axis.
enum class Heads : std::uint8_t { each, mean };

/// What a selection picks: layers of one shape on one device (or all in CPU memory), and indices into their axes, in
/// any order, repeats allowed. Owns nothing.
struct Selection {
    std::span<const Layer* const> layers;
    std::span<const std::int64_t> batches;
    std::span<const std::int64_t> heads;
    Heads treat_heads = Heads::mean;
    IndexPolicy policy = IndexPolicy::off;
    std::span<const HeadMean* const> means = {};  // set by the queries themselves: of each (layer, batch), or empty

    const Shape& shape() const { return layers.front()->shape(); }
    const Device* device() const { return layers.empty() ? nullptr : layers.front()->device(); }
    /// The length of the head axis of a result.
    std::size_t n_head_results() const { return treat_heads == Heads::mean ? 1 : heads.size(); }
    /// How many (layer, batch, head) planes of [query, key] a result has.
    std::size_t n_planes() const { return layers.size() * batches.size() * n_head_results(); }
};

/// Where the floats of an answer go: memory of the CPU, or of the device of the layers, which is then written on
/// `stream` without waiting.
struct Out {
    float* data;
    bool is_on_device = false;
    void* stream = nullptr;

    Out(float* floats) : data(floats) {}
    Out(float* floats, void* on_stream) : data(floats), is_on_device(true), stream(on_stream) {}
};

/// What queries attend to. `positions` are queries; writes [layer, batch, head, position, key].
void rows(const Selection& selection, std::span<const std::int64_t> positions, const Out& out);

/// Who attends to keys. `positions` are keys; writes [layer, batch, head, position, query].
void columns(const Selection& selection, std::span<const std::int64_t> positions, const Out& out);

/// The weights of (query, key) pairs; writes [layer, batch, head, from, to].
void edges(const Selection& selection, std::span<const std::int64_t> from_positions,
           std::span<const std::int64_t> to_positions, const Out& out);

/// The k heaviest keys of queries (Direction::from) or queries of keys (Direction::to): heaviest first, equal
/// weights (-0 equals +0) to the lower position, NaN after every number. k is at most the length of the ranked axis.
/// Writes [layer, batch, head, position, k] twice: positions and the weights found there.
void top_k(const Selection& selection, std::span<const std::int64_t> positions, Direction direction, std::int64_t k,
           std::int64_t* top_positions, float* top_weights);

/// Rows or columns of the mean over all heads of one batch item, computed afresh; writes [position, item].
void mean_lines(const Layer& layer, std::int64_t batch, Direction direction, std::span<const std::int64_t> positions,
                const Out& out);

/// The mean over all heads of a whole batch item, computed afresh; writes [query, key].
void head_mean(const Layer& layer, std::int64_t batch, const Out& out);

/// The positions of the k <= n heaviest of n weights, heaviest first, ties and NaN as in `top_k`.
void heaviest(const float* weights, std::int64_t n, std::int64_t k, std::int64_t* positions);

}  // namespace attncache
