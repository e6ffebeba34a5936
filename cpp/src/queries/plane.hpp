// One (layer, batch, head) plane of a selection, read as rows or columns of floats. A plane is a [query, key] matrix
// that the result shows: one head as it is, or the mean of several.
#pragma once

#include <algorithm>
#include <vector>

#include "../active_kernels.hpp"
#include "attncache/queries.hpp"

namespace attncache {

class Plane {
public:
    /// The plane of that index in result order: layers outermost, heads innermost.
    Plane(const Selection& selection, std::int64_t index, const KernelTable& kernels)
        : pattern_(selection.layers[layer_of(selection, index)]),
          kernels_(kernels.of(pattern_.dtype)),
          item_bytes_(static_cast<std::int64_t>(item_bytes(pattern_.dtype))),
          mean_(selection.treat_heads == Heads::mean) {
        const auto n_head_results = static_cast<std::int64_t>(selection.n_head_results());
        const auto n_batches = static_cast<std::int64_t>(selection.batches.size());
        const std::int64_t batch = selection.batches[static_cast<std::size_t>(index / n_head_results % n_batches)];
        if (mean_) {
            for (const std::int64_t head : selection.heads) heads_.push_back(pattern_.row(batch, head, 0));
        } else {
            const auto head = static_cast<std::size_t>(index % n_head_results);
            heads_.push_back(pattern_.row(batch, selection.heads[head], 0));
        }
        firsts_.resize(heads_.size());
    }

    /// The mean of all heads of one batch item.
    Plane(const PatternView& pattern, std::int64_t batch, const KernelTable& kernels)
        : pattern_(pattern),
          kernels_(kernels.of(pattern.dtype)),
          item_bytes_(static_cast<std::int64_t>(item_bytes(pattern.dtype))),
          mean_(true) {
        for (std::int64_t head = 0; head < pattern.shape.n_heads; ++head) heads_.push_back(pattern.row(batch, head, 0));
        firsts_.resize(heads_.size());
    }

    /// out[i] = weight of key `begin + i` for one query.
    void read_row(std::int64_t query, std::int64_t begin, std::int64_t n, float* out) {
        point_at(query, begin);
        const auto length = static_cast<std::size_t>(n);
        if (mean_) kernels_.mean(firsts_.data(), firsts_.size(), length, out);
        else kernels_.widen(firsts_.front(), length, out);
    }

    /// out[i] = weight of one key for query `begin + i`.
    void read_column(std::int64_t key, std::int64_t begin, std::int64_t n, float* out) {
        point_at(begin, key);
        const auto length = static_cast<std::size_t>(n);
        if (mean_) kernels_.mean_column(firsts_.data(), firsts_.size(), pattern_.query_stride, length, out);
        else kernels_.column(firsts_.front(), pattern_.query_stride, length, out);
    }

    /// out[i] = weight of keys[i] for one query; `scratch` has room for as many floats.
    void read_edges(std::int64_t query, std::span<const std::int64_t> keys, float* out, float* scratch) {
        point_at(query, 0);
        if (!mean_) return kernels_.gather(firsts_.front(), keys.data(), keys.size(), out);
        for (std::size_t i = 0; i < keys.size(); ++i) out[i] = 0;
        for (const std::byte* row : firsts_) {
            kernels_.gather(row, keys.data(), keys.size(), scratch);
            for (std::size_t i = 0; i < keys.size(); ++i) out[i] += scratch[i];
        }
        const auto n_heads = static_cast<float>(firsts_.size());
        for (std::size_t i = 0; i < keys.size(); ++i) out[i] /= n_heads;
    }

    /// The row of one query as it is stored, if it is one head's; nullptr if it is a mean.
    const std::byte* stored_row(std::int64_t query) const {
        return mean_ ? nullptr : heads_.front() + query * pattern_.query_stride;
    }

    DType dtype() const { return pattern_.dtype; }

private:
    static std::size_t layer_of(const Selection& selection, std::int64_t index) {
        const auto per_layer = selection.n_head_results() * selection.batches.size();
        return static_cast<std::size_t>(index) / per_layer;
    }

    void point_at(std::int64_t query, std::int64_t key) {
        const std::int64_t offset = query * pattern_.query_stride + key * item_bytes_;
        for (std::size_t h = 0; h < heads_.size(); ++h) firsts_[h] = heads_[h] + offset;
    }

    const PatternView& pattern_;
    const RowKernels& kernels_;
    std::int64_t item_bytes_;
    bool mean_;
    std::vector<const std::byte*> heads_;   // [query 0, key 0] of each head
    std::vector<const std::byte*> firsts_;  // the item of each head at which a read begins
};

/// About how many bytes it takes to make one result of `n` floats per plane, for parallel_for.
inline std::int64_t bytes_per_line(const Selection& selection, std::int64_t n, std::int64_t bytes_per_item) {
    const std::int64_t heads =
        selection.treat_heads == Heads::mean ? static_cast<std::int64_t>(selection.heads.size()) : 1;
    return n * (heads * bytes_per_item + static_cast<std::int64_t>(sizeof(float)));
}

/// Calls `work(plane, first, last)` for the pieces first..last of each plane that fall into begin..end, where pieces
/// are numbered through all planes, `per_plane` in each.
template <class Work>
void for_each_plane(const Selection& selection, std::int64_t begin, std::int64_t end, std::int64_t per_plane,
                    const Work& work) {
    const KernelTable& kernels = active_kernels();
    while (begin < end) {
        const std::int64_t index = begin / per_plane;
        const std::int64_t stop = std::min(end, (index + 1) * per_plane);
        Plane plane(selection, index, kernels);
        work(plane, begin, stop);
        begin = stop;
    }
}

}  // namespace attncache
