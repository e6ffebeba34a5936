// Pinned host memory through which lists reach a device: a copy from pageable memory may make the host wait for the
// stream, one from pinned memory never does. A block is written again once the device has read it.
#include <bit>
#include <deque>
#include <mutex>

#include "launch.cuh"

namespace attncache::cuda {
namespace {

constexpr std::size_t kLeastBytes = 65536;

struct Block {
    void* memory = nullptr;
    std::size_t n_bytes = 0;
    Event read;  // what the device has done with the block by then
    bool is_waited_for = false;

    bool is_free() {
        if (is_waited_for && cudaEventQuery(read.handle()) != cudaSuccess) {
            cudaGetLastError();
            return false;
        }
        is_waited_for = false;
        return true;
    }
};

class Blocks {
public:
    /// A block of at least so many bytes, which is the caller's until it is put back.
    Block take(std::size_t n_bytes) {
        const std::lock_guard lock(mutex_);
        // The first was put back first: while that is in use, so are most of those behind it.
        for (auto block = blocks_.begin(); block != blocks_.end() && block->is_free(); ++block) {
            if (block->n_bytes < n_bytes) continue;
            Block taken = std::move(*block);
            blocks_.erase(block);
            return taken;
        }
        Block made;
        made.read = Event::made();
        made.n_bytes = std::bit_ceil(n_bytes < kLeastBytes ? kLeastBytes : n_bytes);
        check(cudaHostAlloc(&made.memory, made.n_bytes, cudaHostAllocPortable));
        return made;
    }

    void put_back(Block block) {
        const std::lock_guard lock(mutex_);
        blocks_.push_back(std::move(block));
    }

private:
    std::mutex mutex_;
    std::deque<Block> blocks_;
};

/// Never destroyed: when the process ends, the runtime may be gone before this library.
Blocks& blocks() {
    static auto* const blocks = new Blocks;
    return *blocks;
}

}  // namespace

void upload(void* device_to, const void* from, std::size_t n_bytes, cudaStream_t stream) {
    if (n_bytes == 0) return;
    Block block = blocks().take(n_bytes);
    std::memcpy(block.memory, from, n_bytes);
    cudaError_t status = cudaMemcpyAsync(device_to, block.memory, n_bytes, cudaMemcpyHostToDevice, stream);
    if (status == cudaSuccess) {
        status = cudaEventRecord(block.read.handle(), stream);
        block.is_waited_for = status == cudaSuccess;
        if (!block.is_waited_for) static_cast<void>(cudaStreamSynchronize(stream));
    }
    blocks().put_back(std::move(block));
    check(status);
}

}  // namespace attncache::cuda
