// What every launcher is made of: checked calls, device memory with an owner, one upload for all lists, one launch.
// Failures travel as exceptions inside this library and leave it as a status.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "attncache/cuda.h"

namespace attncache::cuda {

/// A status on its way out.
struct Failure {
    int status;
};

inline void check(cudaError_t status) {
    if (status != cudaSuccess) throw Failure{static_cast<int>(status)};
}

/// Throws ATTNCACHE_CUDA_BAD_ARGUMENT unless a rule about an argument holds.
inline void require(bool holds) {
    if (!holds) throw Failure{ATTNCACHE_CUDA_BAD_ARGUMENT};
}

/// Does the work of an entry point and turns whatever it throws into a status.
template <class Work>
int status_of(const Work& work) noexcept {
    try {
        work();
        return cudaSuccess;
    } catch (const Failure& failure) {
        cudaGetLastError();  // otherwise the runtime would report it again, to a caller that did nothing wrong
        return failure.status;
    } catch (const std::bad_alloc&) {
        return cudaErrorMemoryAllocation;
    }
}

/// The product of sizes that are not negative; throws ATTNCACHE_CUDA_TOO_LARGE if it is no int64.
template <class... Sizes>
std::int64_t product(Sizes... sizes) {
    std::int64_t result = 1;
    bool has_zero = false;
    for (const std::int64_t size : {static_cast<std::int64_t>(sizes)...}) has_zero |= size == 0;
    if (has_zero) return 0;
    for (const std::int64_t size : {static_cast<std::int64_t>(sizes)...}) {
        if (size > std::numeric_limits<std::int64_t>::max() / result) throw Failure{ATTNCACHE_CUDA_TOO_LARGE};
        result *= size;
    }
    return result;
}

__host__ __device__ constexpr std::int64_t quotient_up(std::int64_t n, std::int64_t divisor) {
    return n / divisor + (n % divisor != 0);
}

/// Memory of the current device, usable in the order of the stream and given back by cudaFreeAsync; of 0 bytes nullptr.
void* take(std::size_t n_bytes, cudaStream_t stream);

/// Device memory that is given back, in the order of the stream, when its owner goes out of scope.
class DeviceMemory {
public:
    DeviceMemory(std::int64_t n_bytes, cudaStream_t stream)
        : memory_(take(n_bytes > 0 ? static_cast<std::size_t>(n_bytes) : 0, stream)), stream_(stream) {}
    ~DeviceMemory() {
        if (memory_ != nullptr) static_cast<void>(cudaFreeAsync(memory_, stream_));
    }
    DeviceMemory(DeviceMemory&& other) noexcept
        : memory_(std::exchange(other.memory_, nullptr)), stream_(other.stream_) {}
    DeviceMemory& operator=(DeviceMemory&&) = delete;

    template <class T>
    T* as() const {
        return static_cast<T*>(memory_);
    }

    /// The items of an upload that begin at `offset`.
    template <class T>
    const T* at(std::size_t offset) const {
        return reinterpret_cast<const T*>(static_cast<const std::byte*>(memory_) + offset);
    }

private:
    void* memory_ = nullptr;
    cudaStream_t stream_;
};

/// An event without a time, or none. What waits for it still does when it is destroyed.
class Event {
public:
    Event() = default;
    static Event made() {
        Event event;
        check(cudaEventCreateWithFlags(&event.event_, cudaEventDisableTiming));
        return event;
    }
    ~Event() {
        if (is_made()) static_cast<void>(cudaEventDestroy(event_));
    }
    Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
    Event& operator=(Event&& other) noexcept {
        std::swap(event_, other.event_);
        return *this;
    }

    bool is_made() const { return event_ != nullptr; }
    cudaEvent_t handle() const { return event_; }

private:
    cudaEvent_t event_ = nullptr;
};

/// Copies host memory, which has been read when this returns, in the order of the stream and without waiting for it.
void upload(void* device_to, const void* from, std::size_t n_bytes, cudaStream_t stream);

/// Lists that a kernel reads, packed into one allocation and one copy.
class Upload {
public:
    /// Adds n items and returns where they will begin.
    template <class T>
    std::size_t add(const T* items, std::int64_t n) {
        static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= 8);
        const std::size_t begin = (bytes_.size() + 7) / 8 * 8;
        const auto n_bytes = static_cast<std::size_t>(n) * sizeof(T);
        bytes_.resize(begin + n_bytes);
        if (n > 0) std::memcpy(bytes_.data() + begin, items, n_bytes);
        return begin;
    }

    DeviceMemory send(cudaStream_t stream) const {
        DeviceMemory memory(static_cast<std::int64_t>(bytes_.size()), stream);
        upload(memory.as<void>(), bytes_.data(), bytes_.size(), stream);
        return memory;
    }

private:
    std::vector<std::byte> bytes_;
};

// Small in builds for tests, so that small requests reach what lies beyond.
#if !defined(ATTNCACHE_CUDA_MAX_BLOCKS)
#define ATTNCACHE_CUDA_MAX_BLOCKS 65536
#endif
#if !defined(ATTNCACHE_CUDA_SCRATCH_BYTES)
#define ATTNCACHE_CUDA_SCRATCH_BYTES 268435456
#endif

/// Blocks of a launch, at most: many times what any device runs at once. Kernels stride over what is left, so that no
/// number of lines reaches the limits of a grid.
constexpr std::int64_t kMaxBlocks = ATTNCACHE_CUDA_MAX_BLOCKS;

/// Memory that a request takes for what is not its result, at most, unless its smallest part needs more.
constexpr std::int64_t kScratchBytes = ATTNCACHE_CUDA_SCRATCH_BYTES;

/// What a kernel does with `launch`'s units: calls work(unit) for each that is this block's.
template <class Work>
__device__ inline void for_each_unit(std::int64_t n_units, const Work& work) {
#pragma unroll 1  // an unrolled loop first counts its turns: a 64-bit division by the size of the grid
    for (std::int64_t unit = blockIdx.x; unit < n_units; unit += gridDim.x) work(unit);
}

/// Launches `kernel` over the units of work, a block for each, or for several beyond kMaxBlocks.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), std::int64_t n_units, dim3 block, cudaStream_t stream,
            std::type_identity_t<Parameters>... arguments) {
    if (n_units == 0) return;
    const auto n_blocks = static_cast<unsigned>(n_units < kMaxBlocks ? n_units : kMaxBlocks);
    void* pointers[] = {&arguments...};
    check(cudaLaunchKernel(kernel, dim3(n_blocks), block, pointers, 0, stream));
}

}  // namespace attncache::cuda
