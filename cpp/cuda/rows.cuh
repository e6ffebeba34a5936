// Rows for other launchers: those of factored layers read their queries and average their heads with them.
#pragma once

#include "launch.cuh"

namespace attncache::cuda {

/// Enqueues what attncache_cuda_rows says; throws Failure.
void rows(const attncache_cuda_selection& selection, const std::int64_t* positions, std::int64_t n_positions,
          float* device_out, cudaStream_t stream);

}  // namespace attncache::cuda
