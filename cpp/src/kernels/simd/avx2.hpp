// Eight lanes: AVX2 with F16C for float16 (Intel Haswell, AMD Excavator and later).
#pragma once

#include <immintrin.h>

#include "item.hpp"

namespace attncache::ATTNCACHE_LEVEL {
namespace {

struct Simd {
    using Vec = __m256;
    static constexpr std::size_t lanes = 8;
    static constexpr std::size_t registers = 16;
#if (defined(__AVX2__) && defined(__F16C__) && defined(__FMA__)) || defined(_MSC_VER)
    static constexpr const char* instructions = "avx2 f16c fma";
#endif

    static Vec zero() { return _mm256_setzero_ps(); }
    static Vec set1(float x) { return _mm256_set1_ps(x); }

    static Vec load(const float* p) { return _mm256_loadu_ps(p); }
    static Vec load(const half* p) { return _mm256_cvtph_ps(load_16bit(p)); }
    static Vec load(const bfloat16* p) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16bit(p)), 16));
    }
    static Vec load(const double* p) {
        return _mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(p + 4)), _mm256_cvtpd_ps(_mm256_loadu_pd(p)));
    }
    template <class T>
    static Vec load_n(const T* p, std::size_t n) {
        T items[lanes] = {};
        std::memcpy(items, p, n * sizeof(T));
        return load(items);
    }

    static void store(Vec v, float* p) { _mm256_storeu_ps(p, v); }
    static void store(Vec v, half* p) { store_16bit(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT), p); }
    static void store(Vec v, bfloat16* p) {
        const __m256i bits = _mm256_castps_si256(v);
        const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), last);
        const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
        const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0b11011000);
        store_16bit(_mm256_castsi256_si128(packed), p);
    }
    template <class T>
    static void store_n(Vec v, T* p, std::size_t n) {
        T items[lanes];
        store(v, items);
        std::memcpy(p, items, n * sizeof(T));
    }

    static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
    static void stream_line(const std::byte* from, std::byte* to) {
        const auto* source = reinterpret_cast<const __m256i*>(from);
        auto* line = reinterpret_cast<__m256i*>(to);
        _mm256_stream_si256(line, _mm256_load_si256(source));
        _mm256_stream_si256(line + 1, _mm256_load_si256(source + 1));
    }
    static void finish_streams() { _mm_sfence(); }

    static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
    static Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
    static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
    static Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
    static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
    static Vec min(Vec limit, Vec x) { return _mm256_min_ps(limit, x); }
    static Vec max(Vec x, Vec otherwise) { return _mm256_max_ps(x, otherwise); }
    static std::uint32_t ge(Vec a, Vec b) {
        return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
    }
    static Vec if_less(Vec a, Vec b, Vec yes, Vec no) {
        return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
    }
    static Vec abs(Vec x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), x); }
    static Vec copy_sign(Vec magnitude, Vec sign) {
        return _mm256_or_ps(magnitude, _mm256_and_ps(_mm256_set1_ps(-0.0F), sign));
    }
    static Vec times_power_of_two(Vec x, Vec n) {
        return _mm256_castsi256_ps(
            _mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
    }

    using Bits = __m256i;
    static constexpr std::size_t bits_lanes = 16;
    static Bits set1_bits(std::uint16_t x) { return _mm256_set1_epi16(static_cast<short>(x)); }
    static Bits load_bits(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static void store_bits(Bits v, std::uint16_t* p) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
    static Bits max_bits(Bits a, Bits b) { return _mm256_max_epu16(a, b); }
    static std::uint32_t ge_bits(Bits a, Bits b) {
        const __m256i is_ge = _mm256_cmpeq_epi16(_mm256_max_epu16(a, b), a);
        const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(is_ge, _mm256_setzero_si256()), 0b11011000);
        return static_cast<std::uint32_t>(_mm256_movemask_epi8(bytes));
    }

    static Bits load_blocks(const std::byte* first, std::int64_t stride) {
        return _mm256_inserti128_si256(_mm256_castsi128_si256(load_16bit(first)), load_16bit(first + stride), 1);
    }
    static Bits interleave_lower16(Bits a, Bits b) { return _mm256_unpacklo_epi16(a, b); }
    static Bits interleave_upper16(Bits a, Bits b) { return _mm256_unpackhi_epi16(a, b); }
    static Bits interleave_lower32(Bits a, Bits b) { return _mm256_unpacklo_epi32(a, b); }
    static Bits interleave_upper32(Bits a, Bits b) { return _mm256_unpackhi_epi32(a, b); }
    static Bits interleave_lower64(Bits a, Bits b) { return _mm256_unpacklo_epi64(a, b); }
    static Bits interleave_upper64(Bits a, Bits b) { return _mm256_unpackhi_epi64(a, b); }
    static void store_widened(Bits v, half, float* p) {
        _mm256_storeu_ps(p, _mm256_cvtph_ps(_mm256_castsi256_si128(v)));
        _mm256_storeu_ps(p + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1)));
    }
    static void store_widened(Bits v, bfloat16, float* p) {
        const auto widen = [](__m128i bits) {
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
        };
        _mm256_storeu_ps(p, widen(_mm256_castsi256_si128(v)));
        _mm256_storeu_ps(p + 8, widen(_mm256_extracti128_si256(v, 1)));
    }
    static void store_widened(Bits v, float, float* p) { _mm256_storeu_ps(p, _mm256_castsi256_ps(v)); }

private:
    static __m128i load_16bit(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
    static void store_16bit(__m128i v, void* p) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }
};

}  // namespace
}  // namespace attncache::ATTNCACHE_LEVEL
