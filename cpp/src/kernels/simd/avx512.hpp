// Sixteen lanes and masks: AVX-512 F, BW, VL and DQ (Intel Skylake-X, AMD Zen 4 and later).
#pragma once

#include <immintrin.h>

#include "item.hpp"

namespace attncache::ATTNCACHE_LEVEL {
namespace {

struct Simd {
    using Vec = __m512;
    static constexpr std::size_t lanes = 16;
    static constexpr std::size_t registers = 32;
#if (defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)) || \
    defined(_MSC_VER)
    static constexpr const char* instructions = "avx512f avx512bw avx512vl avx512dq";
#endif

    static Vec zero() { return _mm512_setzero_ps(); }
    static Vec set1(float x) { return _mm512_set1_ps(x); }

    static Vec load(const float* p) { return _mm512_loadu_ps(p); }
    static Vec load(const half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static Vec load(const bfloat16* p) {
        return widen_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static Vec load(const double* p) {
        return join(_mm512_cvtpd_ps(_mm512_loadu_pd(p)), _mm512_cvtpd_ps(_mm512_loadu_pd(p + 8)));
    }

    static Vec load_n(const float* p, std::size_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
    static Vec load_n(const half* p, std::size_t n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }
    static Vec load_n(const bfloat16* p, std::size_t n) {
        return widen_bfloat16(_mm256_maskz_loadu_epi16(first(n), p));
    }
    static Vec load_n(const double* p, std::size_t n) {
        const __mmask16 mask = first(n);
        const auto low = static_cast<__mmask8>(mask);
        const auto high = static_cast<__mmask8>(mask >> 8);
        return join(_mm512_cvtpd_ps(_mm512_maskz_loadu_pd(low, p)),
                    _mm512_cvtpd_ps(_mm512_maskz_loadu_pd(high, p + 8)));
    }

    static void store(Vec v, float* p) { _mm512_storeu_ps(p, v); }
    static void store(Vec v, half* p) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_half(v)); }
    static void store(Vec v, bfloat16* p) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bfloat16(v)); }

    static void store_n(Vec v, float* p, std::size_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
    static void store_n(Vec v, half* p, std::size_t n) { _mm256_mask_storeu_epi16(p, first(n), narrow_half(v)); }
    static void store_n(Vec v, bfloat16* p, std::size_t n) {
        _mm256_mask_storeu_epi16(p, first(n), narrow_bfloat16(v));
    }

    static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
    static void stream_line(const std::byte* from, std::byte* to) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_load_si512(from));
    }
    static void finish_streams() { _mm_sfence(); }

    static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
    static Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
    static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
    static Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
    static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
    static Vec min(Vec limit, Vec x) { return _mm512_min_ps(limit, x); }
    static Vec max(Vec x, Vec otherwise) { return _mm512_max_ps(x, otherwise); }
    static std::uint32_t ge(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
    static Vec if_less(Vec a, Vec b, Vec yes, Vec no) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
    }
    static Vec abs(Vec x) { return _mm512_abs_ps(x); }
    static Vec copy_sign(Vec magnitude, Vec sign) {
        return _mm512_or_ps(magnitude, _mm512_and_ps(_mm512_set1_ps(-0.0F), sign));
    }
    static Vec times_power_of_two(Vec x, Vec n) {
        return _mm512_castsi512_ps(
            _mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
    }

    using Bits = __m512i;
    static constexpr std::size_t bits_lanes = 32;
    static Bits set1_bits(std::uint16_t x) { return _mm512_set1_epi16(static_cast<short>(x)); }
    static Bits load_bits(const void* p) { return _mm512_loadu_si512(p); }
    static void store_bits(Bits v, std::uint16_t* p) { _mm512_storeu_si512(p, v); }
    static Bits max_bits(Bits a, Bits b) { return _mm512_max_epu16(a, b); }
    static std::uint32_t ge_bits(Bits a, Bits b) { return _mm512_cmpge_epu16_mask(a, b); }

    static Bits load_blocks(const std::byte* first, std::int64_t stride) {
        const auto block = [=](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(first + i * stride)); };
        const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(block(0)), block(1), 1);
        const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(block(2)), block(3), 1);
        return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    static Bits interleave_lower16(Bits a, Bits b) { return _mm512_unpacklo_epi16(a, b); }
    static Bits interleave_upper16(Bits a, Bits b) { return _mm512_unpackhi_epi16(a, b); }
    static Bits interleave_lower32(Bits a, Bits b) { return _mm512_unpacklo_epi32(a, b); }
    static Bits interleave_upper32(Bits a, Bits b) { return _mm512_unpackhi_epi32(a, b); }
    static Bits interleave_lower64(Bits a, Bits b) { return _mm512_unpacklo_epi64(a, b); }
    static Bits interleave_upper64(Bits a, Bits b) { return _mm512_unpackhi_epi64(a, b); }
    static void store_widened(Bits v, half, float* p) {
        _mm512_storeu_ps(p, _mm512_cvtph_ps(_mm512_castsi512_si256(v)));
        _mm512_storeu_ps(p + 16, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(v, 1)));
    }
    static void store_widened(Bits v, bfloat16, float* p) {
        _mm512_storeu_ps(p, widen_bfloat16(_mm512_castsi512_si256(v)));
        _mm512_storeu_ps(p + 16, widen_bfloat16(_mm512_extracti64x4_epi64(v, 1)));
    }
    static void store_widened(Bits v, float, float* p) { _mm512_storeu_ps(p, _mm512_castsi512_ps(v)); }

private:
    static __mmask16 first(std::size_t n) { return static_cast<__mmask16>((1U << n) - 1); }
    static Vec join(__m256 low, __m256 high) { return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1); }
    static Vec widen_bfloat16(__m256i bits) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    static __m256i narrow_half(Vec v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
    static __m256i narrow_bfloat16(Vec v) {
        const __m512i bits = _mm512_castps_si512(v);
        const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), last);
        const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        const __m512i kept = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
    }
};

}  // namespace
}  // namespace attncache::ATTNCACHE_LEVEL
