// Top-k of long lines and for large k: a radix selection that gives the same answer every time. top_k.cu has the rest.
//
// Floor: a line is read once from memory, item * length bytes / bandwidth, and k results of 12 bytes are written. The
// passes after the first find a line in the caches as long as the lines of all blocks fit there; a line has at most
// six.
//
// Shape: a block of 256 threads for each line, blocks stride over further lines. A warp owns a contiguous part of the
// line, so that what it finds is in the order of the positions and no pass needs more than one barrier.
//
// How: weights become keys, unsigned numbers in the same order. Four passes over 8 bits each, from the top, count the
// keys that share the bits found so far, and find the bits of the k-th greatest; they end early if what is left is
// taken as a whole. Two more passes count and collect, in the order of positions, all greater keys and as many equal
// ones as are wanted: the first, which are the lower positions. The k found are then sorted by a
// stable radix sort in device memory, 8 bits a pass. Counts are integers and every place follows from counts, so no
// order of threads shows.
#include "top_k.cuh"

#include "block.cuh"

namespace attncache::cuda {
namespace {

constexpr int kThreads = 256;  // also the number of digits, so that each thread counts one
constexpr int kWarps = kThreads / kLanes;
constexpr int kDigitBits = 8;
constexpr int kBlocksPerMultiprocessor = 2;  // at least, so at most 128 registers: 16 warps with 4 reads in flight each

/// A key and its position.
using Ranked = std::uint64_t;

__device__ inline Ranked ranked(unsigned key, std::int64_t position) {
    return static_cast<Ranked>(key) << 32 | static_cast<unsigned>(position);
}

__device__ inline std::int64_t position_of(Ranked item) { return static_cast<unsigned>(item); }

/// The part of n items that a warp owns.
struct Part {
    std::int64_t begin, end;
};

__device__ inline Part part_of_warp(std::int64_t n) {
    const std::int64_t warp = threadIdx.x / kLanes;
    const std::int64_t each = quotient_up(quotient_up(n, kWarps), kLanes) * kLanes;
    const std::int64_t begin = warp * each < n ? warp * each : n;
    return {begin, begin + each < n ? begin + each : n};
}

/// What the k heaviest have in common: of the keys that agree with `bits` under `mask`, the first `wanted` are taken,
/// and all that are greater there.
struct Threshold {
    unsigned mask, bits;
    std::int64_t wanted;
};

struct Shared {
    unsigned counts[kWarps][kThreads];  // of digits, or the places of the next item of a digit
    unsigned of_warps[kWarps];
    Threshold threshold;
    bool is_found;
};

__device__ inline void clear_counts(Shared& shared) {
    for (int w = 0; w < kWarps; ++w) shared.counts[w][threadIdx.x] = 0;
    __syncthreads();
}

/// How many keys have the digit of this thread; digits count from the top, so thread 0 has the greatest.
__device__ inline unsigned count_of_digit(const Shared& shared) {
    unsigned count = 0;
    for (int w = 0; w < kWarps; ++w) count += shared.counts[w][threadIdx.x];
    return count;
}

__device__ inline unsigned digit_of(unsigned key, int shift) { return ~(key >> shift) & (kThreads - 1); }

template <class Item>
__device__ inline void find_threshold(const Item* line, std::int64_t length, std::int64_t k, Shared& shared) {
    const Part part = part_of_warp(length);
    const int warp = static_cast<int>(threadIdx.x) / kLanes;
    if (threadIdx.x == 0) {
        shared.threshold = {0, 0, k};
        shared.is_found = k == length;
    }
    __syncthreads();
#pragma unroll 1
    for (int shift = 32 - kDigitBits; shift >= 0 && !shared.is_found; shift -= kDigitBits) {
        const Threshold found = shared.threshold;
        clear_counts(shared);
#pragma unroll 4
        for (std::int64_t i = part.begin + threadIdx.x % kLanes; i < part.end; i += kLanes) {
            const unsigned key = key_of(weight_at(line, i));
            if ((key & found.mask) == found.bits) atomicAdd(&shared.counts[warp][digit_of(key, shift)], 1U);
        }
        __syncthreads();
        const unsigned count = count_of_digit(shared);
        const std::int64_t before = sum_before<kThreads>(count, shared.of_warps);
        if (before < found.wanted && found.wanted <= before + count) {
            const unsigned digit = static_cast<unsigned>(kThreads - 1) - threadIdx.x;
            shared.threshold = {found.mask | static_cast<unsigned>(kThreads - 1) << shift, found.bits | digit << shift,
                                found.wanted - before};
            shared.is_found = found.wanted - before == count;
        }
        __syncthreads();
    }
}

/// Writes the k heaviest in the order of their positions; the next barrier shows them to the block.
template <class Item>
__device__ inline void collect(const Item* line, std::int64_t length, Shared& shared, Ranked* items /* [k] */) {
    const Threshold threshold = shared.threshold;
    const Part part = part_of_warp(length);
    const unsigned lane = threadIdx.x % kLanes;
    unsigned n_greater = 0;
    unsigned n_equal = 0;
#pragma unroll 4
    for (std::int64_t i = part.begin + lane; i < part.end; i += kLanes) {
        const unsigned shared_bits = key_of(weight_at(line, i)) & threshold.mask;
        n_greater += shared_bits > threshold.bits;
        n_equal += shared_bits == threshold.bits;
    }
    const unsigned greater_before = sum_before<kThreads>(n_greater, shared.of_warps);
    __syncthreads();  // before the next sum overwrites this one's parts
    const unsigned equal_before = sum_before<kThreads>(n_equal, shared.of_warps);
    // What is before the first lane is before the warp.
    std::int64_t greater = __shfl_sync(kAllLanes, greater_before, 0);
    std::int64_t equal = __shfl_sync(kAllLanes, equal_before, 0);
    for (std::int64_t first = part.begin; first < part.end; first += kLanes) {
        const std::int64_t i = first + lane;
        const unsigned key = i < part.end ? key_of(weight_at(line, i)) : 0;
        const bool is_greater = i < part.end && (key & threshold.mask) > threshold.bits;
        const bool is_equal = i < part.end && (key & threshold.mask) == threshold.bits;
        const unsigned greater_lanes = __ballot_sync(kAllLanes, is_greater);
        const unsigned equal_lanes = __ballot_sync(kAllLanes, is_equal);
        const unsigned lower = (1U << lane) - 1;
        const std::int64_t my_greater = greater + __popc(greater_lanes & lower);
        const std::int64_t my_equal = equal + __popc(equal_lanes & lower);
        const std::int64_t equal_taken = my_equal < threshold.wanted ? my_equal : threshold.wanted;
        if (is_greater || (is_equal && my_equal < threshold.wanted)) {
            items[my_greater + equal_taken] = ranked(key, i);
        }
        greater += __popc(greater_lanes);
        equal += __popc(equal_lanes);
    }
}

/// Makes of the counts of digits the places at which each warp puts its first item of each digit.
__device__ inline void place_digits(Shared& shared) {
    unsigned place = sum_before<kThreads>(count_of_digit(shared), shared.of_warps);
    for (int w = 0; w < kWarps; ++w) {
        const unsigned count = shared.counts[w][threadIdx.x];
        shared.counts[w][threadIdx.x] = place;
        place += count;
    }
    __syncthreads();
}

/// One stable pass: from `items` to `sorted` by one digit of the key, greatest first.
__device__ inline void sort_by_digit(const Ranked* items, Ranked* sorted, std::int64_t k, int shift, Shared& shared) {
    const Part part = part_of_warp(k);
    const unsigned lane = threadIdx.x % kLanes;
    unsigned (&places)[kThreads] = shared.counts[threadIdx.x / kLanes];
    const auto digit_at = [=](Ranked item) { return digit_of(static_cast<unsigned>(item >> 32), shift); };
    clear_counts(shared);
    for (std::int64_t i = part.begin + lane; i < part.end; i += kLanes) atomicAdd(&places[digit_at(items[i])], 1U);
    __syncthreads();
    place_digits(shared);
    for (std::int64_t first = part.begin; first < part.end; first += kLanes) {
        const bool is_item = first + lane < part.end;
        const Ranked item = is_item ? items[first + lane] : 0;
        const unsigned digit = is_item ? digit_at(item) : kThreads;  // lanes without an item are of one mind
        const unsigned same = __match_any_sync(kAllLanes, digit);
        const unsigned before = __popc(same & ((1U << lane) - 1));
        if (is_item) sorted[places[digit] + before] = item;
        __syncwarp();
        if (is_item && before == 0) places[digit] += __popc(same);
        __syncwarp();  // the vote that comes next orders no memory
    }
    __syncthreads();
}

__device__ inline void sort(Ranked* items /* [k] */, Ranked* scratch /* [k] */, std::int64_t k, Shared& shared) {
#pragma unroll 1
    for (int shift = 0; shift < 32; shift += 2 * kDigitBits) {
        sort_by_digit(items, scratch, k, shift, shared);
        sort_by_digit(scratch, items, k, shift + kDigitBits, shared);
    }
}

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    radix_kernel(RankedLines lines, std::int64_t k, Ranked* scratch /* [block, k] */,
                 std::int64_t* positions /* [line, k] */, float* weights /* [line, k] */) {
    __shared__ Shared memory;
    Shared& shared = memory;  // g++ does not see the use of a static variable in a generic lambda
    for_each_unit(lines.n, [&](std::int64_t index) {
        auto* const items = reinterpret_cast<Ranked*>(positions + index * k);  // until they are positions
        with_line(lines, index, [&](const auto* line) {
            find_threshold(line, lines.length, k, shared);
            collect(line, lines.length, shared, items);
        });
        sort(items, scratch + blockIdx.x * k, k, shared);
        with_line(lines, index, [&](const auto* line) {
            for (std::int64_t i = threadIdx.x; i < k; i += kThreads) {
                const std::int64_t position = position_of(items[i]);
                positions[index * k + i] = position;
                weights[index * k + i] = weight_at(line, position);
            }
        });
    });
}

}  // namespace

void top_k_by_radix(const RankedLines& lines, std::int64_t k, std::int64_t* device_positions, float* device_weights,
                    cudaStream_t stream) {
    const std::int64_t n_fit = quotient_up(kScratchBytes, k * static_cast<std::int64_t>(sizeof(Ranked)));
    const std::int64_t n_most = n_fit < kMaxBlocks ? n_fit : kMaxBlocks;
    const std::int64_t n_blocks = lines.n < n_most ? lines.n : n_most;
    const DeviceMemory scratch(product(n_blocks, k, sizeof(Ranked)), stream);
    launch(radix_kernel, n_blocks, dim3(kThreads), stream, lines, k, scratch.as<Ranked>(), device_positions,
           device_weights);
}

}  // namespace attncache::cuda
