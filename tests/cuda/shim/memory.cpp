// The arena: addresses are never used twice, and between two allocations lie pages that nobody may touch. An allocation
// begins at a multiple of 256 as CUDA's do and ends less than 256 bytes before such a page; that rest belongs to
// nobody, as races.cpp notices, or address sanitizer, for which it is poisoned.
//
// Tests talk to it through plain C:
//   shim_leap(n)   the next allocation, if it is as large as the latest, begins n bytes, a multiple of 4096, after it
#include "memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "races.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace shim {
namespace {

constexpr std::size_t kArena = std::size_t{1} << 42;  // addresses, not memory
constexpr std::size_t kPage = 4096;
constexpr std::size_t kAlignment = 256;
constexpr int kFresh = 0xCD;

struct Allocation {
    std::size_t n_bytes;
    char* pages;
    std::size_t pages_bytes;
    int device;
};

std::map<const char*, Allocation> allocations;  // by their first byte
char* arena = nullptr;
char* latest_pages = nullptr;
char* next = nullptr;

void protect(const Allocation& allocation, int rights) {
    if (mprotect(allocation.pages, allocation.pages_bytes, rights) == 0) return;
    std::perror("shim: mprotect");
    std::abort();
}

void set_rights(int rights) {
    for (const auto& [begin, allocation] : allocations) protect(allocation, rights);
}

std::size_t rounded_up(std::size_t n, std::size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

using Entry = std::map<const char*, Allocation>::value_type;
const Entry* latest = nullptr;  // kernels read the same allocation again and again

bool holds(const Entry& entry, const char* address) {
    return entry.first <= address && address < entry.first + entry.second.n_bytes;
}

/// The allocation in which an address lies, or nullptr.
const Entry* allocation_of(const char* address) {
    if (latest != nullptr && holds(*latest, address)) return latest;
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin() || !holds(*--after, address)) return nullptr;
    return latest = &*after;
}

char* reserve() {
    void* const memory = mmap(nullptr, kArena, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
}

}  // namespace

void* allocate(std::size_t n_bytes, int device) {
    if (arena == nullptr) arena = next = reserve();
    const std::size_t used = rounded_up(n_bytes, kAlignment);
    const std::size_t pages_bytes = rounded_up(used, kPage);
    if (arena == nullptr || n_bytes > kArena / 2 || next + pages_bytes + kPage > arena + kArena) return nullptr;
    const Allocation allocation{n_bytes, next, pages_bytes, device};
    char* const begin = next + pages_bytes - used;
    latest_pages = next;
    next += pages_bytes + kPage;
    protect(allocation, PROT_READ | PROT_WRITE);
    std::memset(begin, kFresh, n_bytes);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(allocation.pages, static_cast<std::size_t>(begin - allocation.pages));
    __asan_poison_memory_region(begin + n_bytes, used - n_bytes);
#endif
    protect(allocation, PROT_NONE);
    allocations[begin] = allocation;
    races::allocated(begin, n_bytes);
    return begin;
}

bool release(void* memory) {
    const auto found = allocations.find(static_cast<const char*>(memory));
    if (found == allocations.end()) return false;
    const Allocation allocation = found->second;
    protect(allocation, PROT_READ | PROT_WRITE);
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(allocation.pages, allocation.pages_bytes);
#endif
    madvise(allocation.pages, allocation.pages_bytes, MADV_DONTNEED);
    protect(allocation, PROT_NONE);
    latest = nullptr;
    races::released(memory);
    allocations.erase(found);
    return true;
}

bool is_live(const void* address, std::size_t n_bytes) {
    const auto* const begin = static_cast<const char*>(address);
    const auto* const found = allocation_of(begin);
    return found != nullptr && n_bytes <= static_cast<std::size_t>(found->first + found->second.n_bytes - begin);
}

bool is_device_address(const void* address) {
    const auto* const byte = static_cast<const char*>(address);
    return arena != nullptr && byte >= arena && byte < arena + kArena;
}

int device_of(const void* address) {
    const auto* const found = allocation_of(static_cast<const char*>(address));
    return found == nullptr ? -1 : found->second.device;
}

std::size_t live_bytes() {
    std::size_t sum = 0;
    for (const auto& [begin, allocation] : allocations) sum += allocation.n_bytes;
    return sum;
}

Access::Access() { set_rights(PROT_READ | PROT_WRITE); }
Access::~Access() { set_rights(PROT_NONE); }

}  // namespace shim

extern "C" __attribute__((visibility("default"))) void shim_leap(std::size_t n_bytes) {
    using namespace shim;
    const auto left = static_cast<std::size_t>(arena + kArena - latest_pages);
    next = std::max(next, latest_pages + std::min(n_bytes, left));
}
