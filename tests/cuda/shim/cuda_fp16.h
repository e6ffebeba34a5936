// Half precision as CUDA's header names it: a conversion, in integers and exact.
#pragma once

#include "device.hpp"

struct __half {
    unsigned short bits;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }

inline float __half2float(__half x) {
    const unsigned sign = static_cast<unsigned>(x.bits & 0x8000) << 16;
    const unsigned exponent = x.bits >> 10 & 31;
    const unsigned fraction = x.bits & 1023;
    if (exponent == 31) return shim::bits_as<float>(sign | 0x7f800000 | fraction << 13 | (fraction != 0) << 22);
    if (exponent == 0) {
        return shim::bits_as<float>(sign | shim::bits_as<unsigned>(std::ldexp(static_cast<float>(fraction), -24)));
    }
    return shim::bits_as<float>(sign | (exponent + 112) << 23 | fraction << 13);
}
