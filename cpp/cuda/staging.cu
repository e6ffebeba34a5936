// Pinned host memory through which lists reach a device: a copy from pageable memory may make the host wait for the
// stream, one from pinned memory never does. A block is written again once the device has read it.
#include <bit>
#include <mutex>

#include "launch.cuh"

namespace attncache::cuda {
namespace {

constexpr std::size_t kLeastBytes = 65536;

struct Block {
    void* memory = nullptr;
    std::size_t n_bytes = 0;
    Event read;  // what the device has done with it by then; without one, nothing is to be waited for

    bool is_free() {
        if (!read.is_made()) return true;
        if (cudaEventQuery(read.handle()) != cudaSuccess) {
            cudaGetLastError();
            return false;
        }
        read = Event();
        return true;
    }
};

class Blocks {
public:
    /// A block of at least so many bytes, which is the caller's until it is put back.
    Block take(std::size_t n_bytes) {
        const std::lock_guard lock(mutex_);
        blocks_.reserve(++n_blocks_);  // so that putting back cannot fail
        for (Block& block : blocks_) {
            if (block.n_bytes < n_bytes || !block.is_free()) continue;
            std::swap(block, blocks_.back());
            Block taken = std::move(blocks_.back());
            blocks_.pop_back();
            --n_blocks_;
            return taken;
        }
        Block made;
        made.n_bytes = std::bit_ceil(n_bytes < kLeastBytes ? kLeastBytes : n_bytes);
        const cudaError_t status = cudaHostAlloc(&made.memory, made.n_bytes, cudaHostAllocPortable);
        if (status != cudaSuccess) --n_blocks_;
        check(status);
        return made;
    }

    void put_back(Block block) {
        const std::lock_guard lock(mutex_);
        blocks_.push_back(std::move(block));
    }

private:
    std::mutex mutex_;
    std::vector<Block> blocks_;
    std::size_t n_blocks_ = 0;  // these and those that are taken
};

/// Never destroyed: when the process ends, the runtime may be gone before this library.
Blocks& blocks() {
    static auto* const blocks = new Blocks;
    return *blocks;
}

}  // namespace

void upload(void* device_to, const void* from, std::size_t n_bytes, cudaStream_t stream) {
    if (n_bytes == 0) return;
    Event read = Event::made();
    Block block = blocks().take(n_bytes);
    std::memcpy(block.memory, from, n_bytes);
    cudaError_t status = cudaMemcpyAsync(device_to, block.memory, n_bytes, cudaMemcpyHostToDevice, stream);
    if (status == cudaSuccess) {
        status = cudaEventRecord(read.handle(), stream);
        if (status == cudaSuccess) {
            block.read = std::move(read);
        } else {
            static_cast<void>(cudaStreamSynchronize(stream));
        }
    }
    blocks().put_back(std::move(block));
    check(status);
}

}  // namespace attncache::cuda
