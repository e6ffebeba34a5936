// Reads CPUID and XCR0 itself: compilers' own checks differ in the names they know (F16C above all).
#include "cpu_features.hpp"

#if defined(ATTNCACHE_X86)

#include <cstdint>

#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif

namespace attncache {
namespace {

struct Registers {
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(std::uint32_t leaf) {
    Registers r;
#if defined(_MSC_VER)
    int values[4];
    __cpuidex(values, static_cast<int>(leaf), 0);
    r = {static_cast<std::uint32_t>(values[0]), static_cast<std::uint32_t>(values[1]),
         static_cast<std::uint32_t>(values[2]), static_cast<std::uint32_t>(values[3])};
#else
    if (!__get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx)) r = {};
#endif
    return r;
}

/// The register states that the operating system saves on a context switch.
std::uint64_t saved_states() {
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    std::uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<std::uint64_t>(high) << 32 | low;
#endif
}

constexpr bool has_all(std::uint64_t bits, std::uint64_t wanted) { return (bits & wanted) == wanted; }
constexpr std::uint32_t bit(int n) { return 1U << n; }

constexpr std::uint32_t kFma = bit(12), kOsxsave = bit(27), kAvx = bit(28), kF16c = bit(29);         // leaf 1, ecx
constexpr std::uint32_t kAvx2 = bit(5);                                                              // leaf 7, ebx
constexpr std::uint32_t kAvx512 = bit(16) /*F*/ | bit(17) /*DQ*/ | bit(30) /*BW*/ | bit(31) /*VL*/;  // leaf 7, ebx
constexpr std::uint64_t kYmmSaved = 0x06, kZmmSaved = 0xe6;                                          // XCR0

}  // namespace

bool cpu_has_avx2() {
    return has_all(cpuid(1).ecx, kFma | kOsxsave | kAvx | kF16c) && has_all(saved_states(), kYmmSaved) &&
           has_all(cpuid(7).ebx, kAvx2);
}

bool cpu_has_avx512() { return cpu_has_avx2() && has_all(saved_states(), kZmmSaved) && has_all(cpuid(7).ebx, kAvx512); }

}  // namespace attncache

#endif
