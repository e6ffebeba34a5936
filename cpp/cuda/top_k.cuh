// What both ways of top-k share (top_k.cu, top_k_radix.cu): where lines lie, and the order of weights.
#pragma once

#include "items.cuh"
#include "selection.cuh"

namespace attncache::cuda {

/// The lines that are ranked: floats computed before, or else the rows of a selection of heads on their own.
struct RankedLines {
    const float* floats;  // [line, length], or nullptr
    Selection selection;
    std::int64_t n, length;
};

/// Calls work(line) with the items of one line, in the type in which they are stored.
template <class Work>
__device__ inline void with_line(const RankedLines& lines, std::int64_t index, const Work& work) {
    DType dtype = DType::float32;
    const auto* items = reinterpret_cast<const std::byte*>(lines.floats + index * lines.length);
    if (lines.floats == nullptr) {
        const Line line = line_at(lines.selection, index);
        dtype = line.layer->dtype;
        items = line.data + line.heads[0] * line.layer->head_stride + line.position * line.layer->query_stride;
    }
    with_item(dtype, [&](auto item) { work(reinterpret_cast<const decltype(item)*>(items)); });
}

template <class Item>
__device__ inline float weight_at(const Item* line, std::int64_t position) {
    float weight[1];
    read(line + position, weight);
    return weight[0];
}

/// Weights as unsigned numbers in the order in which they are ranked: -0 as +0, NaN below all; 0 is no weight.
__device__ inline unsigned key_of(float weight) {
    if (weight != weight) return 1;
    const unsigned bits = __float_as_uint(weight == 0 ? 0.0F : weight);
    return bits >> 31 != 0 ? ~bits : bits | 0x80000000;
}

/// Ranks lines of any length for any k; n * k * 8 bytes of positions are also the room in which items are sorted.
void top_k_by_radix(const RankedLines& lines, std::int64_t k, std::int64_t* device_positions, float* device_weights,
                    cudaStream_t stream);

}  // namespace attncache::cuda
