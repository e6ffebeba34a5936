// A CUDA runtime that does nothing itself: libraries compiled by nvcc with `-cudart none` are linked to it, and what
// they allocate, copy and launch is handed to the interpreter. Functions that no launcher calls are left out, so that
// a new one fails to link by its name. Streams and events have no meaning here: everything happens at once, in order.
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

namespace {

struct Dim3 {
    unsigned x, y, z;
};

struct Hooks {
    int (*allocate)(std::size_t n_bytes, void** memory);
    int (*free)(void* memory);
    int (*copy)(void* to, const void* from, std::size_t n_bytes, int kind);
    int (*launch)(const char* kernel, const unsigned* grid, const unsigned* block, void** arguments,
                  std::size_t shared_bytes);
};

constexpr int kInvalidDeviceFunction = 98;

Hooks hooks{};

std::map<const void*, std::string>& kernels() {  // made on first use: libraries register while they are loaded
    static std::map<const void*, std::string> names;
    return names;
}

}  // namespace

extern "C" {

void interpreter_set_hooks(const Hooks* given) { hooks = *given; }

int cudaMemPoolCreate(void** pool, const void*) { return *pool = &hooks, 0; }
int cudaMemPoolSetAttribute(void*, int, void*) { return 0; }
int cudaMemPoolDestroy(void*) { return 0; }
int cudaMemGetInfo(std::size_t* free, std::size_t* total) { return *free = *total = std::size_t{1} << 34, 0; }
int cudaMallocFromPoolAsync(void** memory, std::size_t n_bytes, void*, void*) {
    return hooks.allocate(n_bytes, memory);
}
int cudaFreeAsync(void* memory, void*) { return hooks.free(memory); }
int cudaMemcpyAsync(void* to, const void* from, std::size_t n_bytes, int kind, void*) {
    return hooks.copy(to, from, n_bytes, kind);
}
int cudaLaunchKernel(const void* function, Dim3 grid, Dim3 block, void** arguments, std::size_t shared_bytes, void*) {
    const auto found = kernels().find(function);
    if (found == kernels().end()) return kInvalidDeviceFunction;
    return hooks.launch(found->second.c_str(), &grid.x, &block.x, arguments, shared_bytes);
}

int cudaGetLastError() { return 0; }
const char* cudaGetErrorString(int) { return "the interpreter found a fault"; }
int cudaStreamSynchronize(void*) { return 0; }
int cudaDeviceSynchronize() { return 0; }
int cudaEventCreateWithFlags(void** event, unsigned) { return *event = nullptr, 0; }
int cudaEventDestroy(void*) { return 0; }
int cudaEventQuery(void*) { return 0; }
int cudaHostAlloc(void** memory, std::size_t n_bytes, unsigned) {
    *memory = std::malloc(n_bytes);
    return 0;
}
int cudaEventRecord(void*, void*) { return 0; }
int cudaStreamWaitEvent(void*, void*, unsigned) { return 0; }
int cudaPointerGetAttributes(void*, const void*) { return 1; }  // what lies where is for the tests of the launchers
int cudaGetDeviceCount(int* count) { return *count = 1, 0; }
int cudaGetDevice(int* device) { return *device = 0, 0; }
int cudaSetDevice(int) { return 0; }
int cudaDriverGetVersion(int* version) { return *version = 13000, 0; }
int cudaRuntimeGetVersion(int* version) { return *version = 13000, 0; }

// What the code that nvcc adds to a library calls while it is loaded.
void** __cudaRegisterFatBinary(void*) {
    static void* handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*, void*, void*, void*,
                            int*) {
    kernels()[function] = name;
}

// Behind <<<>>>, which our launchers do not use.
int __cudaGetKernel(void**, const void*) { return kInvalidDeviceFunction; }
int __cudaLaunchKernel(void*, Dim3, Dim3, void**, std::size_t, void*) { return kInvalidDeviceFunction; }
unsigned __cudaPopCallConfiguration(Dim3*, Dim3*, std::size_t*, void**) { return kInvalidDeviceFunction; }
}
