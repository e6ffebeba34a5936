// Scores of queries and keys, and for each block of 256 keys the greatest score and the sum of e^(score - greatest).
//
// Floor: a bundle is up to 8 lines (a head and a query each) that read the same key head, and the keys are read once a
// bundle, so
//   bytes = bundles * seq_k * head_dim * item + lines * seq_k * 4 / bandwidth.
// Heads in groups of 8 on one query, or 8 queries of one head, so cost one pass over the keys. Invisible blocks are not
// read.
//
// Shape: blocks of 128 threads for each (bundle, 256 keys). Eight threads share a key: they read its items side by
// side, 16 bytes each, keep the products of all 8 lines in registers, and add them up by shuffles in one fixed order. A
// thread has four keys at a time, so that each query item it loads serves four products. Then a warp takes a line:
// scale, cap, mask, the greatest, the sum.
#pragma once

#include <cmath>

#include "block.cuh"
#include "items.cuh"
#include "selection.cuh"

namespace attncache::cuda {

constexpr int kKeysOfBlock = 256;
constexpr int kLinesOfBundle = 8;

/// Listed heads that read one key head: `n` entries of the list's order from `first` on.
struct HeadRun {
    std::int64_t key_head, first;
    Divisor n;
};

/// The lines of some positions of one batch item, in the order [listed head, position], and what they are made of.
struct FactoredLines {
    Layer key;             // [key head, key, item] of the batch item
    const float* queries;  // [line, item]
    const HeadRun* runs;
    const std::int64_t* order;      // listed heads, those of a run together
    const std::int64_t* heads;      // [listed head]
    const std::int64_t* positions;  // [position]
    const std::uint8_t* hidden;     // [key] or nullptr
    const float* sinks;             // [head] or nullptr
    const float* lse;               // [head, query] or nullptr
    Divisor n_positions;
    std::int64_t n_heads, seq_q, seq_k, head_dim, window;
    float scale, softcap;
    bool is_causal;
};

/// The greatest score and the sum of e^(score - greatest), of a block of keys or a line.
struct SoftmaxPart {
    float greatest, sum;
};

namespace {

constexpr int kScoreThreads = 128;
constexpr int kThreadsOfKey = 8;
constexpr int kKeysOfThread = 4;
constexpr int kKeysOfStep = kScoreThreads / kThreadsOfKey * kKeysOfThread;
constexpr int kScoreBlocks =
    3;  // of a multiprocessor, at least, so at most 168 registers: 12 warps with 2 KB in flight
constexpr float kHidden = -INFINITY;

/// The keys that a query sees, as far as they lie in a block: first..last-1, counted from the block's first.
struct Visible {
    int first, last;
};

/// A bundle as its block sees it.
struct Bundle {
    std::int64_t line[kLinesOfBundle];
    Visible visible[kLinesOfBundle];
    float scores[kLinesOfBundle][kKeysOfBlock];
};

__device__ inline int clipped(std::int64_t position, std::int64_t n) {
    return static_cast<int>(position < 0 ? 0 : position < n ? position : n);
}

/// The last query is aligned with the last key; hidden keys are among these.
__device__ inline Visible visible_keys(const FactoredLines& lines, std::int64_t query, std::int64_t begin, int n_keys) {
    const std::int64_t here = query + lines.seq_k - lines.seq_q;
    const std::int64_t window = lines.window == 0 ? lines.seq_k + lines.seq_q : lines.window;
    const std::int64_t first = lines.is_causal ? here - window + 1 : here - window;
    const std::int64_t last = lines.is_causal ? here + 1 : here + window + 1;
    return {clipped(first - begin, n_keys), clipped(last - begin, n_keys)};
}

/// The run of a bundle; `bundle` becomes its number in the run.
__device__ inline HeadRun run_of(const FactoredLines& lines, std::int64_t& bundle) {
    const HeadRun* run = lines.runs;
    while (true) {
        const std::int64_t n_bundles = quotient_up(run->n.value * lines.n_positions.value, kLinesOfBundle);
        if (bundle < n_bundles) return *run;
        bundle -= n_bundles;
        ++run;
    }
}

/// Products of this thread's keys with all lines: keys begin + step + 16 r + thread / 8, items thread % 8 and so on.
template <int kCount, class Item>
__device__ void multiply(const FactoredLines& lines, const Bundle& bundle, int n_lines, const Item* keys, int step,
                         int n_keys, float (&sums)[kKeysOfThread][kLinesOfBundle]) {
    const int first_key = step + static_cast<int>(threadIdx.x) / kThreadsOfKey;
    const int last_key = n_keys - 1;
    const std::int64_t stride = lines.key.query_stride / static_cast<std::int64_t>(sizeof(Item));
    const Item* rows[kKeysOfThread];
#pragma unroll
    for (int r = 0; r < kKeysOfThread; ++r) {  // behind the last key, that key again: nobody looks at its scores
        const int key = first_key + r * (kKeysOfStep / kKeysOfThread);
        rows[r] = keys + (key < last_key ? key : last_key) * stride;
    }
    for (std::int64_t i = static_cast<int>(threadIdx.x) % kThreadsOfKey * kCount; i < lines.head_dim;
         i += kThreadsOfKey * kCount) {
        float items[kKeysOfThread][kCount];
#pragma unroll
        for (int r = 0; r < kKeysOfThread; ++r) read(rows[r] + i, items[r]);
#pragma unroll
        for (int l = 0; l < kLinesOfBundle; ++l) {
            if (l >= n_lines) continue;
            constexpr int kPart = kCount == 1 ? 1 : kWide<float>;
            const float* const query = lines.queries + bundle.line[l] * lines.head_dim + i;
#pragma unroll
            for (int c = 0; c < kCount; c += kPart) {
                float part[kPart];
                read(query + c, part);
#pragma unroll
                for (int r = 0; r < kKeysOfThread; ++r) {
#pragma unroll
                    for (int p = 0; p < kPart; ++p) sums[r][l] = fmaf(part[p], items[r][c + p], sums[r][l]);
                }
            }
        }
    }
}

/// Leaves the products of a step's keys and all lines in bundle.scores.
template <class Item>
__device__ void score_step(const FactoredLines& lines, Bundle& bundle, int n_lines, const Item* keys, int step,
                           int n_keys) {
    float sums[kKeysOfThread][kLinesOfBundle] = {};
    if (lines.key.is_wide) {
        multiply<kWide<Item>, Item>(lines, bundle, n_lines, keys, step, n_keys, sums);
    } else {
        multiply<1, Item>(lines, bundle, n_lines, keys, step, n_keys, sums);
    }
    const int of_key = static_cast<int>(threadIdx.x) % kThreadsOfKey;
#pragma unroll
    for (int r = 0; r < kKeysOfThread; ++r) {
        const int key = step + r * (kKeysOfStep / kKeysOfThread) + static_cast<int>(threadIdx.x) / kThreadsOfKey;
#pragma unroll
        for (int l = 0; l < kLinesOfBundle; ++l) {
            if (l >= n_lines) continue;
            float sum = sums[r][l];
#pragma unroll
            for (int other = 1; other < kThreadsOfKey; other *= 2) sum += __shfl_xor_sync(kAllLanes, sum, other);
            if (of_key == l) bundle.scores[l][key] = sum;
        }
    }
}

/// A line's share of the block: its scores go into the result, what they come to is returned to every lane.
__device__ inline SoftmaxPart finish_line(const FactoredLines& lines, const Bundle& bundle, int l, std::int64_t begin,
                                          int n_keys, float* out /* [n_keys] */) {
    constexpr int kOfLane = kKeysOfBlock / kLanes;
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    float scores[kOfLane];
    float greatest = kHidden;
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) {
        const int key = i * kLanes + lane;
        scores[i] = kHidden;
        if (key >= n_keys) continue;
        const bool is_visible = key >= bundle.visible[l].first && key < bundle.visible[l].last;
        if (is_visible && !(lines.hidden != nullptr && lines.hidden[begin + key] != 0)) {
            scores[i] = lines.scale * bundle.scores[l][key];
            if (lines.softcap != 0) scores[i] = lines.softcap * tanhf(scores[i] / lines.softcap);
        }
        out[key] = scores[i];
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

__global__ void __launch_bounds__(kScoreThreads, kScoreBlocks)
    factored_scores_kernel(FactoredLines lines, Divisor n_bundles, std::int64_t head_stride,
                           float* out /* [listed head] at head_stride, [position, key] */,
                           SoftmaxPart* parts /* [line, block of keys] */) {
    __shared__ Bundle bundle;
    const std::int64_t n_blocks = quotient_up(lines.seq_k, kKeysOfBlock);
    for_each_unit(n_bundles.value * n_blocks, [&](std::int64_t unit) {
        const auto [block, bundle_of_block] = divided(unit, n_bundles);  // bundles of the same keys follow each other
        const std::int64_t begin = block * kKeysOfBlock;
        const int n_keys = clipped(lines.seq_k - begin, kKeysOfBlock);
        std::int64_t in_run = bundle_of_block;
        const HeadRun run = run_of(lines, in_run);
        const std::int64_t first_line = in_run * kLinesOfBundle;
        const int n_lines = clipped(run.n.value * lines.n_positions.value - first_line, kLinesOfBundle);
        if (static_cast<int>(threadIdx.x) < n_lines) {
            const std::int64_t line = first_line + threadIdx.x;
            const auto [position, head] = divided(line, run.n);
            bundle.line[threadIdx.x] = lines.order[run.first + head] * lines.n_positions.value + position;
            bundle.visible[threadIdx.x] = visible_keys(lines, lines.positions[position], begin, n_keys);
        }
        __syncthreads();
        Visible any{n_keys, 0};
        for (int l = 0; l < n_lines; ++l) {
            const Visible seen = bundle.visible[l];
            if (seen.first >= seen.last) continue;
            any = {any.first < seen.first ? any.first : seen.first, any.last > seen.last ? any.last : seen.last};
        }
        with_item(lines.key.dtype, [&](auto item) {
            using Item = decltype(item);
            const auto* const keys = reinterpret_cast<const Item*>(
                lines.key.data + run.key_head * lines.key.head_stride + begin * lines.key.query_stride);
            for (int step = any.first / kKeysOfStep * kKeysOfStep; step < any.last; step += kKeysOfStep) {
                score_step(lines, bundle, n_lines, keys, step, n_keys);
            }
        });
        __syncthreads();
        for (int l = static_cast<int>(threadIdx.x) / kLanes; l < n_lines; l += kScoreThreads / kLanes) {
            const std::int64_t line = bundle.line[l];
            const auto [head, position] = divided(line, lines.n_positions);
            float* const row = out + head * head_stride + position * lines.seq_k;
            const SoftmaxPart part = finish_line(lines, bundle, l, begin, n_keys, row + begin);
            if (threadIdx.x % kLanes == 0) parts[line * n_blocks + block] = part;
        }
        __syncthreads();  // before the next bundle overwrites this one
    });
}

}  // namespace
}  // namespace attncache::cuda
