// How many threads large work is split over.
#pragma once

namespace attncache {

/// The number of threads, the caller included, that large work may use.
///
/// Starts as ATTNCACHE_NUM_THREADS if set, otherwise as the CPUs this process may run on, limited by the cgroup's
/// CPU quota where there is one.
int num_threads();

/// Sets it for the whole process. Throws std::invalid_argument if `n` is below 1.
void set_num_threads(int n);

}  // namespace attncache
