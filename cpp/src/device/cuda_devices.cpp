// The CUDA devices of this process: found by number and by address, made the current one, waited for, copied from.
#include <tuple>

#include "attncache/cuda_device.hpp"
#include "cuda_library.hpp"

namespace attncache {

CudaDevice::CudaDevice(const CudaLibrary& library, int number)
    : library_(library), number_(number), name_("cuda:" + std::to_string(number)) {}

void CudaDevice::wait(void* stream, void* other) const {
    const OnDevice on(library_, number_);
    library_.call(library_.stream_wait, stream, other);
}

void CudaDevice::copy_to_host(void* to, const void* device_from, std::size_t n_bytes, void* stream) const {
    const OnDevice on(library_, number_);
    library_.call(library_.copy_to_host, to, device_from, n_bytes, stream);
}

std::shared_ptr<const Layer> CudaDevice::cpu(const Layer& layer) const {
    return static_cast<const CudaLayer&>(layer).cpu();
}

CudaDevices& CudaDevices::of(const std::string& path) {
    static auto* const mutex = new std::mutex;  // never destroyed, like all that is loaded: layers may outlive statics
    static auto* const loaded = new std::map<std::string, CudaDevices*>;
    const std::lock_guard lock(*mutex);
    const auto known = loaded->find(path);
    if (known != loaded->end()) return *known->second;
    return *loaded->emplace(path, new CudaDevices(*new CudaLibrary(path))).first->second;
}

std::string CudaDevices::why_not() const { return library_.why_not(); }

const CudaDevice& CudaDevices::device(int number) {
    const std::lock_guard lock(mutex_);
    const auto known = devices_.find(number);
    if (known != devices_.end()) return known->second;
    const OnDevice exists(library_, number);
    return devices_
        .emplace(std::piecewise_construct, std::forward_as_tuple(number), std::forward_as_tuple(library_, number))
        .first->second;
}

const CudaDevice* CudaDevices::device_of(const void* address) {
    if (address == nullptr) return &device(current());
    int number = 0;
    const int status = library_.device_of.pointer(address, &number);
    if (status == ATTNCACHE_CUDA_BAD_ARGUMENT) return nullptr;
    if (status != 0) library_.fail(library_.device_of.name, status);
    return &device(number);
}

int CudaDevices::current() const {
    int number = 0;
    library_.call(library_.get_device, &number);
    return number;
}

void CudaDevices::make_current(int number) const { library_.call(library_.set_device, number); }

}  // namespace attncache
