// One (layer, batch, head) plane of a selection, read as rows or columns of floats. A plane is a [query, key] matrix
// that the result shows: one head as it is, the mean of several, or the index that holds their mean.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "../active_kernels.hpp"
#include "attncache/queries.hpp"

namespace attncache {

class Plane {
public:
    /// The plane of that index in result order: layers outermost, heads innermost.
    Plane(const Selection& selection, std::int64_t index, const KernelTable& kernels)
        : Plane(selection.layers[layer_of(selection, index)], kernels) {
        const auto n_head_results = static_cast<std::int64_t>(selection.n_head_results());
        const auto layer_and_batch = static_cast<std::size_t>(index / n_head_results);
        const PatternView& pattern = selection.layers[layer_of(selection, index)];
        const std::int64_t batch = selection.batches[layer_and_batch % selection.batches.size()];
        if (selection.treat_heads == Heads::each) {
            first_ = pattern.row(batch, selection.heads[static_cast<std::size_t>(index % n_head_results)], 0);
        } else if (!selection.means.empty() && selection.means[layer_and_batch].by_query != nullptr) {
            use_index(selection.means[layer_and_batch], kernels);
        } else {
            for (const std::int64_t head : selection.heads) heads_.push_back(pattern.row(batch, head, 0));
        }
        addresses_.resize(heads_.size());
    }

    /// The mean of all heads of one batch item.
    Plane(const PatternView& pattern, std::int64_t batch, const KernelTable& kernels) : Plane(pattern, kernels) {
        for (std::int64_t head = 0; head < pattern.shape.n_heads; ++head) heads_.push_back(pattern.row(batch, head, 0));
        addresses_.resize(heads_.size());
    }

    /// out[i] = weight of key `begin + i` for one query.
    void read_row(std::int64_t query, std::int64_t begin, std::int64_t n, float* out) {
        const std::int64_t offset = query * query_stride_ + begin * item_bytes_;
        const auto length = static_cast<std::size_t>(n);
        if (is_stored()) return kernels_->widen(first_ + offset, length, out);
        kernels_->mean(heads_at(offset), heads_.size(), length, out);
    }

    /// out[i] = weight of one key for query `begin + i`.
    void read_column(std::int64_t key, std::int64_t begin, std::int64_t n, float* out) {
        const std::int64_t offset = begin * query_stride_ + key * item_bytes_;
        const auto length = static_cast<std::size_t>(n);
        if (by_key_ != nullptr) {
            std::memcpy(out, by_key_ + key * seq_q_ + begin, length * sizeof(float));
        } else if (is_stored()) {
            kernels_->column(first_ + offset, query_stride_, length, out);
        } else {
            kernels_->mean_column(heads_at(offset), heads_.size(), query_stride_, length, out);
        }
    }

    /// Whether its rows lie in memory as they are, as one head or the index; otherwise each is a mean to compute.
    bool is_stored() const { return first_ != nullptr; }
    const std::byte* stored_row(std::int64_t query) const { return first_ + query * query_stride_; }

    /// A column that lies in memory as it is (the index by key), or nullptr.
    const float* stored_column(std::int64_t key) const { return by_key_ == nullptr ? nullptr : by_key_ + key * seq_q_; }

    /// Where the weights of [query, key] lie in memory: one if stored, otherwise one for each head.
    std::size_t n_addresses() const { return is_stored() ? 1 : heads_.size(); }
    const std::byte* address(std::size_t head, std::int64_t query, std::int64_t key) const {
        return (is_stored() ? first_ : heads_[head]) + query * query_stride_ + key * item_bytes_;
    }

    const RowKernels& kernels() const { return *kernels_; }
    DType dtype() const { return dtype_; }

private:
    Plane(const PatternView& pattern, const KernelTable& kernels)
        : kernels_(&kernels.of(pattern.dtype)),
          dtype_(pattern.dtype),
          item_bytes_(static_cast<std::int64_t>(item_bytes(pattern.dtype))),
          query_stride_(pattern.query_stride),
          seq_q_(pattern.shape.seq_q) {}

    static std::size_t layer_of(const Selection& selection, std::int64_t index) {
        return static_cast<std::size_t>(index) / (selection.n_head_results() * selection.batches.size());
    }

    void use_index(const HeadMeans& means, const KernelTable& kernels) {
        kernels_ = &kernels.of(DType::float32);
        query_stride_ = query_stride_ / item_bytes_ * static_cast<std::int64_t>(sizeof(float));
        item_bytes_ = sizeof(float);
        dtype_ = DType::float32;
        first_ = reinterpret_cast<const std::byte*>(means.by_query);
        by_key_ = means.by_key;
    }

    const std::byte* const* heads_at(std::int64_t offset) {
        for (std::size_t h = 0; h < heads_.size(); ++h) addresses_[h] = heads_[h] + offset;
        return addresses_.data();
    }

    const RowKernels* kernels_;
    DType dtype_;
    std::int64_t item_bytes_;
    std::int64_t query_stride_;
    std::int64_t seq_q_;
    const std::byte* first_ = nullptr;     // [query 0, key 0] of a stored plane
    const float* by_key_ = nullptr;        // the index by key
    std::vector<const std::byte*> heads_;  // [query 0, key 0] of each head of a mean
    std::vector<const std::byte*> addresses_;
};

/// About how many bytes it takes to make one result of `n` floats, for parallel_for.
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
