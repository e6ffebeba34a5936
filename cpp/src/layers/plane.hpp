// A [query, key] plane of a pattern in memory, read as rows or columns of floats: one head as it is, the mean of
// several heads, or the index that holds their mean.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "../system/active_kernels.hpp"
#include "attncache/head_mean.hpp"

namespace attncache {

class Plane {
public:
    /// One head as it is stored.
    Plane(const PatternView& pattern, std::int64_t batch, std::int64_t head, const KernelTable& kernels)
        : Plane(pattern, kernels) {
        first_ = pattern.row(batch, head, 0);
    }

    /// The mean of some heads, in their order.
    Plane(const PatternView& pattern, std::int64_t batch, std::span<const std::int64_t> heads,
          const KernelTable& kernels)
        : Plane(pattern, kernels) {
        heads_.reserve(heads.size());
        for (const std::int64_t head : heads) heads_.push_back(pattern.row(batch, head, 0));
        addresses_.resize(heads_.size());
    }

    /// The mean of all heads.
    Plane(const PatternView& pattern, std::int64_t batch, const KernelTable& kernels) : Plane(pattern, kernels) {
        for (std::int64_t head = 0; head < pattern.shape.n_heads; ++head) heads_.push_back(pattern.row(batch, head, 0));
        addresses_.resize(heads_.size());
    }

    /// The mean of all heads, from the index.
    Plane(const HeadMean& mean, const Shape& shape, const KernelTable& kernels)
        : kernels_(&kernels.of(DType::float32)),
          dtype_(DType::float32),
          item_bytes_(sizeof(float)),
          query_stride_(shape.seq_k * static_cast<std::int64_t>(sizeof(float))),
          seq_q_(shape.seq_q),
          first_(reinterpret_cast<const std::byte*>(mean.by_query)),
          by_key_(mean.by_key) {}

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

    /// out[i] = weight of keys[i] for one query, of a plane that is stored.
    void read_listed(std::int64_t query, std::span<const std::int64_t> keys, float* out) {
        addresses_.resize(keys.size());
        for (std::size_t i = 0; i < keys.size(); ++i) addresses_[i] = address(0, query, keys[i]);
        kernels_->gather(addresses_.data(), keys.size(), out);
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

}  // namespace attncache
