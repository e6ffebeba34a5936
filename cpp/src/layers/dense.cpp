// Copies layers into aligned memory of their own, or wraps memory that somebody else keeps alive.
#include "attncache/store.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "layer_copy.hpp"
#include "memory.hpp"
#include "parallel.hpp"

namespace attncache {
namespace {

std::int64_t checked_product(std::int64_t a, std::int64_t b) {
    if (a != 0 && b > INT64_MAX / a) throw std::length_error("pattern has more bytes than an address can hold");
    return a * b;
}

/// The bytes of a layer; an axis of size 0 makes it empty, however large the others are.
std::int64_t checked_bytes(const Shape& shape, DType dtype) {
    const std::int64_t sizes[] = {shape.batch_size, shape.n_heads, shape.seq_q, shape.seq_k};
    if (std::find(std::begin(sizes), std::end(sizes), 0) != std::end(sizes)) return 0;
    auto bytes = static_cast<std::int64_t>(item_bytes(dtype));
    for (const std::int64_t size : sizes) bytes = checked_product(bytes, size);
    return bytes;
}

bool is_aligned(const SourceArray& source, const std::byte* items) {
    return reinterpret_cast<std::uintptr_t>(items) % item_bytes(source.dtype) == 0;
}

/// Whether the whole source is one row that kernels can read.
bool is_one_row(const SourceArray& source) {
    const PatternView dense = contiguous_view(source.data, source.dtype, source.shape);
    const Shape& shape = source.shape;
    const auto fits = [](std::int64_t size, std::int64_t stride, std::int64_t wanted) {
        return size == 1 || stride == wanted;
    };
    return is_aligned(source, source.data) && fits(shape.batch_size, source.strides[0], dense.batch_stride) &&
           fits(shape.n_heads, source.strides[1], dense.head_stride) &&
           fits(shape.seq_q, source.strides[2], dense.query_stride) &&
           fits(shape.seq_k, source.strides[3], static_cast<std::int64_t>(item_bytes(source.dtype)));
}

/// Everything as one long row, in pieces as large as pays, whatever the rows are.
void copy_contiguous(const SourceArray& source, const LayerCopy& copy, const KernelTable& kernels) {
    constexpr std::int64_t piece = 32 * 1024;
    const std::int64_t n_items = copy.pattern.n_items();
    const auto item = static_cast<std::int64_t>(item_bytes(copy.pattern.dtype));
    const auto source_item = static_cast<std::int64_t>(item_bytes(source.dtype));
    const auto& converts = n_items * item >= kStreamedBytes ? kernels.convert_streamed : kernels.convert;
    const Convert convert = converts[static_cast<int>(source.dtype)][static_cast<int>(copy.pattern.dtype)];
    parallel_for((n_items + piece - 1) / piece, piece * (item + source_item),
                 [&](std::int64_t begin, std::int64_t end) {
                     const std::int64_t first = begin * piece;
                     const std::int64_t last = std::min(end * piece, n_items);
                     convert(source.data + first * source_item, static_cast<std::size_t>(last - first),
                             copy.memory.get() + first * item);
                 });
}

}  // namespace

void copy_rows(const SourceArray& source, const LayerCopy& copy) {
    const Shape& shape = source.shape;
    const KernelTable& kernels = active_kernels();
    const auto bytes = static_cast<std::int64_t>(item_bytes(source.dtype) + item_bytes(copy.pattern.dtype));
    parallel_for(shape.batch_size * shape.n_heads * shape.seq_q, bytes * shape.seq_k,
                 [&](std::int64_t begin, std::int64_t end) {
                     RowCopier copier(source, copy, kernels);
                     for (std::int64_t r = begin; r < end; ++r) {
                         copier.copy(r / shape.seq_q / shape.n_heads, r / shape.seq_q % shape.n_heads, r % shape.seq_q);
                     }
                 });
}

SourceArray source_of(const PatternView& view) {
    const auto item = static_cast<std::int64_t>(item_bytes(view.dtype));
    return {view.data, view.dtype, view.shape, {view.batch_stride, view.head_stride, view.query_stride, item}};
}

LayerCopy part_of(const LayerCopy& copy, std::int64_t batch, std::int64_t n_batches, std::int64_t first,
                  std::int64_t n) {
    PatternView part = copy.pattern;
    const std::int64_t offset = batch * part.batch_stride + first * part.query_stride;
    part.data += offset;
    part.shape.batch_size = n_batches;
    part.shape.seq_q = n;
    return {std::shared_ptr<std::byte>(copy.memory, copy.memory.get() + offset), part};
}

LayerCopy allocate_copy(const Shape& shape, DType dtype) {
    const auto memory = allocate(checked_bytes(shape, dtype));
    return {memory, contiguous_view(memory.get(), dtype, shape)};
}

void RowCopier::copy(std::int64_t batch, std::int64_t head, std::int64_t query) {
    const std::int64_t* const strides = source_.strides;
    const std::byte* from = source_.data + batch * strides[0] + head * strides[1] + query * strides[2];
    const auto n = static_cast<std::size_t>(source_.shape.seq_k);
    const std::size_t item = item_bytes(source_.dtype);
    const bool is_contiguous = strides[3] == static_cast<std::int64_t>(item) || n == 1;
    if (!is_contiguous || !is_aligned(source_, from)) {
        gathered_.resize(n * item);
        for (std::size_t i = 0; i < n; ++i, from += strides[3]) std::memcpy(gathered_.data() + i * item, from, item);
        from = gathered_.data();
    }
    convert_(from, n, copy_.memory.get() + (copy_.pattern.row(batch, head, query) - copy_.pattern.data));
}

std::shared_ptr<const Layer> copy_layer(const SourceArray& source, DType dtype) {
    const LayerCopy copy = allocate_copy(source.shape, dtype);
    if (copy.pattern.n_items() > 0) {
        if (is_one_row(source)) {
            copy_contiguous(source, copy, active_kernels());
        } else {
            copy_rows(source, copy);
        }
    }
    return std::make_shared<const Layer>(Layer{copy.pattern, copy.memory});
}

std::shared_ptr<const Layer> borrow_layer(const std::byte* data, DType dtype, Shape shape,
                                          std::shared_ptr<const void> owner) {
    return std::make_shared<const Layer>(Layer{contiguous_view(data, dtype, shape), std::move(owner)});
}

}  // namespace attncache
