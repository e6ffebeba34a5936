// Scores of queries and keys, and for each block of 256 keys the greatest score and the sum of e^(score - greatest).
//
// Floor: a bundle is up to 8 lines (a head and a query each) that read the same key head, and the keys are read once a
// bundle, from memory for the first and from the L2 cache for the bundles that follow it, so
//   bytes = key heads * seq_k * head_dim * item + lines * seq_k * 4 / bandwidth, while a line costs less than its keys:
//   products = lines * seq_k * head_dim / fused products a second.
// Invisible blocks are not read.
//
// Shape: blocks of 128 threads for each (bundle, 256 keys). Eight threads share eight keys: each reads 16 bytes of
// every one, a quarter of 4 KB that a warp has in flight, and multiplies them with the items of all lines, which lie in
// shared memory: one read of it serves 8 keys. The eight threads then add up their shares in one fixed order, each
// exchange halving the sums that a thread has, so that a thread ends with all lines of one key. Then a warp takes a
// line: scale, cap, mask, the greatest, the sum. Bundles of up to 4 lines, as one query has them, take half the
// registers: 16 warps on a multiprocessor have 64 KB in flight, 12 warps of 8 lines 48 KB.
#pragma once

#include <cmath>

#include "block.cuh"
#include "items.cuh"
#include "selection.cuh"

