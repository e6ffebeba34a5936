// Dense layers: copied into aligned memory of their own, or over memory that somebody else keeps alive.
#include "attncache/dense.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "attncache/memory.hpp"
#include "../system/parallel.hpp"
#include "../system/positions.hpp"
#include "copying.hpp"
#include "head_means.hpp"
#include "plane.hpp"

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

DenseLayer::DenseLayer(const PatternView& pattern, std::shared_ptr<const void> memory)
    : Layer(Kind::dense, pattern.shape, pattern.dtype), pattern_(pattern), memory_(std::move(memory)) {
    stored_ = &pattern_;
}

Costs DenseLayer::costs() const {
    constexpr std::int64_t cache_line = 64;
    constexpr std::int64_t result = sizeof(float);
    const std::int64_t item = shape().n_heads * static_cast<std::int64_t>(item_bytes(dtype())) + result;
    const std::int64_t stray = shape().n_heads * cache_line + result;
    const std::int64_t n = shape().seq_q * shape().seq_k;
    const bool has_heads = shape().n_heads > 0;  // the mean of none is NaN: nothing to keep
    return {shape().seq_k * item, shape().seq_q * stray, stray, n * item,
            has_heads ? n * (item + result) : Costs::kNever};
}

void DenseLayer::read_lines(const LineRequest& request, const LinesOut& out) const {
    const bool from = request.direction == Direction::from;
    const auto n_positions = static_cast<std::int64_t>(request.positions.size());
    const std::int64_t length = from ? shape().seq_k : shape().seq_q;
    const KernelTable& kernels = active_kernels();
    parallel_for(static_cast<std::int64_t>(request.heads.size()) * n_positions,
                 length * static_cast<std::int64_t>(item_bytes(dtype()) + sizeof(float)),
                 [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t line = begin; line < end; ++line) {
                         const std::int64_t head = line / n_positions;
                         const std::int64_t i = line % n_positions;
                         const std::int64_t position = request.positions[static_cast<std::size_t>(i)];
                         Plane plane(pattern_, request.batch, request.heads[static_cast<std::size_t>(head)], kernels);
                         float* const to = out.out + head * out.head_stride + i * out.line_stride;
                         if (!from) {
                             plane.read_column(position, 0, length, to);
                         } else if (request.listed.empty()) {
                             plane.read_row(position, 0, length, to);
                         } else {
                             plane.read_listed(position, request.listed, to);
                         }
                     }
                 });
}

std::shared_ptr<const DenseLayer> copy_layer(const SourceArray& source, DType dtype, bool with_head_means) {
    const LayerCopy copy = allocate_copy(source.shape, dtype);
    auto layer = std::make_shared<DenseLayer>(copy.pattern, copy.memory);
    if (with_head_means && source.shape.n_heads > 0) {
        copy_with_head_means(source, copy, *layer);
    } else if (copy.pattern.n_items() > 0) {
        if (is_one_row(source)) {
            copy_contiguous(source, copy, active_kernels());
        } else {
            copy_rows(source, copy);
        }
    }
    return layer;
}

std::shared_ptr<const DenseLayer> borrow_layer(const std::byte* data, DType dtype, const Shape& shape,
                                               std::shared_ptr<const void> owner, bool with_head_means) {
    auto layer = std::make_shared<DenseLayer>(contiguous_view(data, dtype, shape), std::move(owner));
    for (std::int64_t batch = 0; with_head_means && shape.n_heads > 0 && batch < shape.batch_size; ++batch) {
        layer->slot(Derivation::head_mean, batch).put(build_head_mean(layer->pattern(), batch));
    }
    return layer;
}

std::shared_ptr<const DenseLayer> dense_layer(const Layer& layer, DType dtype) {
    if (layer.stored() != nullptr) return copy_layer(source_of(*layer.stored()), dtype);
    constexpr std::int64_t kTogether = 4 * 1024 * 1024;  // weights: 16 MiB on their way to another dtype
    const Shape& shape = layer.shape();
    const LayerCopy copy = allocate_copy(shape, dtype);
    const auto heads = first_positions(shape.n_heads);
    const auto queries = first_positions(shape.seq_q);
    const std::int64_t row_floats = std::max<std::int64_t>(1, shape.n_heads * shape.seq_k);
    const std::int64_t together = std::max<std::int64_t>(1, kTogether / row_floats);
    std::vector<float> slab;
    for (std::int64_t batch = 0; batch < shape.batch_size; ++batch) {
        for (std::int64_t first = 0; first < shape.seq_q; first += together) {
            const std::int64_t n = std::min(together, shape.seq_q - first);
            const auto chosen =
                std::span(queries).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(n));
            const LineRequest request{Direction::from, batch, heads, chosen};
            const LayerCopy part = part_of(copy, batch, 1, first, n);
            if (dtype == DType::float32) {
                auto* const out = reinterpret_cast<float*>(part.memory.get());
                layer.read_lines(request, {out, shape.seq_q * shape.seq_k, shape.seq_k});
                continue;
            }
            slab.resize(static_cast<std::size_t>(n * shape.n_heads * shape.seq_k));
            layer.read_lines(request, {slab.data(), n * shape.seq_k, shape.seq_k});
            const auto* const weights = reinterpret_cast<const std::byte*>(slab.data());
            copy_rows(source_of(contiguous_view(weights, DType::float32, part.pattern.shape)), part);
        }
    }
    return std::make_shared<const DenseLayer>(copy.pattern, copy.memory);
}

}  // namespace attncache
