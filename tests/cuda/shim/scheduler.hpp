// How the runtime runs a launch, and how checks end one.
#pragma once

#include <string>

#include "cuda_runtime.h"

namespace shim {

/// Orders of threads and blocks from here on.
void seed(unsigned value);
/// Runs all blocks; returns what went wrong, or nothing.
std::string run_grid(const Work& work, dim3 grid, dim3 block);

}  // namespace shim
