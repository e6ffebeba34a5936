// The runtime library's calls: recorded, made to fail where a test asks for it, and done at once, stream or not; but
// for copies from pinned memory, which are done as late as a device may do them: when something else needs their order.
//
// Tests talk to it through plain C:
//   shim_seed(n)               orders of threads and blocks from here on
//   shim_calls()               all calls since the last shim_clear(), a line each: name, what for, stream
//   shim_fail(name, nth, code) the nth call of that name from now on, from 1, fails with code; with 0, all of them do
//   shim_clear()               forgets calls, failures to come, and the failure that a kernel left behind
//   shim_live_bytes()          device memory in use
//   shim_words()               what went wrong in the last kernel that failed
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "memory.hpp"
#include "races.hpp"
#include "scheduler.hpp"

namespace shim {
namespace {

constexpr unsigned kMostThreads = 1024;
constexpr unsigned kMostBlocks[3] = {2147483647, 65535, 65535};
constexpr int kDevices = 2;

struct Planned {
    int nth;
    cudaError_t status;
};

std::string calls;
std::map<std::string, Planned> planned;
cudaError_t broken = cudaSuccess;  // what a kernel left behind: every later call fails with it, as on a device
cudaError_t last = cudaSuccess;
int current_device = 0;
std::uintptr_t n_events = 0;
struct LateCopy {
    void* to;
    const void* from;
    std::size_t n_bytes;
};
std::vector<LateCopy> late_copies;
std::map<const char*, std::size_t> pinned;  // host memory, by its first byte
std::map<cudaEvent_t, bool> is_late;        // whether an event was recorded behind a late copy
std::string words_of_failure;

/// Records a call and says whether it is to fail.
__attribute__((format(printf, 2, 3))) cudaError_t record(const char* name, const char* format, ...) {
    char words[256];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(words, sizeof words, format, arguments);
    va_end(arguments);
    calls += std::string(name) + words + "\n";
    cudaError_t status = broken;
    const auto found = planned.find(name);
    if (found != planned.end()) {
        Planned& plan = found->second;
        if (plan.nth <= 1) status = plan.status;
        if (plan.nth == 1) {
            planned.erase(found);
        } else if (plan.nth > 1) {
            --plan.nth;
        }
    }
    if (status != cudaSuccess) last = status;
    return status;
}

cudaError_t failed(cudaError_t status, const std::string& words) {
    std::fprintf(stderr, "shim: %s\n", words.c_str());
    words_of_failure = words;
    return last = status;
}

bool is_pinned(const void* memory) {
    const char* const byte = static_cast<const char*>(memory);
    const auto after = pinned.upper_bound(byte);
    if (after == pinned.begin()) return false;
    const auto found = std::prev(after);
    return byte < found->first + found->second;
}

/// What comes now comes after every copy.
void finish_copies() {
    const Access access;
    for (const LateCopy& copy : late_copies) {
        if (!is_live(copy.to, copy.n_bytes)) continue;
        std::memcpy(copy.to, copy.from, copy.n_bytes);
        races::copied_to(copy.to, copy.n_bytes);
    }
    late_copies.clear();
    is_late.clear();
}

bool is_launchable(dim3 grid, dim3 block) {
    const unsigned blocks[3] = {grid.x, grid.y, grid.z};
    for (int i = 0; i < 3; ++i) {
        if (blocks[i] == 0 || blocks[i] > kMostBlocks[i]) return false;
    }
    const std::size_t n_threads = std::size_t{block.x} * block.y * block.z;
    return n_threads > 0 && n_threads <= kMostThreads;
}

}  // namespace

cudaError_t launch(const Work& work, dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream) {
    const cudaError_t status =
        record("cudaLaunchKernel", " grid=(%u, %u, %u) block=(%u, %u, %u) shared=%zu stream=%p", grid.x, grid.y, grid.z,
               block.x, block.y, block.z, shared_bytes, static_cast<void*>(stream));
    if (status != cudaSuccess) return status;
    if (!is_launchable(grid, block)) return failed(cudaErrorInvalidConfiguration, "no such launch is possible");
    finish_copies();
    const Access access;
    const std::string problem = run_grid(work, grid, block);
    if (problem.empty()) return cudaSuccess;
    return broken = failed(cudaErrorLaunchFailure, problem);
}

}  // namespace shim

using namespace shim;

cudaError_t cudaGetLastError() {
    record("cudaGetLastError", "%s", "");
    const cudaError_t status = last;
    last = broken;
    return status;
}

const char* cudaGetErrorString(cudaError_t status) {
    switch (status) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorInvalidConfiguration: return "invalid configuration argument";
        case cudaErrorLaunchFailure: return "unspecified launch failure";
        case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
        default: return "unrecognized error code";
    }
}

cudaError_t cudaGetDeviceCount(int* count) {
    const cudaError_t status = record("cudaGetDeviceCount", "%s", "");
    *count = status == cudaSuccess ? kDevices : 0;
    return status;
}

cudaError_t cudaDriverGetVersion(int* version) {
    *version = 13000;
    return record("cudaDriverGetVersion", "%s", "");
}

cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = 13000;
    return record("cudaRuntimeGetVersion", "%s", "");
}

