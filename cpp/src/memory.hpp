// Memory for layers and indexes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace attncache {

/// Uninitialised memory, 64-byte aligned; a buffer of several megabytes asks the system for huge pages, which cost a
/// fraction of the page faults and of the address translation of small ones. Throws std::bad_alloc.
std::shared_ptr<std::byte> allocate(std::int64_t n_bytes);

/// From this size on, a result is written past the caches: it would push everything else out and not stay itself.
constexpr std::int64_t kStreamedBytes = 16 * 1024 * 1024;

}  // namespace attncache
