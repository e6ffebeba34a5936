// Aligned allocation, with huge pages where the system has them on request.
#include "attncache/memory.hpp"

#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace attncache {
namespace {

constexpr std::int64_t kHugePage = 2 * 1024 * 1024;
constexpr std::align_val_t kCacheLine{64};
constexpr std::align_val_t kHugePageAligned{static_cast<std::size_t>(kHugePage)};

}  // namespace

std::shared_ptr<std::byte> allocate(std::int64_t n_bytes) {
    const bool is_large = n_bytes >= 2 * kHugePage;
    const std::align_val_t alignment = is_large ? kHugePageAligned : kCacheLine;
    void* const memory = ::operator new(static_cast<std::size_t>(n_bytes > 0 ? n_bytes : 1), alignment);
#if defined(__linux__)
    if (is_large) madvise(memory, static_cast<std::size_t>(n_bytes / kHugePage * kHugePage), MADV_HUGEPAGE);  // a wish
#endif
    return {static_cast<std::byte*>(memory), [alignment](std::byte* p) { ::operator delete(p, alignment); }};
}

void give_back_freed_memory() {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

}  // namespace attncache
