// The pieces of copying a layer: memory for it, and its rows one by one.
#pragma once

#include <vector>

#include "../system/active_kernels.hpp"
#include "attncache/dense.hpp"

namespace attncache {

/// Memory for a layer, still to be written.
struct LayerCopy {
    std::shared_ptr<std::byte> memory;
    PatternView pattern;
};

/// Throws std::length_error if the bytes overflow, std::bad_alloc if they cannot be had.
LayerCopy allocate_copy(const Shape& shape, DType dtype);

/// Converts all rows of a source into a copy of its shape, in parallel.
void copy_rows(const SourceArray& source, const LayerCopy& copy);

/// A view as a source to copy from.
SourceArray source_of(const PatternView& view);

/// Part of a copy: `n` positions (queries) from `first` on, of all heads of the batch items from `batch` on.
LayerCopy part_of(const LayerCopy& copy, std::int64_t batch, std::int64_t n_batches, std::int64_t first,
                  std::int64_t n);

/// Converts rows of a source, gathering those whose keys are not contiguous or not aligned. One for each thread.
class RowCopier {
public:
    RowCopier(const SourceArray& source, const LayerCopy& copy, const KernelTable& kernels)
        : source_(source),
          copy_(copy),
          convert_(kernels.convert[static_cast<int>(source.dtype)][static_cast<int>(copy.pattern.dtype)]) {}

    void copy(std::int64_t batch, std::int64_t head, std::int64_t query);

private:
    const SourceArray& source_;
    const LayerCopy& copy_;
    Convert convert_;
    std::vector<std::byte> gathered_;
};

}  // namespace attncache
