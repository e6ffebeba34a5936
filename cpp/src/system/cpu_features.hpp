// What the CPU and the operating system can run. x86 only: other architectures have their level as a baseline.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#define ATTNCACHE_X86 1
#elif defined(__aarch64__) || defined(_M_ARM64)
#define ATTNCACHE_ARM64 1
#endif

namespace attncache {

/// AVX2, F16C and FMA, with the upper register halves saved by the operating system.
bool cpu_has_avx2();

/// AVX-512 F, BW, VL and DQ on top of that, with mask and 512-bit registers saved.
bool cpu_has_avx512();

}  // namespace attncache
