// Layers on CUDA devices: what the device is told of them, their lines on the host, and their way to the CPU.
#include <algorithm>
#include <cstring>
#include <utility>

#include "attncache/cuda_device.hpp"
#include "attncache/memory.hpp"
#include "cuda_library.hpp"

namespace attncache {
namespace {

/// As the device is told of it. Along an axis of one item a stride means nothing.
attncache_cuda_pattern described(const PatternView& view) {
    const Shape& shape = view.shape;
    const auto step = [](std::int64_t length, std::int64_t stride) { return length > 1 ? stride : 0; };
    static_assert(static_cast<int>(DType::float16) == ATTNCACHE_CUDA_FLOAT16 &&
                  static_cast<int>(DType::bfloat16) == ATTNCACHE_CUDA_BFLOAT16 &&
                  static_cast<int>(DType::float32) == ATTNCACHE_CUDA_FLOAT32);
    return {view.data,
            static_cast<std::int32_t>(view.dtype),
            shape.batch_size,
            shape.n_heads,
            shape.seq_q,
            shape.seq_k,
            step(shape.batch_size, view.batch_stride),
            step(shape.n_heads, view.head_stride),
            step(shape.seq_q, view.query_stride)};
}

/// Which keys are hidden, [batch, key], 1 for those; empty if none is.
std::vector<std::uint8_t> hidden_keys(const Scoring& scoring, std::int64_t seq_k) {
    std::vector<std::uint8_t> hidden(scoring.hidden_keys.size() * static_cast<std::size_t>(seq_k));
    auto row = hidden.begin();
    for (const auto& ranges : scoring.hidden_keys) {
        for (const Range& range : ranges) std::fill(row + range.begin, row + range.end, std::uint8_t{1});
        row += seq_k;
    }
    return hidden;
}

template <class Item>
std::size_t n_bytes_of(const std::vector<Item>& items) {
    return items.size() * sizeof(Item);
}

}  // namespace

CudaMemory::CudaMemory(const CudaDevice& device, std::size_t n_bytes, void* stream)
    : device_(&device), stream_(stream) {
    if (n_bytes == 0) return;
    const OnDevice on(device.library(), device.number());
    device.library().call(device.library().allocate, n_bytes, stream, &address_);
}

CudaMemory::CudaMemory(CudaMemory&& other) noexcept
    : device_(other.device_), stream_(other.stream_), address_(std::exchange(other.address_, nullptr)) {}

CudaMemory::~CudaMemory() {
    if (address_ == nullptr) return;
    try {
        const OnDevice on(device_->library(), device_->number());
        device_->library().free.pointer(address_, stream_);  // what fails here, failed before
    } catch (const std::exception&) {
    }
}

CudaLayer::CudaLayer(const CudaDevice& device, Borrowed pattern, void* stream)
    : Layer(Kind::dense, pattern.view.shape, pattern.view.dtype, &device),
      cuda_(device),
      stream_(stream),
      lies_(described(pattern.view)) {
    borrowed_.push_back(std::move(pattern));
}

CudaLayer::CudaLayer(const CudaDevice& device, Borrowed query, Borrowed key, Scoring scoring, std::vector<float> lse,
                     void* stream)
    : Layer(Kind::factored, FactoredView{query.view, key.view, {}}.shape(), query.view.dtype, &device),
      cuda_(device),
      stream_(stream),
      scoring_(std::move(scoring)),
      lse_(std::move(lse)) {
    const auto hidden = hidden_keys(scoring_, key.view.shape.seq_q);
    lies_ =
        attncache_cuda_factored{described(query.view),
                                described(key.view),
                                scoring_.scale,
                                scoring_.softcap,
                                scoring_.causal,
                                scoring_.window,
                                static_cast<const std::uint8_t*>(uploaded(hidden.data(), n_bytes_of(hidden))),
                                static_cast<const float*>(uploaded(scoring_.sinks.data(), n_bytes_of(scoring_.sinks))),
                                static_cast<const float*>(uploaded(lse_.data(), n_bytes_of(lse_)))};
    borrowed_.push_back(std::move(query));
    borrowed_.push_back(std::move(key));
}

const void* CudaLayer::uploaded(const void* values, std::size_t n_bytes) {
    if (n_bytes == 0) return nullptr;
    const CudaLibrary& library = cuda_.library();
    const void* const memory = uploaded_.emplace_back(cuda_, n_bytes, stream_).as<void>();
    const OnDevice on(library, cuda_.number());
    library.call(library.copy_to_device, const_cast<void*>(memory), values, n_bytes, stream_);
    return memory;
}

void CudaLayer::finish() const noexcept {
    if (!is_in_use_.exchange(false)) return;
    try {
        const OnDevice on(cuda_.library(), cuda_.number());
        cuda_.library().synchronize.pointer(stream_);  // what fails here, fails at the next call too
    } catch (const std::exception&) {
    }
}

std::int64_t CudaLayer::n_bytes() const {
    std::int64_t bytes = 0;
    for (const Borrowed& each : borrowed_) bytes += each.view.n_bytes();
    return bytes;
}

/// As of dense layers; but nothing is derived from a layer on a device.
Costs CudaLayer::costs() const {
    const std::int64_t row = n_bytes() / std::max<std::int64_t>(1, shape().batch_size * shape().seq_q);
    return {row, shape().n_heads * shape().seq_q, shape().n_heads, row * shape().seq_q, Costs::kNever};
}

void CudaLayer::read_lines(const LineRequest& request, const LinesOut& out) const {
    const Layer* const self = this;
    const Selection each{{&self, 1}, {&request.batch, 1}, request.heads, Heads::each};
    const bool is_from = request.direction == Direction::from;
    const std::int64_t whole = is_from ? shape().seq_k : shape().seq_q;
    const auto length = request.listed.empty() ? whole : static_cast<std::int64_t>(request.listed.size());
    const std::size_t n_positions = request.positions.size();
    std::vector<float> lines(request.heads.size() * n_positions * static_cast<std::size_t>(length));
    if (!request.listed.empty()) {
        cuda_.edges(each, request.positions, request.listed, lines.data());
    } else if (is_from) {
        cuda_.rows(each, request.positions, lines.data());
    } else {
        cuda_.columns(each, request.positions, lines.data());
    }
    const float* line = lines.data();
    for (std::size_t head = 0; head < request.heads.size(); ++head) {
        float* to = out.out + static_cast<std::int64_t>(head) * out.head_stride;
        for (std::size_t i = 0; i < n_positions; ++i, line += length, to += out.line_stride) {
            std::copy_n(line, length, to);
        }
    }
}

std::shared_ptr<const DenseLayer> CudaLayer::copy_of(const PatternView& view) const {
    const Shape& shape = view.shape;
    const auto item = static_cast<std::int64_t>(item_bytes(view.dtype));
    const PatternView dense = contiguous_view(nullptr, view.dtype, shape);
    const std::int64_t lengths[] = {shape.batch_size, shape.n_heads, shape.seq_q};
    const std::int64_t steps[] = {view.batch_stride, view.head_stride, view.query_stride};
    const std::int64_t dense_steps[] = {dense.batch_stride, dense.head_stride, dense.query_stride};
    SourceArray source{nullptr, view.dtype, shape, {0, 0, 0, item}};
    std::int64_t first = 0;  // what lies between the first and the last byte is copied at once
    std::int64_t end = shape.seq_k * item;
    bool is_contiguous = true;
    if (view.n_items() == 0) return copy_layer(source, view.dtype);
    for (int axis = 0; axis < 3; ++axis) {
        if (lengths[axis] < 2) continue;
        source.strides[axis] = steps[axis];
        const std::int64_t reach = (lengths[axis] - 1) * steps[axis];
        (reach < 0 ? first : end) += reach;
        is_contiguous = is_contiguous && steps[axis] == dense_steps[axis];
    }
    const auto span = allocate(end - first);
    cuda_.copy_to_host(span.get(), view.data + first, static_cast<std::size_t>(end - first), stream_);
    source.data = span.get() - first;
    return is_contiguous ? borrow_layer(span.get(), view.dtype, shape, span) : copy_layer(source, view.dtype);
}

std::shared_ptr<const Layer> CudaLayer::cpu() const {
    if (kind() == Kind::dense) return copy_of(borrowed_.front().view);
    const auto copied = [&](const Borrowed& each) {
        const auto copy = copy_of(each.view);
        return Projection{copy->pattern(), copy->memory(), nullptr};
    };
    return std::make_shared<FactoredLayer>(copied(borrowed_[0]), copied(borrowed_[1]), scoring_, lse_);
}

}  // namespace attncache
