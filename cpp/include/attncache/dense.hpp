// Dense layers: the pattern as an array, copied into memory of its own or borrowed.
#pragma once

#include "attncache/layer.hpp"

namespace attncache {

/// An array to copy a layer from: any dtype, any strides in bytes, keys included.
struct SourceArray {
    const std::byte* data = nullptr;
    DType dtype = DType::float32;
    Shape shape;
    std::int64_t strides[4] = {0, 0, 0, 0};
};

/// A stored pattern and whatever keeps its memory alive.
class DenseLayer final : public Layer {
public:
    DenseLayer(const PatternView& pattern, std::shared_ptr<const void> memory);

    const PatternView& pattern() const { return pattern_; }
    /// Shared by everything that hands out the memory.
    const std::shared_ptr<const void>& memory() const { return memory_; }

    std::int64_t n_bytes() const override { return pattern_.n_bytes(); }
    Costs costs() const override;
    void read_lines(const LineRequest& request, const LinesOut& out) const override;

private:
    PatternView pattern_;
    std::shared_ptr<const void> memory_;
};

/// A contiguous, 64-byte-aligned copy of `source`, converted to `dtype` as NumPy's astype converts; with the head mean
/// of every batch item, made of the rows while they are in the cache, if `with_head_means`.
///
/// float32 -> float16 and float64 -> float16 round once to nearest even and keep subnormals; narrowing to bfloat16
/// rounds to nearest even; NaN stays NaN. Threads: the copy is split over rows.
/// Throws std::length_error if the bytes of the copy overflow, std::bad_alloc if they cannot be had.
std::shared_ptr<const DenseLayer> copy_layer(const SourceArray& source, DType dtype, bool with_head_means = false);

/// A layer over C-contiguous memory that `owner` keeps alive. Costs O(1), but for the head means if they are wanted.
std::shared_ptr<const DenseLayer> borrow_layer(const std::byte* data, DType dtype, const Shape& shape,
                                               std::shared_ptr<const void> owner, bool with_head_means = false);

/// The pattern of a layer of any kind as a dense one in `dtype`, computed block by block. Throws as `copy_layer`.
std::shared_ptr<const DenseLayer> dense_layer(const Layer& layer, DType dtype);

}  // namespace attncache
