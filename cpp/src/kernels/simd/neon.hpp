// Four lanes: NEON, which every 64-bit Arm has.
#pragma once

#include <arm_neon.h>

#include "item.hpp"

namespace attncache::ATTNCACHE_LEVEL {
namespace {

struct Simd {
    using Vec = float32x4_t;
    static constexpr std::size_t lanes = 4;
    static constexpr std::size_t registers = 32;
    static constexpr const char* instructions = "neon";

    static Vec zero() { return vdupq_n_f32(0); }
    static Vec set1(float x) { return vdupq_n_f32(x); }

    static Vec load(const float* p) { return vld1q_f32(p); }
    static Vec load(const half* p) { return vcvt_f32_f16(vreinterpret_f16_u16(load_16bit(p))); }
    static Vec load(const bfloat16* p) { return vreinterpretq_f32_u32(vshll_n_u16(load_16bit(p), 16)); }
    static Vec load(const double* p) { return vcvt_high_f32_f64(vcvt_f32_f64(vld1q_f64(p)), vld1q_f64(p + 2)); }
    template <class T>
    static Vec load_n(const T* p, std::size_t n) {
        T items[lanes] = {};
        std::memcpy(items, p, n * sizeof(T));
        return load(items);
    }

    static void store(Vec v, float* p) { vst1q_f32(p, v); }
    static void store(Vec v, half* p) { store_16bit(vreinterpret_u16_f16(vcvt_f16_f32(v)), p); }
    static void store(Vec v, bfloat16* p) {
        const uint32x4_t bits = vreinterpretq_u32_f32(v);
        const uint32x4_t last = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), last);
        const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
        const uint32x4_t is_number = vceqq_f32(v, v);
        store_16bit(vshrn_n_u32(vbslq_u32(is_number, rounded, quiet), 16), p);
    }
    template <class T>
    static void store_n(Vec v, T* p, std::size_t n) {
        T items[lanes];
        store(v, items);
        std::memcpy(p, items, n * sizeof(T));
    }

    static void prefetch(const void* p) { __builtin_prefetch(p); }
    static void stream_line(const std::byte* from, std::byte* to) { std::memcpy(to, from, 64); }
    static void finish_streams() {}

    static Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
    static Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
    static Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
    static Vec div(Vec a, Vec b) { return vdivq_f32(a, b); }
    static Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
    static Vec min(Vec limit, Vec x) { return vbslq_f32(vcgtq_f32(x, limit), limit, x); }
    static Vec max(Vec x, Vec otherwise) { return vbslq_f32(vcgtq_f32(x, otherwise), x, otherwise); }
    static std::uint32_t ge(Vec a, Vec b) {
        const std::uint32_t lane_bits[lanes] = {1, 2, 4, 8};
        return vaddvq_u32(vandq_u32(vcgeq_f32(a, b), vld1q_u32(lane_bits)));
    }
    static Vec if_less(Vec a, Vec b, Vec yes, Vec no) { return vbslq_f32(vcltq_f32(a, b), yes, no); }
    static Vec abs(Vec x) { return vabsq_f32(x); }
    static Vec copy_sign(Vec magnitude, Vec sign) { return vbslq_f32(vdupq_n_u32(0x80000000), sign, magnitude); }
    static Vec times_power_of_two(Vec x, Vec n) {
        return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(x), vshlq_n_u32(vreinterpretq_u32_f32(n), 23)));
    }

    using Bits = uint16x8_t;
    static constexpr std::size_t bits_lanes = 8;
    static Bits set1_bits(std::uint16_t x) { return vdupq_n_u16(x); }
    static Bits load_bits(const void* p) {
        uint16x8_t bits;
        std::memcpy(&bits, p, sizeof bits);
        return bits;
    }
    static void store_bits(Bits v, std::uint16_t* p) { vst1q_u16(p, v); }
    static Bits max_bits(Bits a, Bits b) { return vmaxq_u16(a, b); }
    static std::uint32_t ge_bits(Bits a, Bits b) {
        const std::uint16_t lane_bits[bits_lanes] = {1, 2, 4, 8, 16, 32, 64, 128};
        return vaddvq_u16(vandq_u16(vcgeq_u16(a, b), vld1q_u16(lane_bits)));
    }

    static Bits load_blocks(const std::byte* first, std::int64_t) { return load_bits(first); }
    static Bits interleave_lower16(Bits a, Bits b) { return vzip1q_u16(a, b); }
    static Bits interleave_upper16(Bits a, Bits b) { return vzip2q_u16(a, b); }
    static Bits interleave_lower32(Bits a, Bits b) {
        return vreinterpretq_u16_u32(vzip1q_u32(vreinterpretq_u32_u16(a), vreinterpretq_u32_u16(b)));
    }
    static Bits interleave_upper32(Bits a, Bits b) {
        return vreinterpretq_u16_u32(vzip2q_u32(vreinterpretq_u32_u16(a), vreinterpretq_u32_u16(b)));
    }
    static Bits interleave_lower64(Bits a, Bits b) {
        return vreinterpretq_u16_u64(vzip1q_u64(vreinterpretq_u64_u16(a), vreinterpretq_u64_u16(b)));
    }
    static Bits interleave_upper64(Bits a, Bits b) {
        return vreinterpretq_u16_u64(vzip2q_u64(vreinterpretq_u64_u16(a), vreinterpretq_u64_u16(b)));
    }
    static void store_widened(Bits v, half, float* p) {
        vst1q_f32(p, vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(v))));
        vst1q_f32(p + 4, vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(v))));
    }
    static void store_widened(Bits v, bfloat16, float* p) {
        vst1q_f32(p, vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16)));
        vst1q_f32(p + 4, vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(v), 16)));
    }
    static void store_widened(Bits v, float, float* p) { vst1q_f32(p, vreinterpretq_f32_u16(v)); }

private:
    static uint16x4_t load_16bit(const void* p) {
        uint16x4_t bits;
        std::memcpy(&bits, p, sizeof bits);
        return bits;
    }
    static void store_16bit(uint16x4_t bits, void* p) { std::memcpy(p, &bits, sizeof bits); }
};

}  // namespace
}  // namespace attncache::ATTNCACHE_LEVEL
