// Memory for layers and indexes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace attncache {

/// Uninitialised memory, 64-byte aligned; a buffer of several megabytes asks the system for huge pages, which cost a
/// fraction of the page faults and of the address translation of small ones. Throws std::bad_alloc.
std::shared_ptr<std::byte> allocate(std::int64_t n_bytes);

/// Gives memory that was freed, by anybody in this process, back to the system, where the allocator keeps it: a small
/// object that stays can keep a large hole from ever being used again (glibc). Takes some milliseconds for a gigabyte.
void give_back_freed_memory();

/// From this size on, a result is written past the caches: it would push everything else out and not stay itself.
constexpr std::int64_t kStreamedBytes = 16 * 1024 * 1024;

}  // namespace attncache
