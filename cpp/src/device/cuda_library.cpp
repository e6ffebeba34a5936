// Loads libattncache_cuda, finds its functions, and puts its statuses into words.
#include "cuda_library.hpp"

#include <stdexcept>

#include "attncache/cuda_device.hpp"

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace attncache {
namespace {

enum : int { kMemoryAllocation = 2, kInsufficientDriver = 35, kNoDevice = 100 };  // of cudaError_t

#if defined(_WIN32)
void* opened(const std::string& path) { return LoadLibraryA(path.c_str()); }
void* found(void* library, const char* name) {
    return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
}
std::string what_failed() { return "error " + std::to_string(GetLastError()); }
#else
void* opened(const std::string& path) { return dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL); }
void* found(void* library, const char* name) { return dlsym(library, name); }
std::string what_failed() {
    const char* const words = dlerror();
    return words == nullptr ? "no reason is known" : words;
}
#endif

[[noreturn]] void fail_to_load(const std::string& path) {
    throw std::runtime_error(path + " cannot be loaded, it is damaged or incomplete: " + what_failed());
}

template <class Type>
void find(const std::string& path, void* library, CudaFunction<Type>& function) {
    void* const address = found(library, (std::string("attncache_cuda_") + function.name).c_str());
    if (address == nullptr) fail_to_load(path);
    function.pointer = reinterpret_cast<Type*>(address);
}

}  // namespace

CudaLibrary::CudaLibrary(const std::string& path) {
    void* const library = opened(path);
    if (library == nullptr) fail_to_load(path);
    find(path, library, interface);
    if (const int version = interface.pointer(); version != ATTNCACHE_CUDA_INTERFACE) {
        throw std::runtime_error(path + " must have interface version " + std::to_string(ATTNCACHE_CUDA_INTERFACE) +
                                 ", got " + std::to_string(version) +
                                 ": it was built from another version of attncache; build both together");
    }
#define ATTNCACHE_FIND(function) find(path, library, function);
    ATTNCACHE_CUDA_FUNCTIONS(ATTNCACHE_FIND)
#undef ATTNCACHE_FIND
}

std::string CudaLibrary::why_not() const {
    int count = 0;
    const int status = device_count.pointer(&count);
    if (status == kInsufficientDriver) return message.pointer(status);
    if (status == kNoDevice || (status == 0 && count == 0)) {
        return "the NVIDIA driver finds no device; CUDA_VISIBLE_DEVICES may hide it";
    }
    if (status == 0) return {};
    return std::string("CUDA cannot be used: ") + message.pointer(status) + " (status " + std::to_string(status) + ")";
}

void CudaLibrary::fail(const char* function, int status) const {
    const std::string words = std::string("attncache_cuda_") + function + ": " + message.pointer(status) + " (status " +
                              std::to_string(status) + ")";
    if (status == kMemoryAllocation) throw DeviceMemoryError(words);
    if (status == ATTNCACHE_CUDA_TOO_LARGE) throw std::invalid_argument(words);
    throw std::runtime_error(words);
}

}  // namespace attncache
