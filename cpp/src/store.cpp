// Copies layers into aligned memory of their own, or wraps memory that somebody else keeps alive.
#include "attncache/store.hpp"

#include <cstring>
#include <new>
#include <stdexcept>

#include "active_kernels.hpp"
#include "parallel.hpp"

namespace attncache {
namespace {

constexpr std::align_val_t kAlignment{64};

std::int64_t checked_product(std::int64_t a, std::int64_t b) {
    if (a != 0 && b > INT64_MAX / a) throw std::length_error("pattern has more bytes than an address can hold");
    return a * b;
}

std::int64_t checked_bytes(const Shape& shape, DType dtype) {
    // Axes of size 0 come last, so that a product cannot overflow before it becomes 0.
    std::int64_t bytes = static_cast<std::int64_t>(item_bytes(dtype));
    bool empty = false;
    for (const std::int64_t size : {shape.batch_size, shape.n_heads, shape.seq_q, shape.seq_k}) {
        if (size == 0) empty = true;
        else bytes = checked_product(bytes, size);
    }
    return empty ? 0 : bytes;
}

std::shared_ptr<std::byte> allocate(std::int64_t bytes) {
    void* memory = ::operator new(static_cast<std::size_t>(bytes > 0 ? bytes : 1), kAlignment);
    return {static_cast<std::byte*>(memory), [](std::byte* p) { ::operator delete(p, kAlignment); }};
}

/// The items of one source row, made contiguous in `buffer` unless they already are.
const std::byte* contiguous_row(const std::byte* row, std::int64_t n, std::int64_t stride, std::size_t item,
                                std::vector<std::byte>& buffer) {
    if (stride == static_cast<std::int64_t>(item) || n <= 1) return row;
    buffer.resize(static_cast<std::size_t>(n) * item);
    for (std::int64_t i = 0; i < n; ++i) {
        std::memcpy(buffer.data() + static_cast<std::size_t>(i) * item, row + i * stride, item);
    }
    return buffer.data();
}

}  // namespace

std::shared_ptr<const Layer> copy_layer(const SourceArray& source, DType dtype) {
    const Shape& shape = source.shape;
    const std::int64_t bytes = checked_bytes(shape, dtype);
    const auto memory = allocate(bytes);
    const PatternView copy = contiguous_view(memory.get(), dtype, shape);
    if (bytes > 0) {
        const std::size_t source_item = item_bytes(source.dtype);
        const auto row_items = static_cast<std::size_t>(shape.seq_k);
        const auto row_bytes = row_items * item_bytes(dtype);
        const Convert convert = active_kernels().convert[static_cast<int>(source.dtype)][static_cast<int>(dtype)];
        const std::int64_t n_rows = shape.batch_size * shape.n_heads * shape.seq_q;
        const auto copy_rows = [&](std::int64_t begin, std::int64_t end) {
            std::vector<std::byte> buffer;
            for (std::int64_t r = begin; r < end; ++r) {
                const std::int64_t query = r % shape.seq_q;
                const std::int64_t head = r / shape.seq_q % shape.n_heads;
                const std::int64_t batch = r / shape.seq_q / shape.n_heads;
                const std::byte* from = contiguous_row(
                    source.data + batch * source.strides[0] + head * source.strides[1] + query * source.strides[2],
                    shape.seq_k, source.strides[3], source_item, buffer);
                std::byte* to = memory.get() + static_cast<std::size_t>(r) * row_bytes;
                if (source.dtype == dtype) std::memcpy(to, from, row_bytes);
                else convert(from, row_items, to);
            }
        };
        parallel_for(n_rows, static_cast<std::int64_t>(row_bytes + row_items * source_item), copy_rows);
    }
    return std::make_shared<const Layer>(Layer{copy, memory});
}

std::shared_ptr<const Layer> borrow_layer(const std::byte* data, DType dtype, Shape shape,
                                          std::shared_ptr<const void> owner) {
    return std::make_shared<const Layer>(Layer{contiguous_view(data, dtype, shape), std::move(owner)});
}

}  // namespace attncache
