// Scores of queries and keys, and for each block of 256 keys the greatest score and the sum of e^(score - greatest).
//
// Floor: a bundle is up to 8 lines (a head and a query each) that read the same key head, and the keys are read once a
// bundle, from memory for the first and from the L2 cache for the bundles that follow it, so
//   bytes = key heads * seq_k * head_dim * item + lines * seq_k * 4 / bandwidth, while a line costs less than its keys:
//   products = lines * seq_k * head_dim / fused products a second.
// Invisible blocks are not read.
//
// Shape: blocks of 128 threads for each (bundle, 256 keys), which first make all products (factored_products.cuh). Then
// a warp takes a line: scale, cap, mask, the greatest, the sum. Bundles of up to 4 lines, as one query has them, take
// fewer registers: 16 warps on a multiprocessor have 64 KB of keys in flight, 12 warps of 8 lines 48 KB.
#pragma once

#include <cmath>

#include "attncache/masking.hpp"
#include "block.cuh"
#include "factored_products.cuh"

namespace attncache::cuda {

/// The greatest score and the sum of e^(score - greatest), of a block of keys or a line.
struct SoftmaxPart {
    float greatest, sum;
};

namespace {

constexpr float kHidden = -INFINITY;

/// The keys of a block that a query may see, hidden ones among them.
__device__ inline Visible visible_keys(const FactoredLines& lines, std::int64_t query, std::int64_t begin, int n_keys) {
    const Sight sight{lines.seq_q, lines.seq_k, lines.is_causal, lines.window};
    const Range keys = sight.keys_of(query);
    return {clipped(keys.begin - begin, n_keys), clipped(keys.end - begin, n_keys)};
}

/// A line's share of the block: its scores go into the result, what they come to is returned to every lane.
__device__ inline SoftmaxPart finish_line(const FactoredLines& lines, const float* products, Visible visible,
                                          std::int64_t begin, int n_keys, float* out /* [n_keys] */) {
    constexpr int kOfLane = kKeysOfBlock / kLanes;
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    const auto is_visible = [&](int i) {
        return i * kLanes + lane >= visible.first && i * kLanes + lane < visible.last;
    };
    float scores[kOfLane];
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) scores[i] = is_visible(i) ? lines.scale * products[i * kLanes + lane] : kHidden;
    if (lines.softcap != 0) {
#pragma unroll
        for (int i = 0; i < kOfLane; ++i) {
            if (is_visible(i)) scores[i] = lines.softcap * tanhf(scores[i] / lines.softcap);
        }
    }
    if (lines.hidden != nullptr) {
#pragma unroll
        for (int i = 0; i < kOfLane; ++i) {
            if (is_visible(i) && lines.hidden[begin + i * kLanes + lane] != 0) scores[i] = kHidden;
        }
    }
    float greatest = kHidden;
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) {
        if (i * kLanes + lane < n_keys) out[i * kLanes + lane] = scores[i];
        greatest = scores[i] > greatest ? scores[i] : greatest;  // NaN is no greatest, but makes the sum NaN
    }
#pragma unroll
    for (int other = 1; other < kLanes; other *= 2) {
        const float theirs = __shfl_xor_sync(kAllLanes, greatest, other);
        greatest = theirs > greatest ? theirs : greatest;
    }
    const float base = greatest == kHidden ? 0.0F : greatest;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) sum += expf(scores[i] - base);
#pragma unroll
    for (int other = 1; other < kLanes; other *= 2) sum += __shfl_xor_sync(kAllLanes, sum, other);
    return {greatest, sum};
}

/// Fills in what a bundle is made of but for items and products.
template <int kLines>
__device__ void set_up(const FactoredLines& lines, std::int64_t block, const HeadRun& run, std::int64_t first_line,
                       int n_lines, Bundle<kLines>& bundle) {
    const std::int64_t begin = block * kKeysOfBlock;
    const int n_keys = clipped(lines.seq_k - begin, kKeysOfBlock);
    if (threadIdx.x == 0) {
        bundle.n_lines = n_lines;
        bundle.n_keys = n_keys;
        bundle.block = block;
        bundle.keys = lines.key.data + run.key_head * lines.key.head_stride + begin * lines.key.query_stride;
    }
    if (static_cast<int>(threadIdx.x) >= n_lines) return;
    const auto [position, head] = divided(first_line + threadIdx.x, run.n);
    const std::int64_t listed = lines.order[run.first + head];
    const std::int64_t query = lines.positions[position];
    bundle.line[threadIdx.x] = listed * lines.n_positions.value + position;
    bundle.query[threadIdx.x] =
        lines.query.data + lines.heads[listed] * lines.query.head_stride + query * lines.query.query_stride;
    bundle.visible[threadIdx.x] = visible_keys(lines, query, begin, n_keys);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kScoreBlocks = 2;  // of 8 lines and a multiprocessor, at least: with 3, ptxas 13.5 spills
#else
constexpr int kScoreBlocks = 3;
#endif

template <int kLines>
__global__ void __launch_bounds__(kScoreThreads, kLines == kFewLines ? 4 : kScoreBlocks)
    factored_scores_kernel(FactoredLines lines, Divisor n_bundles, Divisor n_bundles_of_run, std::int64_t head_stride,
                           float* out /* [listed head] at head_stride, [position, key] */,
                           SoftmaxPart* parts /* [line, block of keys] */) {
    __shared__ Bundle<kLines> bundle;
    const std::int64_t n_blocks = quotient_up(lines.seq_k, kKeysOfBlock);
    for_each_unit(n_bundles.value * n_blocks, [&](std::int64_t unit) {
        const auto [block, bundle_of_block] = divided(unit, n_bundles);  // bundles of the same keys follow each other
        const auto [run_of_bundle, in_run] = divided(bundle_of_block, n_bundles_of_run);
        const HeadRun run = lines.runs[run_of_bundle];
        const std::int64_t first_line = in_run * kLines;
        const int n_lines = clipped(run.n.value * lines.n_positions.value - first_line, kLines);
        if (n_lines == 0) return;  // other runs have more
        set_up(lines, block, run, first_line, n_lines, bundle);
        __syncthreads();
        make_products(lines, bundle);
        __syncthreads();
        for (int l = static_cast<int>(threadIdx.x) / kLanes; l < bundle.n_lines; l += kScoreThreads / kLanes) {
            const std::int64_t line = bundle.line[l];
            const auto [head, position] = divided(line, lines.n_positions);
            const std::int64_t begin = bundle.block * kKeysOfBlock;
            float* const row = out + head * head_stride + position * lines.seq_k;
            const SoftmaxPart part =
                finish_line(lines, bundle.products[l], bundle.visible[l], begin, bundle.n_keys, row + begin);
            if (threadIdx.x % kLanes == 0) parts[line * n_blocks + bundle.block] = part;
        }
        __syncthreads();  // before the next bundle overwrites this one
    });
}

}  // namespace
}  // namespace attncache::cuda
