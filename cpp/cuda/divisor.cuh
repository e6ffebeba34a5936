// Division by a number that a whole launch shares: a product and a shift instead of the hundred instructions and two
// ways of a 64-bit division, which devices do not have.
//
// With 2^s the least power of two that is at least d, and m = ceil(2^(63+s) / d), which is less than 2^64:
//   n m / 2^(63+s) = n / d + n e / (d 2^(63+s)) where e = m d - 2^(63+s) < d <= 2^s,
// so the excess is below 1 / d for n < 2^63, and no integer lies between n / d and it: the quotient is exact.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"

namespace attncache::cuda {

/// A number that is at least 1, ready to divide by.
struct Divisor {
    std::int64_t value;
    std::uint64_t multiplier;  // m
    int shift;                 // s

    static Divisor of(std::int64_t value) {
        require(value >= 1);
        const auto d = static_cast<std::uint64_t>(value);
        int shift = 0;
        while ((std::uint64_t{1} << shift) < d) ++shift;
        std::uint64_t quotient = 1;  // of 2^s / d, then of twice as much 63 times
        std::uint64_t rest = (std::uint64_t{1} << shift) - d;
        for (int bit = 0; bit < 63; ++bit) {
            rest *= 2;
            quotient = quotient * 2 + (rest >= d ? 1 : 0);
            if (rest >= d) rest -= d;
        }
        return {value, quotient + (rest != 0 ? 1 : 0), shift};
    }
};

/// A quotient, and what is left over.
struct Divided {
    std::int64_t quotient, rest;
};

/// n / divisor, for n >= 0.
__device__ inline Divided divided(std::int64_t n, const Divisor& divisor) {
    const std::uint64_t high = __umul64hi(static_cast<std::uint64_t>(n) * 2, divisor.multiplier);
    const auto quotient = static_cast<std::int64_t>(high >> divisor.shift);
    return {quotient, n - quotient * divisor.value};
}

}  // namespace attncache::cuda
