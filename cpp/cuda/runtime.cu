// Devices, memory, copies and words: the part of the interface that asks nothing of a pattern.
#include "launch.cuh"

using attncache::cuda::check;
using attncache::cuda::Event;
using attncache::cuda::require;
using attncache::cuda::status_of;

namespace {

cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }

/// Words for the failures that a user can mend; the runtime's own words for all others.
const char* plain_words(int status) {
    switch (status) {
        case cudaSuccess: return "no error";
        case ATTNCACHE_CUDA_BAD_ARGUMENT: return "an argument breaks a rule of attncache/cuda.h";
        case ATTNCACHE_CUDA_TOO_LARGE: return "the result is larger than 64-bit sizes or 32-bit positions can hold";
        case cudaErrorInsufficientDriver:
        case cudaErrorStubLibrary:
            return "no usable NVIDIA driver found: there is none, or it is older than this build needs";
        case cudaErrorNoDevice: return "no CUDA device found";
        case cudaErrorInvalidDevice: return "there is no such CUDA device";
        case cudaErrorMemoryAllocation: return "out of memory on the CUDA device";
        case cudaErrorNoKernelImageForDevice:
            return "the CUDA device is too old: attncache is built for compute capability 7.5 and newer";
        case cudaErrorSystemDriverMismatch: return "the NVIDIA driver and its libraries are of different versions";
        case cudaErrorSystemNotReady: return "the NVIDIA driver is not ready: its services have not started";
        default: return nullptr;
    }
}

}  // namespace

int attncache_cuda_interface() { return ATTNCACHE_CUDA_INTERFACE; }

std::int64_t attncache_cuda_scratch_bytes() { return attncache::cuda::kScratchBytes; }

const char* attncache_cuda_message(int status) {
    if (const char* const words = plain_words(status)) return words;
    return status < 0 ? "an unknown status" : cudaGetErrorString(static_cast<cudaError_t>(status));
}

int attncache_cuda_device_count(int* count) {
    return status_of([=] {
        require(count != nullptr);
        *count = 0;
        check(cudaGetDeviceCount(count));
    });
}

int attncache_cuda_set_device(int device) {
    return status_of([=] { check(cudaSetDevice(device)); });
}

int attncache_cuda_get_device(int* device) {
    return status_of([=] {
        require(device != nullptr);
        check(cudaGetDevice(device));
    });
}

int attncache_cuda_allocate(std::size_t n_bytes, void* stream, void** device_memory) {
    return status_of([=] {
        require(device_memory != nullptr);
        *device_memory = nullptr;
        *device_memory = attncache::cuda::take(n_bytes, as_stream(stream));
    });
}

int attncache_cuda_free(void* device_memory, void* stream) {
    return status_of([=] {
        if (device_memory != nullptr) check(cudaFreeAsync(device_memory, as_stream(stream)));
    });
}

int attncache_cuda_copy_to_host(void* to, const void* device_from, std::size_t n_bytes, void* stream) {
    return status_of([=] {
        require(n_bytes == 0 || (to != nullptr && device_from != nullptr));
        if (n_bytes > 0) check(cudaMemcpyAsync(to, device_from, n_bytes, cudaMemcpyDeviceToHost, as_stream(stream)));
        check(cudaStreamSynchronize(as_stream(stream)));
    });
}

int attncache_cuda_copy_to_device(void* device_to, const void* from, std::size_t n_bytes, void* stream) {
    return status_of([=] {
        require(n_bytes == 0 || (device_to != nullptr && from != nullptr));
        attncache::cuda::upload(device_to, from, n_bytes, as_stream(stream));
    });
}

int attncache_cuda_synchronize(void* stream) {
    return status_of([=] { check(cudaStreamSynchronize(as_stream(stream))); });
}

int attncache_cuda_stream_wait(void* stream, void* other) {
    return status_of([=] {
        if (stream == other) return;
        const Event event = Event::made();
        check(cudaEventRecord(event.handle(), as_stream(other)));
        check(cudaStreamWaitEvent(as_stream(stream), event.handle(), 0));
    });
}

int attncache_cuda_device_of(const void* device_memory, int* device) {
    return status_of([=] {
        require(device_memory != nullptr && device != nullptr);
        cudaPointerAttributes attributes{};
        check(cudaPointerGetAttributes(&attributes, device_memory));
        require(attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged);
        *device = attributes.device;
    });
}
