// What the threads of a block, or the lanes of a warp, find out together: the same whatever their order.
#pragma once

#include <cuda_runtime.h>

namespace attncache::cuda {

constexpr int kLanes = 32;
constexpr unsigned kAllLanes = 0xffffffff;

/// The greatest of the values of a warp, whose lanes all call it.
__device__ inline unsigned greatest_of_lanes(unsigned value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_max_sync(kAllLanes, value);
#else
#pragma unroll
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
        const unsigned other = __shfl_xor_sync(kAllLanes, value, lanes);
        value = other > value ? other : value;
    }
    return value;
#endif
}

__device__ inline unsigned least_of_lanes(unsigned value) { return ~greatest_of_lanes(~value); }

/// The sum of `count` over the threads before this one. All threads of a block of kThreads call it; `of_warps` is
/// shared memory that no thread has used since the last barrier, nor uses again before the next.
template <int kThreads>
__device__ inline unsigned sum_before(unsigned count, unsigned (&of_warps)[kThreads / kLanes]) {
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    const int warp = static_cast<int>(threadIdx.x) / kLanes;
    unsigned sum = count;
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2) {
        const unsigned other = __shfl_up_sync(kAllLanes, sum, distance);
        if (lane >= distance) sum += other;
    }
    if (lane == kLanes - 1) of_warps[warp] = sum;
    __syncthreads();
    unsigned before = sum - count;
#pragma unroll
    for (int w = 0; w < kThreads / kLanes; ++w) before += w < warp ? of_warps[w] : 0;
    return before;
}

}  // namespace attncache::cuda
