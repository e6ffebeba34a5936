// The values of a pattern and its axes. Everything else includes this file; it includes nothing but integers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace attncache {

/// IEEE binary16, storage only: kernels widen it to float before any arithmetic.
struct half {
    std::uint16_t bits;
};

/// The upper half of a float, storage only.
struct bfloat16 {
    std::uint16_t bits;
};

/// How the weights of a pattern are stored. float64 appears only as a source of `store`.
enum class DType : std::uint8_t { float16, bfloat16, float32, float64 };

constexpr std::size_t item_bytes(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

constexpr const char* name(DType dtype) {
    switch (dtype) {
        case DType::float16: return "float16";
        case DType::bfloat16: return "bfloat16";
        case DType::float32: return "float32";
        case DType::float64: return "float64";
    }
    return "unknown";
}

/// The axes of one layer's pattern, in the order in which they lie in memory.
struct Shape {
    std::int64_t batch_size = 0;
    std::int64_t n_heads = 0;
    std::int64_t seq_q = 0;
    std::int64_t seq_k = 0;

    friend constexpr bool operator==(const Shape&, const Shape&) = default;
};

}  // namespace attncache
