// What device code sees: indices, shared memory, barriers, votes and shuffles, conversions. Every thread of a block is
// a fiber; a barrier or a warp operation gives the others their turn (scheduler.cpp).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
/// One block runs at a time, so a block's shared memory is static memory, filled with 0xCD when a block begins. It is
/// the launching thread's own because that memory of a library lies together and holds nothing else (g++ ignores
/// sections in templates). Variables lie apart, so that what leaves one does not meet another.
#define __shared__ static thread_local __attribute__((aligned(32768)))

using std::isinf;
using std::isnan;

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

namespace shim {

constexpr const char* kSyncWarp = "__syncwarp";  // of a warp's operations the one that orders memory

/// Where in the source a thread waits.
struct Site {
    const char* file;
    int line;
};

/// Ends the launch with these words and where the thread was. Called by a thread, which never goes on.
void fail(const std::string& words);
/// Waits for all threads of the block.
void barrier(Site site);
/// Gives a value to the lanes of a mask, once all of them have come here, and returns the 32 values.
const std::uint64_t* exchange(unsigned mask, std::uint64_t value, const char* operation, Site site);
unsigned lane();

namespace races {
/// What the thread that runs reads at once, of device memory that stays as it is for the whole launch.
void read_constant(const void* address, std::size_t n_bytes);
/// What it writes at once, though g++ may write it in parts.
void write_whole(const void* address, std::size_t n_bytes);
}  // namespace races

/// Where all __shared__ variables of the library lie, for the thread that launches.
struct SharedMemory {
    char* begin;
    std::size_t n_bytes;
};
extern SharedMemory shared_memory;

template <class To, class From>
To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class T>
std::uint64_t packed(T value) {
    static_assert(sizeof(T) <= 8);
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}

template <class T>
T unpacked(std::uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

/// The value of another lane, which must be one of the mask.
template <class T>
T shuffled(unsigned mask, T value, unsigned from, const char* operation, Site site) {
    const std::uint64_t* const values = exchange(mask, packed(value), operation, site);
    if ((mask >> (from & 31) & 1) == 0) fail(std::string(operation) + " from a lane outside its mask");
    return unpacked<T>(values[from & 31]);
}

}  // namespace shim

#define SHIM_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(SHIM_SITE) { shim::barrier({file, line}); }
inline void __syncwarp(unsigned mask = 0xffffffff, SHIM_SITE) {
    shim::exchange(mask, 0, shim::kSyncWarp, {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SHIM_SITE) {
    const std::uint64_t* const values = shim::exchange(mask, predicate != 0, "__ballot_sync", {file, line});
    unsigned ballot = 0;
    for (unsigned i = 0; i < 32; ++i) ballot |= static_cast<unsigned>((mask >> i & 1) && values[i]) << i;
    return ballot;
}

inline int __any_sync(unsigned mask, int predicate, SHIM_SITE) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value, SHIM_SITE) {
    const std::uint64_t* const values = shim::exchange(mask, shim::packed(value), "__match_any_sync", {file, line});
    unsigned same = 0;
    for (unsigned i = 0; i < 32; ++i) {
        same |= static_cast<unsigned>((mask >> i & 1) && values[i] == shim::packed(value)) << i;
    }
    return same;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int from, SHIM_SITE) {
    return shim::shuffled(mask, value, static_cast<unsigned>(from), "__shfl_sync", {file, line});
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, SHIM_SITE) {
    const unsigned from = shim::lane() < distance ? shim::lane() : shim::lane() - distance;
    return shim::shuffled(mask, value, from, "__shfl_up_sync", {file, line});
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, SHIM_SITE) {
    const unsigned from = shim::lane() + distance > 31 ? shim::lane() : shim::lane() + distance;
    return shim::shuffled(mask, value, from, "__shfl_down_sync", {file, line});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, SHIM_SITE) {
    return shim::shuffled(mask, value, shim::lane() ^ static_cast<unsigned>(lanes), "__shfl_xor_sync", {file, line});
}

template <class T>
T __ldg(const T* address) {
    shim::races::read_constant(address, sizeof(T));
    return *address;
}

template <class T>
T atomicAdd(T* address, T value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

inline unsigned __float_as_uint(float x) { return shim::bits_as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return shim::bits_as<float>(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline void __stcs(float4* address, float4 value) {
    shim::races::write_whole(address, sizeof value);
    *address = value;
}
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
