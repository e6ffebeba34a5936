// Conversions and ranks of one weight at a time, in integer arithmetic: the same on every machine.
// Included inside a level's namespace by each level.
#pragma once

#include <cstring>

#if defined(_MSC_VER)
#include <intrin.h>
#endif

#include "attncache/types.hpp"

namespace attncache::ATTNCACHE_LEVEL {
namespace {

template <class To, class From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline float widen_item(float x) { return x; }

inline float widen_item(bfloat16 x) { return bits_as<float>(static_cast<std::uint32_t>(x.bits) << 16); }

inline float widen_item(half x) {
    const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000) << 16;
    const std::uint32_t magnitude = x.bits & 0x7fff;
    if (magnitude >= 0x7c00) {  // infinity or NaN, made quiet as the hardware does
        const std::uint32_t quiet = magnitude > 0x7c00 ? 0x400000 : 0;
        return bits_as<float>(sign | 0x7f800000 | (magnitude << 13) | quiet);
    }
    if (magnitude < 0x400) {  // subnormal: a count of 2^-24, exact in float and safe when subnormals are flushed
        return bits_as<float>(sign | bits_as<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-24F));
    }
    return bits_as<float>(sign | ((magnitude << 13) + (112U << 23)));  // exponent bias 15 -> 127
}

inline void narrow_item(float x, float* out) { *out = x; }

inline void narrow_item(float x, bfloat16* out) {
    const auto bits = bits_as<std::uint32_t>(x);
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    const std::uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
    out->bits = static_cast<std::uint16_t>((is_nan ? bits | 0x400000 : rounded) >> 16);
}

inline void narrow_item(float x, half* out) {
    const auto bits = bits_as<std::uint32_t>(x);
    const std::uint32_t sign = (bits >> 16) & 0x8000;
    const std::uint32_t magnitude = bits & 0x7fffffff;
    std::uint32_t narrow;
    if (magnitude > 0x7f800000) {
        narrow = 0x7e00 | ((magnitude >> 13) & 0x1ff);
    } else if (magnitude >= 0x38800000) {  // at least 2^-14, the least normal half
        const std::uint32_t rebiased = magnitude - (112U << 23);
        narrow = (rebiased + 0xfff + ((rebiased >> 13) & 1)) >> 13;
        narrow = narrow < 0x7c00 ? narrow : 0x7c00;
    } else if (magnitude <= 0x33000000) {  // at most 2^-25, half of the least subnormal: to even, which is zero
        narrow = 0;
    } else {  // subnormal: the significand in units of 2^-24
        const std::uint32_t shift = 126 - (magnitude >> 23);
        const std::uint32_t significand = (magnitude & 0x7fffff) | 0x800000;
        const std::uint32_t rest = significand & ((1U << shift) - 1);
        const std::uint32_t halfway = 1U << (shift - 1);
        narrow = significand >> shift;
        narrow += rest > halfway || (rest == halfway && (narrow & 1)) ? 1 : 0;
    }
    out->bits = static_cast<std::uint16_t>(sign | narrow);
}

/// A double as float, rounded to odd: truncated, with the last bit set if anything was cut off. Rounding that to a
/// format at least two bits narrower gives what one direct rounding of the double gives (Boldo and Melquiond, "When
/// double rounding is odd", 2005).
inline float round_to_odd(double x) {
    const float nearest = static_cast<float>(x);
    const double back = nearest;
    if (back == x || x != x) return nearest;
    auto bits = bits_as<std::uint32_t>(nearest);
    const bool grew = (back < 0 ? -back : back) > (x < 0 ? -x : x);
    if (grew) bits -= 1;
    return bits_as<float>(bits | 1);
}

/// a * b + c with one rounding, where the machine has no instruction for it: the product is exact in double; the sum is
/// rounded to odd there (its error is known exactly, Knuth's two-sum), so that the second rounding is the only one.
inline float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    const double product = static_cast<double>(a) * b;
    const double addend = c;
    const double sum = product + addend;
    const double part = sum - product;
    const double error = (product - (sum - part)) + (addend - part);
    auto bits = bits_as<std::uint64_t>(sum);
    if (error == error && error != 0 && (bits & 1) == 0) bits += (error > 0) == (sum > 0) ? 1 : ~std::uint64_t{0};
    return static_cast<float>(bits_as<double>(bits));
#endif
}

/// Orders weights as unsigned integers: NaN is 0, then -infinity upwards; -0 and +0 share a rank.
inline std::uint32_t rank_of(float x) {
    if (x != x) return 0;
    if (x == 0) return 0x80000000;  // kRankOfZero
    const auto bits = bits_as<std::uint32_t>(x);
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

constexpr std::uint32_t kRankOfMinusInfinity = ~0xff800000U;
constexpr std::uint32_t kRankOfZero = 0x80000000U;
constexpr std::uint32_t kRankOfInfinity = 0xff800000U;

/// The bits of +infinity: among non-negative weights, numbers are at most these and NaN are above them.
inline constexpr std::uint16_t infinity_bits(half) { return 0x7c00; }
inline constexpr std::uint16_t infinity_bits(bfloat16) { return 0x7f80; }

/// The index of the lowest bit that is set; `bits` is not 0.
inline std::size_t lowest_bit(std::uint32_t bits) {
#if defined(_MSC_VER)
    unsigned long index;
    _BitScanForward(&index, bits);
    return index;
#else
    return static_cast<std::size_t>(__builtin_ctz(bits));
#endif
}

/// The weight of a rank between those of the two infinities.
inline float weight_of_rank(std::uint32_t rank) {
    return bits_as<float>(rank & 0x80000000 ? rank & 0x7fffffff : ~rank);
}

}  // namespace
}  // namespace attncache::ATTNCACHE_LEVEL
