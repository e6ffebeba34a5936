// Sixteen lanes and masks: AVX-512 F, BW, VL and DQ (Intel Skylake-X, AMD Zen 4 and later).
#pragma once

#include <immintrin.h>

#include "item.hpp"

namespace attncache::ATTNCACHE_LEVEL {
namespace {

struct Simd {
    using Vec = __m512;
    static constexpr std::size_t lanes = 16;
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
    static Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
    static Vec max(Vec x, Vec otherwise) { return _mm512_max_ps(x, otherwise); }
    static std::uint32_t ge(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }

    using Bits = __m512i;
    static constexpr std::size_t bits_lanes = 32;
    static Bits set1_bits(std::uint16_t x) { return _mm512_set1_epi16(static_cast<short>(x)); }
    static Bits load_bits(const void* p) { return _mm512_loadu_si512(p); }
    static void store_bits(Bits v, std::uint16_t* p) { _mm512_storeu_si512(p, v); }
    static Bits max_bits(Bits a, Bits b) { return _mm512_max_epu16(a, b); }
    static std::uint32_t ge_bits(Bits a, Bits b) { return _mm512_cmpge_epu16_mask(a, b); }

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
