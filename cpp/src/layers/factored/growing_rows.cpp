// Appends by writing past the end, or by moving house.
#include "growing_rows.hpp"

#include <algorithm>

#include "../copying.hpp"

namespace attncache {
namespace {

constexpr std::int64_t kLeastRoom = 64;

}  // namespace

Projection GrowingRows::append(const Projection& rows, const SourceArray& more) {
    const Shape& shape = rows.view.shape;
    const std::int64_t n_used = shape.seq_q;
    const std::int64_t n_after = n_used + more.shape.seq_q;
    Projection result = rows;
    result.view.shape.seq_q = n_after;
    std::int64_t expected = n_used;
    if (rows.growing != nullptr && n_after <= rows.growing->capacity_ &&
        rows.growing->n_used_.compare_exchange_strong(expected, n_after)) {
        copy_rows(more, part_of({rows.growing->memory_, result.view}, 0, shape.batch_size, n_used, more.shape.seq_q));
        return result;
    }
    const std::int64_t capacity = n_after + std::max(kLeastRoom, n_after / 2);
    const LayerCopy grown = allocate_copy({shape.batch_size, shape.n_heads, capacity, shape.seq_k}, rows.view.dtype);
    copy_rows(source_of(rows.view), part_of(grown, 0, shape.batch_size, 0, n_used));
    copy_rows(more, part_of(grown, 0, shape.batch_size, n_used, more.shape.seq_q));
    result.view = part_of(grown, 0, shape.batch_size, 0, n_after).pattern;
    result.memory = grown.memory;
    result.growing = std::shared_ptr<GrowingRows>(new GrowingRows(grown.memory, capacity, n_after));
    return result;
}

}  // namespace attncache
