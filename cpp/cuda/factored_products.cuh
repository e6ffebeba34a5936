// Products of queries and keys: for the block of threads that has a bundle of lines and 256 keys (factored_scores.cuh).
//
// Eight threads share eight keys: each reads 16 bytes of every one, so a warp has 4 KB in flight, and multiplies them
// with the items of all lines, which lie in shared memory: one read of it serves 8 keys. The eight threads then add up
// their shares in one fixed order. Each exchange halves the sums that a thread has, so that it ends with all lines of
// one key.
#pragma once

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

namespace {

constexpr int kScoreThreads = 128;
constexpr int kThreadsOfKey = 8;  // and keys of a thread
constexpr int kItemsOfChunk = 256;

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
    int n_lines, n_keys;  // that there are
    std::int64_t block;   // of keys
    const std::byte* keys;
    std::int64_t line[kLines];
    const std::byte* query[kLines];
    Visible visible[kLines];
    alignas(16) float items[kLines][kPlaces];  // of the queries, a chunk
    float products[kLines][kKeysOfBlock];
};

__device__ inline int clipped(std::int64_t position, std::int64_t n) {
    return static_cast<int>(position < 0 ? 0 : position < n ? position : n);
}

/// The keys that any line of a bundle sees.
template <int kLines>
__device__ Visible seen_by_any(const Bundle<kLines>& bundle) {
    Visible any{bundle.n_keys, 0};
    for (int l = 0; l < bundle.n_lines; ++l) {
        const Visible seen = bundle.visible[l];
        if (seen.first >= seen.last) continue;
        any = {any.first < seen.first ? any.first : seen.first, any.last > seen.last ? any.last : seen.last};
    }
    return any;
}

/// Leaves items `first` and so on of all queries in bundle.items; 0 for lines that the bundle lacks.
template <int kLines>
__device__ void copy_chunk(const FactoredLines& lines, Bundle<kLines>& bundle, std::int64_t first) {
    const int n_items = clipped(lines.head_dim - first, kItemsOfChunk);
    with_item(lines.query.dtype, [&](auto item) {
        using Item = decltype(item);
#pragma unroll 1
        for (int i = static_cast<int>(threadIdx.x); i < n_items; i += kScoreThreads) {
#pragma unroll
            for (int l = 0; l < kLines; ++l) {
                float value[1] = {0.0F};
                if (l < bundle.n_lines) read(reinterpret_cast<const Item*>(bundle.query[l]) + first + i, value);
                bundle.items[l][place_of(i)] = value[0];
            }
        }
    });
}

/// Reads one, two or four query items at once.
template <int kPart>
__device__ inline void read_part(const float* items, float (&part)[kPart]) {
    if constexpr (kPart == 1) {
        part[0] = *items;
    } else if constexpr (kPart == 2) {
        const float2 two = *reinterpret_cast<const float2*>(items);
        part[0] = two.x, part[1] = two.y;
    } else {
        const float4 four = *reinterpret_cast<const float4*>(items);
        part[0] = four.x, part[1] = four.y, part[2] = four.z, part[3] = four.w;
    }
}

/// Adds the products of a chunk, items `first` and so on: of this thread's keys and all lines, items thread % 8 and so
/// on.
template <int kCount, class Item, int kLines>
__device__ void multiply(const FactoredLines& lines, const Bundle<kLines>& bundle, int first_key, std::int64_t first,
                         float (&sums)[kThreadsOfKey * kLines] /* [key, line] */) {
    constexpr int kPart = kCount == kWide<half> ? 2 : kCount;  // of 16 bits few at a time: each is widened to 32
    const std::int64_t stride = lines.key.query_stride;
    const int last_key = bundle.n_keys - 1;
    const std::byte* const row = bundle.keys + (first_key < last_key ? first_key : last_key) * stride +
                                 first * static_cast<std::int64_t>(sizeof(Item));
    const int n_items = clipped(lines.head_dim - first, kItemsOfChunk);
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) % kThreadsOfKey * kCount; i < n_items; i += kThreadsOfKey * kCount) {
        float items[kThreadsOfKey][kCount];
        const std::byte* at = row + i * static_cast<int>(sizeof(Item));
#pragma unroll
        for (int r = 0; r < kThreadsOfKey; ++r) {
            read(reinterpret_cast<const Item*>(at), items[r]);
            if (first_key + r < last_key) at += stride;  // nobody looks at products behind the last key
        }
#pragma unroll
        for (int c = 0; c < kCount; c += kPart) {
            const int place = place_of(i + c);
#pragma unroll
            for (int l = 0; l < kLines; ++l) {
                float part[kPart];
                read_part(&bundle.items[l][place], part);
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

/// Leaves the products of all lines and the keys that any of them sees, and of their neighbours, in bundle.products.
template <int kLines>
__device__ void make_products(const FactoredLines& lines, Bundle<kLines>& bundle) {
    const Visible any = seen_by_any(bundle);
    const int first_step = any.first / kScoreThreads * kScoreThreads;
#pragma unroll 1
    for (int step = first_step; step < any.last; step += kScoreThreads) {
        const int first_key = step + static_cast<int>(threadIdx.x) / kThreadsOfKey * kThreadsOfKey;
        float sums[kThreadsOfKey * kLines] = {};
#pragma unroll 1
        for (std::int64_t first = 0; first < lines.head_dim; first += kItemsOfChunk) {
            const bool is_there = step > first_step && lines.head_dim <= kItemsOfChunk;
            if (!is_there) {
                __syncthreads();  // before the next chunk overwrites this one
                copy_chunk(lines, bundle, first);
                __syncthreads();
            }
            with_item(lines.key.dtype, [&](auto item) {
                using Item = decltype(item);
                if (lines.key.is_wide) {
                    multiply<kWide<Item>, Item>(lines, bundle, first_key, first, sums);
                } else {
                    multiply<1, Item>(lines, bundle, first_key, first, sums);
                }
            });
        }
        add_up(sums);
#pragma unroll
        for (int l = 0; l < kLines; ++l) bundle.products[l][step + static_cast<int>(threadIdx.x)] = sums[l];
    }
}

}  // namespace
}  // namespace attncache::cuda
