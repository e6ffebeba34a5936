// Where the weights of one layer lie: a pointer, a dtype, a shape and strides. Owns nothing.
#pragma once

#include "attncache/types.hpp"

namespace attncache {

/// A [batch, head, query, key] array somewhere in memory, keys contiguous.
///
/// Strides count bytes, so that a view of any source (a slice, a transpose of the outer axes, a broadcast) fits.
struct PatternView {
    const std::byte* data = nullptr;
    DType dtype = DType::float32;
    Shape shape;
    std::int64_t batch_stride = 0;
    std::int64_t head_stride = 0;
    std::int64_t query_stride = 0;

    /// The weights of one query over all keys: `shape.seq_k` contiguous items.
    const std::byte* row(std::int64_t batch, std::int64_t head, std::int64_t query) const {
        return data + batch * batch_stride + head * head_stride + query * query_stride;
    }

    std::int64_t n_items() const { return shape.batch_size * shape.n_heads * shape.seq_q * shape.seq_k; }
    std::int64_t n_bytes() const { return n_items() * static_cast<std::int64_t>(item_bytes(dtype)); }
};

/// The view of a C-contiguous pattern that begins at `data`.
constexpr PatternView contiguous_view(const std::byte* data, DType dtype, Shape shape) {
    const auto query_stride = shape.seq_k * static_cast<std::int64_t>(item_bytes(dtype));
    const auto head_stride = shape.seq_q * query_stride;
    return {data, dtype, shape, shape.n_heads * head_stride, head_stride, query_stride};
}

}  // namespace attncache
