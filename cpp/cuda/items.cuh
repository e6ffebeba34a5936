// How stored items are read: one at a time or 8 or 16 bytes at a time, widened to float exactly.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "attncache/types.hpp"

namespace attncache::cuda {

/// Items of the storage type that one read of 16 bytes gives.
template <class Item>
constexpr int kWide = 16 / sizeof(Item);

__device__ inline float widen_bits(float, std::uint32_t bits) { return __uint_as_float(bits); }
__device__ inline float widen_bits(bfloat16, std::uint32_t bits) { return __uint_as_float(bits << 16); }
__device__ inline float widen_bits(half, std::uint32_t bits) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

__device__ inline std::uint32_t bits_at(const float* item) { return __float_as_uint(__ldg(item)); }
__device__ inline std::uint32_t bits_at(const bfloat16* item) { return __ldg(&item->bits); }
__device__ inline std::uint32_t bits_at(const half* item) { return __ldg(&item->bits); }

/// Items as they are stored: one, or those of 8 or 16 bytes.
template <class Item, int kCount>
struct Stored {
    std::uint32_t words[(kCount * sizeof(Item) + 3) / 4];

    /// Negative zeros, which change no sum.
    static __device__ Stored nothing() {
        Stored result;
        for (std::uint32_t& word : result.words) word = sizeof(Item) == 4 ? 0x80000000 : 0x80008000;
        return result;
    }
};

/// Reads kCount items: one, or as many as make 8 or 16 bytes at an address that is a multiple of them.
template <int kCount, class Item>
__device__ inline Stored<Item, kCount> stored_at(const Item* items) {
    if constexpr (kCount == 1) {
        return {{bits_at(items)}};
    } else if constexpr (kCount * sizeof(Item) == 8) {
        const uint2 read = __ldg(reinterpret_cast<const uint2*>(items));
        return {{read.x, read.y}};
    } else {
        static_assert(kCount == kWide<Item>);
        const uint4 read = __ldg(reinterpret_cast<const uint4*>(items));
        return {{read.x, read.y, read.z, read.w}};
    }
}

template <class Item, int kCount>
__device__ inline void widen(const Stored<Item, kCount>& stored, float (&floats)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        if constexpr (sizeof(Item) == 4) {
            floats[i] = widen_bits(Item{}, stored.words[i]);
        } else {
            floats[i] = widen_bits(Item{}, stored.words[i / 2] >> (i % 2 * 16) & 0xffff);
        }
    }
}

/// Reads kCount items as floats.
template <int kCount, class Item>
__device__ inline void read(const Item* items, float (&floats)[kCount]) {
    widen(stored_at<kCount>(items), floats);
}

/// Writes kCount floats that nobody here reads again: one, or fours to an address that is a multiple of 16.
template <int kCount>
__device__ inline void write(const float (&floats)[kCount], float* out) {
    if constexpr (kCount == 1) {
        *out = floats[0];
    } else {
#pragma unroll
        for (int i = 0; i < kCount; i += 4) {  // named: nvcc takes a plain store of divided floats apart
            __stcs(reinterpret_cast<float4*>(out + i),
                   make_float4(floats[i], floats[i + 1], floats[i + 2], floats[i + 3]));
        }
    }
}

/// Calls work(Item{}) with the storage type of a dtype: the one switch over dtypes, the same for a whole block.
template <class Work>
__device__ inline void with_item(DType dtype, const Work& work) {
    switch (dtype) {
        case DType::float16: return work(half{});
        case DType::bfloat16: return work(bfloat16{});
        default: return work(0.0F);
    }
}

}  // namespace attncache::cuda
