// What the race detector (races.cpp) is told: the scheduler's barriers, the runtime's memory. All of it costs nothing
// unless kernels were compiled with -fsanitize=thread.
#pragma once

#include <cstddef>
#include <string>

#include "device.hpp"

namespace shim::races {

void begin_launch();
/// A block begins, whose number in its grid this is.
void begin_block(unsigned block);
/// All threads of the block have met.
void meet(Site site);
/// The lanes of a mask have met; the first lane of their warp is that thread.
void meet(unsigned first_thread, unsigned mask, Site site);

void allocated(const void* memory, std::size_t n_bytes);
void released(const void* memory);
/// The host has written device memory.
void copied_to(const void* memory, std::size_t n_bytes);
/// Words about the first byte of device memory that nobody wrote, or nothing.
std::string unwritten(const void* memory, std::size_t n_bytes);

}  // namespace shim::races
