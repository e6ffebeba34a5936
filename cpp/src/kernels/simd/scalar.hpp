// The level that every machine has: one lane, integer conversions. The oracle of the other levels.
#pragma once

#include "item.hpp"

namespace attncache::ATTNCACHE_LEVEL {
namespace {

struct Simd {
    using Vec = float;
    static constexpr std::size_t lanes = 1;
    static constexpr std::size_t registers = 16;
    static constexpr const char* instructions = "baseline";

    static Vec zero() { return 0; }
    static Vec set1(float x) { return x; }

    template <class T>
    static Vec load(const T* p) {
        return widen_item(*p);
    }
    static Vec load(const double* p) { return static_cast<float>(*p); }
    template <class T>
    static Vec load_n(const T*, std::size_t) {
        return 0;
    }

    template <class T>
    static void store(Vec v, T* p) {
        narrow_item(v, p);
    }
    template <class T>
    static void store_n(Vec, T*, std::size_t) {}

    static void prefetch(const void*) {}
    static void stream_line(const std::byte* from, std::byte* to) { std::memcpy(to, from, 64); }
    static void finish_streams() {}

    static Vec add(Vec a, Vec b) { return a + b; }
    static Vec sub(Vec a, Vec b) { return a - b; }
    static Vec mul(Vec a, Vec b) { return a * b; }
    static Vec div(Vec a, Vec b) { return a / b; }
    static Vec fma(Vec a, Vec b, Vec c) { return fused(a, b, c); }
    static Vec min(Vec limit, Vec x) { return x > limit ? limit : x; }
    static Vec max(Vec x, Vec otherwise) { return x > otherwise ? x : otherwise; }
    static std::uint32_t ge(Vec a, Vec b) { return a >= b; }
    static Vec if_less(Vec a, Vec b, Vec yes, Vec no) { return a < b ? yes : no; }
    static Vec abs(Vec x) { return bits_as<float>(bits_as<std::uint32_t>(x) & 0x7fffffff); }
    static Vec copy_sign(Vec magnitude, Vec sign) {
        return bits_as<float>(bits_as<std::uint32_t>(magnitude) | (bits_as<std::uint32_t>(sign) & 0x80000000));
    }
    static Vec times_power_of_two(Vec x, Vec n) {
        return bits_as<float>(bits_as<std::uint32_t>(x) + (bits_as<std::uint32_t>(n) << 23));
    }

    using Bits = std::uint16_t;
    static constexpr std::size_t bits_lanes = 1;
    static Bits set1_bits(std::uint16_t x) { return x; }
    static Bits load_bits(const void* p) { return bits_as<std::uint16_t>(*static_cast<const half*>(p)); }
    static void store_bits(Bits v, std::uint16_t* p) { *p = v; }
    static Bits max_bits(Bits a, Bits b) { return a > b ? a : b; }
    static std::uint32_t ge_bits(Bits a, Bits b) { return a >= b; }
};

}  // namespace
}  // namespace attncache::ATTNCACHE_LEVEL
