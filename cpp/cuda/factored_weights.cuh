// Weights from the scores of factored rows: brings the sums of a line's blocks to those of the line.
//
// Floor: the scores of each line are read and written once, 8 bytes * lines * seq_k / bandwidth; those of few lines lie
// in the L2 cache.
//
// Shape: blocks of 128 threads for each (line, 2048 keys). A thread reads its 16 scores first, 16 bytes at a time where
// rows lie on 16 bytes, 8 KB a block and 64 KB a multiprocessor; while they come, the block reads the sums of the
// line's blocks, 8 bytes for each 256 keys.
//
// A weight is e^(score - m) times 1 / s: one rounding more than a quotient, and of the 20 additions in a block that the
// bound in cpp/include/attncache/factored.hpp counts there are 13.
#pragma once

#include "factored_scores.cuh"

namespace attncache::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kLanes;
constexpr int kKeysOfThread = 16;
constexpr int kTile = kKeysOfThread * kThreads;

/// The greater of two, where NaN is never greater.
__device__ inline float greater_of(float one, float other) { return other > one ? other : one; }

/// The greatest and the sum over a block's threads, known to all of them.
__device__ inline float greatest_of_block(float greatest, float (&of_warps)[kWarps]) {
#pragma unroll
    for (int other = 1; other < kLanes; other *= 2) {
        greatest = greater_of(greatest, __shfl_xor_sync(kAllLanes, greatest, other));
    }
    if (threadIdx.x % kLanes == 0) of_warps[threadIdx.x / kLanes] = greatest;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) greatest = greater_of(greatest, of_warps[w]);
    __syncthreads();
    return greatest;
}

__device__ inline float sum_of_block(float sum, float (&of_warps)[kWarps]) {
#pragma unroll
    for (int other = 1; other < kLanes; other *= 2) sum += __shfl_xor_sync(kAllLanes, sum, other);
    if (threadIdx.x % kLanes == 0) of_warps[threadIdx.x / kLanes] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += of_warps[w];
    __syncthreads();
    return sum;
}

/// What makes weights of a row's scores: m and 1 / s.
struct Whole {
    float greatest, factor;
};

/// Of a row whose normaliser was given: as if its sum were 1, or infinite if no key is visible.
__device__ inline Whole whole_of_lse(float lse) {
    if (isinf(lse)) return {0.0F, 0.0F};
    return {lse, isnan(lse) ? lse : 1.0F};
}

/// Of a row from the parts of its blocks, and its sink. A row without a visible key: as if its sum were infinite.
__device__ inline Whole whole_of_parts(const SoftmaxPart* parts, std::int64_t n_blocks, const float* sink,
                                       float (&of_warps)[kWarps]) {
    float greatest = sink == nullptr ? kHidden : *sink;
#pragma unroll 4
    for (std::int64_t b = threadIdx.x; b < n_blocks; b += kThreads) greatest = greater_of(greatest, parts[b].greatest);
    greatest = greatest_of_block(greatest, of_warps);
    const float base = greatest == kHidden ? 0.0F : greatest;
    float sum = 0;
#pragma unroll 4
    for (std::int64_t b = threadIdx.x; b < n_blocks; b += kThreads)
        sum += parts[b].sum * expf(parts[b].greatest - base);
    sum = sum_of_block(sum, of_warps);
    if (sink != nullptr) sum += expf(*sink - base);
    if (greatest == kHidden && sum == 0) return {0.0F, 0.0F};
    return {base, __fdiv_rn(1.0F, sum)};
}

/// e^(score - m) / s. Beyond e^88, which only a given normaliser can ask for, as the CPU has it.
__device__ inline float weight_of(float score, const Whole& whole) {
    const float distance = score - whole.greatest;
    return expf(distance > 88.0F ? 88.0F : distance) * whole.factor;
}

/// Reads this thread's scores of a tile, kCount at a time.
template <int kCount>
__device__ void read_scores(const float* row /* [n_keys] */, int n_keys, float (&scores)[kKeysOfThread]) {
#pragma unroll
    for (int i = 0; i < kKeysOfThread; i += kCount) {
        const int key = static_cast<int>(threadIdx.x) * kCount + i * kThreads;
        if (key >= n_keys) continue;
        if constexpr (kCount == 1) {
            scores[i] = row[key];
        } else {  // no read-only load of what this kernel writes
            const float4 four = *reinterpret_cast<const float4*>(row + key);
            scores[i] = four.x, scores[i + 1] = four.y, scores[i + 2] = four.z, scores[i + 3] = four.w;
        }
    }
}

/// Writes the weights of the scores that read_scores<kCount> read.
template <int kCount>
__device__ void write_weights(const float (&scores)[kKeysOfThread], const Whole& whole, int n_keys, float* row) {
#pragma unroll
    for (int i = 0; i < kKeysOfThread; i += kCount) {
        const int key = static_cast<int>(threadIdx.x) * kCount + i * kThreads;
        if (key >= n_keys) continue;
        float weights[kCount];
#pragma unroll
        for (int c = 0; c < kCount; ++c) weights[c] = weight_of(scores[i + c], whole);
        write(weights, row + key);
    }
}

__global__ void __launch_bounds__(kThreads, 8)
    factored_weights_kernel(FactoredLines lines, Divisor n_tiles, std::int64_t head_stride, bool is_out_wide,
                            const SoftmaxPart* parts /* [line, block] */,
                            float* out /* [listed head] at head_stride, [position, key]: scores become weights */) {
    __shared__ float of_warps[kWarps];
    const std::int64_t n_blocks = quotient_up(lines.seq_k, kKeysOfBlock);
    const std::int64_t n_units = lines.n_heads * lines.n_positions.value * n_tiles.value;
    for_each_unit(n_units, [&](std::int64_t unit) {
        const auto [line, tile] = divided(unit, n_tiles);
        const auto [listed, position] = divided(line, lines.n_positions);
        const std::int64_t begin = tile * kTile;
        const std::int64_t head = lines.heads[listed];
        const SoftmaxPart* const parts_of_line = parts + line * n_blocks;
        const float* const lse =
            lines.lse == nullptr ? nullptr : lines.lse + head * lines.seq_q + lines.positions[position];
        const float* const sink = lines.sinks == nullptr ? nullptr : lines.sinks + head;
        float* const row = out + listed * head_stride + position * lines.seq_k + begin;
        const int n_keys = clipped(lines.seq_k - begin, kTile);
        float scores[kKeysOfThread];
        if (is_out_wide) {
            read_scores<kWide<float>>(row, n_keys, scores);
        } else {
            read_scores<1>(row, n_keys, scores);
        }
        const Whole whole =
            lse != nullptr ? whole_of_lse(*lse) : whole_of_parts(parts_of_line, n_blocks, sink, of_warps);
        if (is_out_wide) {
            write_weights<kWide<float>>(scores, whole, n_keys, row);
        } else {
            write_weights<1>(scores, whole, n_keys, row);
        }
    });
}

}  // namespace
}  // namespace attncache::cuda
