// How stored items are read: one at a time or 16 bytes at a time, widened to float exactly.
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

/// Reads kCount items as floats: one, or the kWide<Item> of an address that is a multiple of 16.
template <int kCount, class Item>
__device__ inline void read(const Item* items, float (&floats)[kCount]) {
    if constexpr (kCount == 1) {
        floats[0] = widen_bits(Item{}, bits_at(items));
    } else {
        static_assert(kCount == kWide<Item>);
        const uint4 read = __ldg(reinterpret_cast<const uint4*>(items));
        const std::uint32_t words[4] = {read.x, read.y, read.z, read.w};
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            if constexpr (sizeof(Item) == 4) {
                floats[i] = widen_bits(Item{}, words[i]);
            } else {
                floats[i] = widen_bits(Item{}, words[i / 2] >> (i % 2 * 16) & 0xffff);
            }
        }
    }
}

/// Writes kCount floats: one, or fours to an address that is a multiple of 16.
template <int kCount>
__device__ inline void write(const float (&floats)[kCount], float* out) {
    if constexpr (kCount == 1) {
        *out = floats[0];
    } else {
#pragma unroll
        for (int i = 0; i < kCount; i += 4) {  // named: nvcc takes a plain store of divided floats apart
            __stwb(reinterpret_cast<float4*>(out + i),
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
