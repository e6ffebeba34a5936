// Which levels this build and this CPU have, and which one is active.
#include "attncache/simd.hpp"

#include <array>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "active_kernels.hpp"
#include "cpu_features.hpp"

namespace attncache {

#if defined(ATTNCACHE_X86)
namespace avx2 {
extern const KernelTable kernel_table;
}
namespace avx512 {
extern const KernelTable kernel_table;
}
#elif defined(ATTNCACHE_ARM64)
namespace neon {
extern const KernelTable kernel_table;
}
#endif
namespace scalar {
extern const KernelTable kernel_table;
}

namespace {

struct Level {
    const KernelTable* kernels;
    bool (*cpu_has_it)();
};

constexpr Level kLevels[] = {
    {&scalar::kernel_table, [] { return true; }},
#if defined(ATTNCACHE_X86)
    {&avx2::kernel_table, cpu_has_avx2},
    {&avx512::kernel_table, cpu_has_avx512},
#elif defined(ATTNCACHE_ARM64)
    {&neon::kernel_table, [] { return true; }},
#endif
};

std::vector<std::string_view> names_of_levels(bool only_available) {
    std::vector<std::string_view> names;
    for (const Level& level : kLevels) {
        if (!only_available || level.cpu_has_it()) names.emplace_back(level.kernels->level);
    }
    return names;
}

const KernelTable& kernels_named(std::string_view name) {
    for (const Level& level : kLevels) {
        if (name == level.kernels->level) return *level.kernels;
    }
    return scalar::kernel_table;
}

std::atomic<const KernelTable*> active_table{&scalar::kernel_table};

}  // namespace

const KernelTable& active_kernels() { return *active_table.load(std::memory_order_relaxed); }

namespace simd {

std::span<const std::string_view> compiled() {
    static const auto names = names_of_levels(false);
    return names;
}

std::span<const std::string_view> available() {
    static const auto names = names_of_levels(true);
    return names;
}

std::string_view active() { return active_kernels().level; }

std::string_view active_instructions() { return active_kernels().instructions; }

void use(std::string_view level) {
    if (level == "auto") level = available().back();
    std::string listed;
    for (const std::string_view name : available()) {
        if (name == level) {
            active_table.store(&kernels_named(level), std::memory_order_relaxed);
            return;
        }
        listed.append(name).append(", ");
    }
    throw std::invalid_argument("level must be one of " + listed + "auto, got " + std::string(level));
}

void use_environment() {
    const char* level = std::getenv("ATTNCACHE_SIMD");
    if (level == nullptr) return use("auto");
    try {
        use(level);
    } catch (const std::invalid_argument& error) {
        throw std::invalid_argument(std::string("ATTNCACHE_SIMD: ") + error.what());
    }
}

}  // namespace simd
}  // namespace attncache
