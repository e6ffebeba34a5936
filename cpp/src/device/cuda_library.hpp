// libattncache_cuda, loaded at run time: its functions as one table, and its statuses as exceptions.
#pragma once

#include <string>

#include "attncache/cuda.h"

namespace attncache {

/// A function of attncache/cuda.h, and its name there without the prefix.
template <class Type>
struct CudaFunction {
    const char* name;
    Type* pointer = nullptr;
};

/// All functions of attncache/cuda.h, under their names.
struct CudaFunctions {
#define ATTNCACHE_CUDA_FUNCTIONS(each)                                                                           \
    each(interface) each(message) each(device_count) each(set_device) each(get_device) each(allocate) each(free) \
        each(copy_to_host) each(copy_to_device) each(synchronize) each(stream_wait) each(device_of)              \
            each(scratch_bytes) each(rows) each(columns) each(edges) each(top_k) each(top_k_rows) each(factored_rows)
#define ATTNCACHE_DECLARE(function) CudaFunction<decltype(attncache_cuda_##function)> function{#function};
    ATTNCACHE_CUDA_FUNCTIONS(ATTNCACHE_DECLARE)
#undef ATTNCACHE_DECLARE
};

/// A loaded library. It is never unloaded.
class CudaLibrary : public CudaFunctions {
public:
    /// Throws std::runtime_error, which names the file and says what is wrong with it.
    explicit CudaLibrary(const std::string& path);

    /// Calls a function. Throws DeviceMemoryError if the device has no memory for it, std::invalid_argument if the
    /// question is too large for one call, std::runtime_error with CUDA's words for anything else.
    template <class... Parameters, class... Arguments>
    void call(const CudaFunction<int(Parameters...)>& function, Arguments... arguments) const {
        if (const int status = function.pointer(arguments...); status != 0) fail(function.name, status);
    }
    [[noreturn]] void fail(const char* function, int status) const;

    /// Why no device can be used; empty if one can.
    std::string why_not() const;
};

/// Makes a device the current one of this thread, for a while.
class OnDevice {
public:
    OnDevice(const CudaLibrary& library, int device) : library_(library), device_(device) {
        library.call(library.get_device, &before_);
        if (before_ != device_) library.call(library.set_device, device_);
    }
    ~OnDevice() {
        if (before_ != device_) library_.set_device.pointer(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

private:
    const CudaLibrary& library_;
    int device_;
    int before_ = 0;
};

}  // namespace attncache
