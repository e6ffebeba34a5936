// Splits independent pieces of work over a small pool of threads.
#pragma once

#include <cstdint>
#include <functional>

namespace attncache {

/// Runs work(begin, end) over ranges that together cover 0..n once, on as many threads as pay for themselves.
///
/// `bytes_each` is about what one piece reads and writes: work of a few hundred KiB runs on the caller alone. Pieces
/// must write to disjoint places. The caller works too; if another thread is already using the pool, the caller does
/// it all alone rather than oversubscribe the machine. The first exception stops the rest and is rethrown here.
/// The caller's Watcher, if it has one, looks on; it can end the work by throwing.
void parallel_for(std::int64_t n, std::int64_t bytes_each,
                  const std::function<void(std::int64_t begin, std::int64_t end)>& work);

}  // namespace attncache
