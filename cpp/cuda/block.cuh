// Sums over the threads of a block, in one fixed order.
#pragma once

#include <cuda_runtime.h>

namespace attncache::cuda {

constexpr int kLanes = 32;
constexpr unsigned kAllLanes = 0xffffffff;

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
