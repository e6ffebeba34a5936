// Which vector instructions the kernels use, chosen once at run time and changeable for tests.
#pragma once

#include <span>
#include <string_view>

namespace attncache::simd {

/// Names of the levels compiled into this build, slowest first: always "scalar", then "avx2", "avx512" or "neon".
std::span<const std::string_view> compiled();

/// The compiled levels that this CPU can run, slowest first.
std::span<const std::string_view> available();

/// The level whose kernels run, as written into that level's own object file.
std::string_view active();

/// The instruction sets with which the active level's object file was compiled, as its compiler reported them.
std::string_view active_instructions();

/// Makes a level active for all threads from their next query on; "auto" stands for the fastest available one.
/// Throws std::invalid_argument that lists the available levels.
void use(std::string_view level);

/// Applies ATTNCACHE_SIMD if it is set (as `use`), otherwise "auto". Called once, when the library is loaded.
void use_environment();

}  // namespace attncache::simd
