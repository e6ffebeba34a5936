// Device memory that the host cannot touch: an arena without access rights, except while a kernel or a copy runs.
#pragma once

#include <cstddef>

namespace shim {

/// Memory of a device, filled with 0xCD, or nullptr.
void* allocate(std::size_t n_bytes, int device);
/// Gives memory back, never to be used again; false if it is none.
bool release(void* memory);
/// Whether n bytes lie in one allocation.
bool is_live(const void* address, std::size_t n_bytes);
/// Whether an address is one of device memory, in use or not.
bool is_device_address(const void* address);
/// The device that an address belongs to, or -1.
int device_of(const void* address);
std::size_t live_bytes();

/// Access to everything allocated, as long as this object lives.
struct Access {
    Access();
    ~Access();
    Access(const Access&) = delete;
    Access& operator=(const Access&) = delete;
};

}  // namespace shim
