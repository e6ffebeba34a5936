// The kernels of the active SIMD level, for queries and the store. Fetched once per query, outside its loops.
#pragma once

#include "../kernels/kernel_table.hpp"

namespace attncache {

/// The table that `simd::use` chose last.
const KernelTable& active_kernels();

}  // namespace attncache
