// What a query picks, checked on the host and as kernels see it. A line is a row or a column of one (layer, batch,
// head) plane, or of the mean over heads in place of one; lines are numbered in the order of the result.
#pragma once

#include "attncache/types.hpp"
#include "divisor.cuh"
#include "launch.cuh"

namespace attncache::cuda {

/// One layer as kernels read it.
struct Layer {
    const std::byte* data;
    std::int64_t batch_stride, head_stride, query_stride;  // bytes
    DType dtype;
    bool is_wide;  // every row begins at a multiple of 16 bytes and is a multiple of 16 bytes long
};

/// A selection in device memory: layers and indices of its axes. A result is a sum over heads: over all that are listed
/// for a mean, over one for heads on their own.
struct Selection {
    const Layer* layers;
    const std::int64_t* batches;
    const std::int64_t* heads;
    const std::int64_t* positions;
    std::int64_t n_heads_of_result;
    Divisor n_batches, n_head_results, n_positions;
    float empty_sum;  // where it begins; of one head at -0: x + -0 is x for every x, -0 included, and x / 1 is x
};

/// One line's place: its layer and batch item from head 0 and query 0 on, and the heads it is made of.
struct Line {
    const Layer* layer;
    const std::byte* data;
    const std::int64_t* heads;
    std::int64_t n_heads;
    std::int64_t position;
};

__device__ inline Line line_at(const Selection& selection, std::int64_t index) {
    const auto [plane, position] = divided(index, selection.n_positions);
    const auto [item, head] = divided(plane, selection.n_head_results);  // head 0 for a mean
    const auto [layer, batch] = divided(item, selection.n_batches);
    const Layer* const found = selection.layers + layer;
    return {found, found->data + selection.batches[batch] * found->batch_stride, selection.heads + head,
            selection.n_heads_of_result, selection.positions[position]};
}

/// One head more; no compiler may fuse this addition with anything.
__device__ inline float with_head(float sum, float weight) { return __fadd_rn(sum, weight); }

/// The quotient as IEEE rounds it; of no heads NaN.
__device__ inline float mean_of(float sum, std::int64_t n_heads) { return __fdiv_rn(sum, static_cast<float>(n_heads)); }

/// Throws unless n indices lie inside an axis.
inline void require_inside(const std::int64_t* indices, std::int64_t n, std::int64_t size) {
    require(n >= 0 && (n == 0 || indices != nullptr));
    for (std::int64_t i = 0; i < n; ++i) require(indices[i] >= 0 && indices[i] < size);
}

/// Throws unless a pattern is one that kernels can read.
inline void require_readable(const attncache_cuda_pattern& pattern) {
    require(pattern.dtype >= ATTNCACHE_CUDA_FLOAT16 && pattern.dtype <= ATTNCACHE_CUDA_FLOAT32);
    require(pattern.batch_size >= 0 && pattern.n_heads >= 0 && pattern.seq_q >= 0 && pattern.seq_k >= 0);
    const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(pattern.device_data));
    const auto item = static_cast<std::int64_t>(item_bytes(static_cast<DType>(pattern.dtype)));
    require((address | pattern.batch_stride | pattern.head_stride | pattern.query_stride) % item == 0);
    const std::int64_t n_items = product(pattern.batch_size, pattern.n_heads, pattern.seq_q, pattern.seq_k);
    require(n_items == 0 || pattern.device_data != nullptr);
}

inline Layer layer_of(const attncache_cuda_pattern& pattern) {
    static_assert(static_cast<int>(DType::float16) == ATTNCACHE_CUDA_FLOAT16);
    static_assert(static_cast<int>(DType::bfloat16) == ATTNCACHE_CUDA_BFLOAT16);
    static_assert(static_cast<int>(DType::float32) == ATTNCACHE_CUDA_FLOAT32);
    const auto dtype = static_cast<DType>(pattern.dtype);
    const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(pattern.device_data));
    const std::int64_t row_bytes = pattern.seq_k * static_cast<std::int64_t>(item_bytes(dtype));
    std::int64_t steps = address | row_bytes;  // a stride along an axis of one item may be anything
    if (pattern.batch_size > 1) steps |= pattern.batch_stride;
    if (pattern.n_heads > 1) steps |= pattern.head_stride;
    if (pattern.seq_q > 1) steps |= pattern.query_stride;
    return {static_cast<const std::byte*>(pattern.device_data),
            pattern.batch_stride,
            pattern.head_stride,
            pattern.query_stride,
            dtype,
            steps % 16 == 0};
}

/// Throws unless the layers can be read and have one shape, and batches and heads lie inside it. Returns the first.
inline const attncache_cuda_pattern& checked(const attncache_cuda_selection& selection) {
    static constexpr attncache_cuda_pattern kNone{};
    require(selection.n_layers >= 0 && (selection.n_layers == 0 || selection.layers != nullptr));
    require(selection.n_batches >= 0 && selection.n_heads >= 0);
    if (selection.n_layers == 0) return kNone;
    const attncache_cuda_pattern& first = selection.layers[0];
    for (std::int64_t i = 0; i < selection.n_layers; ++i) {
        const attncache_cuda_pattern& layer = selection.layers[i];
        require_readable(layer);
        require(layer.batch_size == first.batch_size && layer.n_heads == first.n_heads && layer.seq_q == first.seq_q &&
                layer.seq_k == first.seq_k);
    }
    require_inside(selection.batches, selection.n_batches, first.batch_size);
    require_inside(selection.heads, selection.n_heads, first.n_heads);
    return first;
}

/// How many lines a selection has at n positions.
inline std::int64_t lines_of(const attncache_cuda_selection& selection, std::int64_t n_positions) {
    const std::int64_t n_head_results = selection.mean_heads != 0 ? 1 : selection.n_heads;
    return product(selection.n_layers, selection.n_batches, n_head_results, n_positions);
}

/// A selection in device memory for as long as this object lives, and one more list of indices with it.
struct SelectionOnDevice {
    DeviceMemory memory;
    Selection selection;
    const std::int64_t* others;
};

inline SelectionOnDevice on_device(const attncache_cuda_selection& selection, const std::int64_t* positions,
                                   std::int64_t n_positions, cudaStream_t stream, const std::int64_t* others = nullptr,
                                   std::int64_t n_others = 0) {
    std::vector<Layer> layers;
    for (std::int64_t i = 0; i < selection.n_layers; ++i) layers.push_back(layer_of(selection.layers[i]));
    Upload lists;
    const std::size_t layers_at = lists.add(layers.data(), selection.n_layers);
    const std::size_t batches_at = lists.add(selection.batches, selection.n_batches);
    const std::size_t heads_at = lists.add(selection.heads, selection.n_heads);
    const std::size_t positions_at = lists.add(positions, n_positions);
    const std::size_t others_at = lists.add(others, n_others);
    SelectionOnDevice result{lists.send(stream), {}, nullptr};
    const DeviceMemory& memory = result.memory;
    const bool is_mean = selection.mean_heads != 0;
    result.selection = {memory.at<Layer>(layers_at),
                        memory.at<std::int64_t>(batches_at),
                        memory.at<std::int64_t>(heads_at),
                        memory.at<std::int64_t>(positions_at),
                        is_mean ? selection.n_heads : 1,
                        Divisor::of(selection.n_batches),
                        Divisor::of(is_mean ? 1 : selection.n_heads),
                        Divisor::of(n_positions),
                        is_mean ? 0.0F : -0.0F};
    result.others = memory.at<std::int64_t>(others_at);
    return result;
}

}  // namespace attncache::cuda