cudaError_t cudaSetDevice(int device) {
    const cudaError_t status = record("cudaSetDevice", " %d", device);
    if (status != cudaSuccess) return status;
    if (device < 0 || device >= kDevices) return failed(cudaErrorInvalidDevice, "no such device");
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
    *device = current_device;
    return record("cudaGetDevice", "%s", "");
}

// A pool is the number of its device and one more.
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties) {
    *pool = reinterpret_cast<cudaMemPool_t>(std::intptr_t{properties->location.id} + 1);
    return record("cudaMemPoolCreate", " %d", properties->location.id);
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
    return record("cudaMemPoolSetAttribute", " %p %d %llu", static_cast<void*>(pool), static_cast<int>(attribute),
                  static_cast<unsigned long long>(*static_cast<std::uint64_t*>(value)));
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
    return record("cudaMemPoolDestroy", " %p", static_cast<void*>(pool));
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
    *free = *total = std::size_t{1} << 34;
    return record("cudaMemGetInfo", "%s", "");
}

cudaError_t cudaMallocFromPoolAsync(void** memory, std::size_t n_bytes, cudaMemPool_t pool, cudaStream_t stream) {
    const cudaError_t status = record("cudaMallocFromPoolAsync", " %zu stream=%p", n_bytes, static_cast<void*>(stream));
    if (status != cudaSuccess) return status;
    if (pool != reinterpret_cast<cudaMemPool_t>(std::intptr_t{current_device} + 1)) {
        return failed(cudaErrorInvalidValue, "a pool that is not that of the current device");
    }
    *memory = allocate(n_bytes, current_device);
    return *memory == nullptr ? failed(cudaErrorMemoryAllocation, "out of device memory") : cudaSuccess;
}

cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) {
    const cudaError_t status = record("cudaFreeAsync", " stream=%p", static_cast<void*>(stream));
    if (status != cudaSuccess) return status;
    finish_copies();
    return release(memory) ? cudaSuccess : failed(cudaErrorInvalidValue, "no such device memory to give back");
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t n_bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    const cudaError_t status = record("cudaMemcpyAsync", " %zu kind=%d%s stream=%p", n_bytes, static_cast<int>(kind),
                                      is_pinned(from) ? " pinned" : "", static_cast<void*>(stream));
    if (status != cudaSuccess) return status;
    const bool is_from_device = kind != cudaMemcpyHostToDevice;
    const bool is_to_device = kind != cudaMemcpyDeviceToHost;
    if (is_live(from, n_bytes) != is_from_device || is_live(to, n_bytes) != is_to_device) {
        return failed(cudaErrorInvalidValue, "a copy that is not in device memory where it says so");
    }
    if (is_pinned(from)) {
        late_copies.push_back({to, from, n_bytes});
        return cudaSuccess;
    }
    finish_copies();
    const std::string problem = is_from_device ? races::unwritten(from, n_bytes) : "";
    if (!problem.empty()) return failed(cudaErrorInvalidValue, problem);
    const Access access;
    std::memcpy(to, from, n_bytes);
    if (is_to_device) races::copied_to(to, n_bytes);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    finish_copies();
    return record("cudaStreamSynchronize", " stream=%p", static_cast<void*>(stream));
}

cudaError_t cudaDeviceSynchronize() {
    finish_copies();
    return record("cudaDeviceSynchronize", "%s", "");
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
    const cudaError_t status = record("cudaEventCreateWithFlags", " %u", flags);
    if (status == cudaSuccess) *event = reinterpret_cast<cudaEvent_t>(++n_events);
    return status;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    is_late[event] = !late_copies.empty();
    return record("cudaEventRecord", " %p stream=%p", static_cast<void*>(event), static_cast<void*>(stream));
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    return record("cudaStreamWaitEvent", " %p flags=%u stream=%p", static_cast<void*>(event), flags,
                  static_cast<void*>(stream));
}

cudaError_t cudaEventDestroy(cudaEvent_t event) { return record("cudaEventDestroy", " %p", static_cast<void*>(event)); }

cudaError_t cudaEventQuery(cudaEvent_t event) {
    const cudaError_t status = record("cudaEventQuery", " %p", static_cast<void*>(event));
    if (status != cudaSuccess) return status;
    const auto found = is_late.find(event);
    return found != is_late.end() && found->second ? last = cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaHostAlloc(void** memory, std::size_t n_bytes, unsigned flags) {
    const cudaError_t status = record("cudaHostAlloc", " %zu flags=%u", n_bytes, flags);
    if (status != cudaSuccess) return status;
    *memory = std::malloc(n_bytes);
    pinned[static_cast<const char*>(*memory)] = n_bytes;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* memory) {
    const int device = device_of(memory);
    *attributes = {device < 0 ? cudaMemoryTypeUnregistered : cudaMemoryTypeDevice, device};
    return record("cudaPointerGetAttributes", "%s", "");
}

#define SHIM_API extern "C" __attribute__((visibility("default")))

SHIM_API void shim_seed(unsigned value) { seed(value); }
SHIM_API const char* shim_calls() { return calls.c_str(); }
SHIM_API const char* shim_words() { return words_of_failure.c_str(); }
SHIM_API std::size_t shim_live_bytes() { return live_bytes(); }

SHIM_API void shim_fail(const char* name, int nth, int code) { planned[name] = {nth, static_cast<cudaError_t>(code)}; }

SHIM_API void shim_clear() {
    calls.clear();
    planned.clear();
    words_of_failure.clear();
    broken = last = cudaSuccess;
}