namespace attncache::cuda {

constexpr int kKeysOfBlock = 256;
constexpr int kLinesOfBundle = 8;
constexpr int kFewLines = 4;  // if no key head has more, bundles are made for as many

/// Listed heads that read one key head: `n` entries of the list's order from `first` on.
struct HeadRun {
    std::int64_t key_head, first;
    Divisor n;
};

/// The lines of some positions of one batch item, in the order [listed head, position], and what they are made of.
struct FactoredLines {
    Layer query;  // [head, query, item] of the batch item
    Layer key;    // [key head, key, item]
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
constexpr int kThreadsOfKey = 8;  // and keys of a thread
constexpr int kItemsOfChunk = 256;
constexpr float kHidden = -INFINITY;

/// The keys that a query sees, as far as they lie in a block: first..last-1, counted from the block's first.
struct Visible {
    int first, last;
};

/// Where a query item lies in its line: fours of items 8 apart side by side, so that eight threads that read 16 bytes
/// each, of every second four or of every one, reach all banks of shared memory.
__device__ inline int place_of(int item) {
    constexpr int kOfSecondFours = 48;
    constexpr int kOfNext = 80;
    return item / 64 * kOfNext + item % 8 / 4 * kOfSecondFours + item % 64 / 8 * 4 + item % 4;
}
constexpr int kPlaces = kItemsOfChunk / 64 * 80;

/// A bundle as its block sees it.
template <int kLines>
struct Bundle {
    std::int64_t line[kLines];
    const std::byte* query[kLines];
    Visible visible[kLines];
    alignas(16) float items[kLines][kPlaces];  // of the queries, a chunk
    float scores[kLines][kKeysOfBlock];
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

/// The keys that any line of a bundle sees.
template <int kLines>
__device__ Visible seen_by_any(const Bundle<kLines>& bundle, int n_lines, int n_keys) {
    Visible any{n_keys, 0};
    for (int l = 0; l < n_lines; ++l) {
        const Visible seen = bundle.visible[l];
        if (seen.first >= seen.last) continue;
        any = {any.first < seen.first ? any.first : seen.first, any.last > seen.last ? any.last : seen.last};
    }
    return any;
}

/// Leaves items `first` and so on of all queries in bundle.items; 0 for lines that the bundle lacks.
template <int kLines>
__device__ void copy_chunk(const FactoredLines& lines, Bundle<kLines>& bundle, int n_lines, std::int64_t first) {
    const int n_items = clipped(lines.head_dim - first, kItemsOfChunk);
    with_item(lines.query.dtype, [&](auto item) {
        using Item = decltype(item);
#pragma unroll 1
        for (int i = static_cast<int>(threadIdx.x); i < n_items; i += kScoreThreads) {
#pragma unroll
            for (int l = 0; l < kLines; ++l) {
                float value[1] = {0.0F};
                if (l < n_lines) read(reinterpret_cast<const Item*>(bundle.query[l]) + first + i, value);
                bundle.items[l][place_of(i)] = value[0];
            }
        }
    });
}

/// Adds the products of a chunk, items `first` and so on: of this thread's keys and all lines, items thread % 8 and so
/// on.
template <int kCount, class Item, int kLines>
__device__ void multiply(const FactoredLines& lines, const Bundle<kLines>& bundle, const std::byte* keys, int first_key,
                         int last_key, std::int64_t first, float (&sums)[kThreadsOfKey * kLines] /* [key, line] */) {
    constexpr int kPart = kCount == 1 ? 1 : kWide<float>;
    const std::int64_t stride = lines.key.query_stride;
    const int n_items = clipped(lines.head_dim - first, kItemsOfChunk);
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) % kThreadsOfKey * kCount; i < n_items; i += kThreadsOfKey * kCount) {
        float items[kThreadsOfKey][kCount];
#pragma unroll
        for (int r = 0; r < kThreadsOfKey; ++r) {  // behind the last key, that key again: nobody looks at its scores
            const int key = first_key + r < last_key ? first_key + r : last_key;
            read(reinterpret_cast<const Item*>(keys + key * stride) + first + i, items[r]);
        }
#pragma unroll
        for (int c = 0; c < kCount; c += kPart) {
            const int place = place_of(i + c);
#pragma unroll
            for (int l = 0; l < kLines; ++l) {
                float part[kPart];
                if constexpr (kPart == 1) {
                    part[0] = bundle.items[l][place];
                } else {
                    const float4 four = *reinterpret_cast<const float4*>(&bundle.items[l][place]);
                    part[0] = four.x, part[1] = four.y, part[2] = four.z, part[3] = four.w;
                }
#pragma unroll
                for (int r = 0; r < kThreadsOfKey; ++r) {
                    float& sum = sums[r * kLines + l];
#pragma unroll
                    for (int p = 0; p < kPart; ++p) sum = fmaf(part[p], items[r][c + p], sum);
                }
            }
        }
    }
}

/// Adds up what the eight threads of a key have, in one tree for every sum. Thread t is left with the t-th eighth.
template <int kOther = kThreadsOfKey / 2, int kSums>
__device__ void add_up(float (&sums)[kSums]) {
    constexpr int kHalf = kSums / kThreadsOfKey * kOther;
    const bool has_upper = (static_cast<int>(threadIdx.x) & kOther) != 0;
#pragma unroll
    for (int s = 0; s < kHalf; ++s) {
        const float theirs = has_upper ? sums[s] : sums[kHalf + s];
        const float mine = has_upper ? sums[kHalf + s] : sums[s];
        sums[s] = mine + __shfl_xor_sync(kAllLanes, theirs, kOther);
    }
    if constexpr (kOther > 1) add_up<kOther / 2>(sums);
}

/// Leaves the products of all lines and the keys that any of them sees, and of their neighbours, in bundle.scores.
template <int kLines>
__device__ void score(const FactoredLines& lines, Bundle<kLines>& bundle, int n_lines, const std::byte* keys,
                      int n_keys) {
    const Visible any = seen_by_any(bundle, n_lines, n_keys);
    const int first_step = any.first / kScoreThreads * kScoreThreads;
#pragma unroll 1
    for (int step = first_step; step < any.last; step += kScoreThreads) {
        const int first_key = step + static_cast<int>(threadIdx.x) / kThreadsOfKey * kThreadsOfKey;
        float sums[kThreadsOfKey * kLines] = {};
#pragma unroll 1
        for (std::int64_t first = 0; first < lines.head_dim; first += kItemsOfChunk) {
            if (step == first_step || lines.head_dim > kItemsOfChunk) {  // otherwise the one chunk is there
                __syncthreads();                                         // before the next chunk overwrites this one
                copy_chunk(lines, bundle, n_lines, first);
                __syncthreads();
            }
            with_item(lines.key.dtype, [&](auto item) {
                using Item = decltype(item);
                if (lines.key.is_wide) {
                    multiply<kWide<Item>, Item>(lines, bundle, keys, first_key, n_keys - 1, first, sums);
                } else {
                    multiply<1, Item>(lines, bundle, keys, first_key, n_keys - 1, first, sums);
                }
            });
        }
        add_up(sums);
#pragma unroll
        for (int l = 0; l < kLines; ++l) bundle.scores[l][step + static_cast<int>(threadIdx.x)] = sums[l];
    }
}

/// A line's share of the block: its scores go into the result, what they come to is returned to every lane.
__device__ inline SoftmaxPart finish_line(const FactoredLines& lines, const float* products, Visible visible,
                                          std::int64_t begin, int n_keys, float* out /* [n_keys] */) {
    constexpr int kOfLane = kKeysOfBlock / kLanes;
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    float scores[kOfLane];
    float greatest = kHidden;
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) {
        const int key = i * kLanes + lane;
        scores[i] = kHidden;
        if (key >= n_keys) continue;
        const bool is_visible = key >= visible.first && key < visible.last;
        if (is_visible && !(lines.hidden != nullptr && lines.hidden[begin + key] != 0)) {
            scores[i] = lines.scale * products[key];
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

template <int kLines>
__global__ void __launch_bounds__(kScoreThreads, kLines == kFewLines ? 4 : 3)
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
        const std::int64_t begin = block * kKeysOfBlock;
        const int n_keys = clipped(lines.seq_k - begin, kKeysOfBlock);
        if (static_cast<int>(threadIdx.x) < n_lines) {
            const auto [position, head] = divided(first_line + threadIdx.x, run.n);
            const std::int64_t listed = lines.order[run.first + head];
            const std::int64_t query = lines.positions[position];
            bundle.line[threadIdx.x] = listed * lines.n_positions.value + position;
            bundle.query[threadIdx.x] =
                lines.query.data + lines.heads[listed] * lines.query.head_stride + query * lines.query.query_stride;
            bundle.visible[threadIdx.x] = visible_keys(lines, query, begin, n_keys);
        }
        __syncthreads();
        const std::byte* const keys =
            lines.key.data + run.key_head * lines.key.head_stride + begin * lines.key.query_stride;
        score(lines, bundle, n_lines, keys, n_keys);
        __syncthreads();
        for (int l = static_cast<int>(threadIdx.x) / kLanes; l < n_lines; l += kScoreThreads / kLanes) {
            const std::int64_t line = bundle.line[l];
            const auto [head, position] = divided(line, lines.n_positions);
            float* const row = out + head * head_stride + position * lines.seq_k;
            const SoftmaxPart part =
                finish_line(lines, bundle.scores[l], bundle.visible[l], begin, n_keys, row + begin);
            if (threadIdx.x % kLanes == 0) parts[line * n_blocks + block] = part;
        }
        __syncthreads();  // before the next bundle overwrites this one
    });
}

}  // namespace
}  // namespace attncache::cuda
