// Layers and the memory they own or borrow.
#pragma once

#include <memory>
#include <vector>

#include "attncache/pattern_view.hpp"

namespace attncache {

/// An array to copy a layer from: any dtype, any strides in bytes, keys included.
struct SourceArray {
    const std::byte* data = nullptr;
    DType dtype = DType::float32;
    Shape shape;
    std::int64_t strides[4] = {0, 0, 0, 0};
};

/// One layer's pattern and whatever keeps its memory alive. Never changes once made, so any number of threads may
/// read it; everything that hands out its memory shares `memory`.
struct Layer {
    PatternView pattern;
    std::shared_ptr<const void> memory;
};

/// A contiguous, 64-byte-aligned copy of `source`, converted to `dtype` as NumPy's astype converts.
///
/// float32 -> float16 and float64 -> float16 round once to nearest even and keep subnormals; narrowing to bfloat16
/// rounds to nearest even; NaN stays NaN. Threads: the copy is split over rows.
/// Throws std::length_error if the bytes of the copy overflow, std::bad_alloc if they cannot be had.
std::shared_ptr<const Layer> copy_layer(const SourceArray& source, DType dtype);

/// A layer over C-contiguous memory that `owner` keeps alive. Costs O(1).
std::shared_ptr<const Layer> borrow_layer(const std::byte* data, DType dtype, Shape shape,
                                          std::shared_ptr<const void> owner);

/// Layers in push order. Like a std::vector it may be read by many threads while none changes it; readers take
/// shared pointers out and keep their layers whatever happens to the store.
using Layers = std::vector<std::shared_ptr<const Layer>>;

}  // namespace attncache
