// Device memory from a pool of our own on each device. The runtime's own pool gives everything free back to the driver
// whenever the host waits, and mapping it anew for the next answer takes longer than computing that. A pool of our own
// keeps some of it, and leaves the runtime's to others.
#include <mutex>
#include <vector>

#include "launch.cuh"

namespace attncache::cuda {
namespace {

constexpr std::size_t kKeptPart = 8;  // of a device: what its pool keeps at most of what nobody uses

cudaMemPool_t made_pool(int device) {
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    cudaMemPool_t pool = nullptr;
    check(cudaMemPoolCreate(&pool, &properties));
    std::size_t free = 0;
    std::size_t total = 0;
    cudaError_t status = cudaMemGetInfo(&free, &total);
    std::uint64_t kept = total / kKeptPart;
    if (status == cudaSuccess) status = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept);
    if (status != cudaSuccess) static_cast<void>(cudaMemPoolDestroy(pool));
    check(status);
    return pool;
}

/// The pool of the current device. Never destroyed: when the process ends, the runtime may be gone before this library.
cudaMemPool_t pool() {
    static auto* const mutex = new std::mutex;
    static auto* const pools = new std::vector<cudaMemPool_t>;
    int device = 0;
    check(cudaGetDevice(&device));
    const std::lock_guard lock(*mutex);
    const auto at = static_cast<std::size_t>(device);
    if (pools->size() <= at) pools->resize(at + 1);
    if ((*pools)[at] == nullptr) (*pools)[at] = made_pool(device);
    return (*pools)[at];
}

}  // namespace

void* take(std::size_t n_bytes, cudaStream_t stream) {
    if (n_bytes == 0) return nullptr;
    void* memory = nullptr;
    check(cudaMallocFromPoolAsync(&memory, n_bytes, pool(), stream));
    return memory;
}

}  // namespace attncache::cuda
