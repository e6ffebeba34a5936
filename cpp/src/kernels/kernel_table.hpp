// What a SIMD level provides: one function pointer per kernel and storage type. Each level fills one KernelTable.
#pragma once

#include "attncache/types.hpp"

namespace attncache {

/// Where `collect` stopped, and how many keys it wrote.
struct Collected {
    std::size_t end;
    std::size_t n_keys;
};

/// The kernels over one storage type; rows are given as bytes, so that queries need not know it. All are exact: the
/// same bits on every level.
struct RowKernels {
    /// out[i] = row[i] as float.
    void (*widen)(const std::byte* row, std::size_t n, float* out);

    /// out[i] = row[positions[i]] as float.
    void (*gather)(const std::byte* row, const std::int64_t* positions, std::size_t n, float* out);

    /// out[i] = the i-th item as float, of n items that lie `stride` bytes apart.
    void (*column)(const std::byte* first, std::int64_t stride, std::size_t n, float* out);

    /// out[i] = (0 + rows[0][i] + rows[1][i] + ...) / n_rows, added in this order.
    void (*mean)(const std::byte* const* rows, std::size_t n_rows, std::size_t n, float* out);

    /// out[i] = (0 + the i-th item of each column, in order) / n_columns; items lie `stride` bytes apart.
    void (*mean_column)(const std::byte* const* firsts, std::size_t n_columns, std::int64_t stride, std::size_t n,
                        float* out);

    /// Appends a sort key for each item from `begin` on whose rank is at least `least_rank`, until `n` items are seen
    /// or `capacity` keys are written. A sort key is rank << 32 | ~position: the greater key is the heavier weight,
    /// and among equal weights the lower position; the ranks of NaN, -infinity, ..., +infinity ascend from 0.
    Collected (*collect)(const std::byte* row, std::size_t begin, std::size_t n, std::uint32_t least_rank,
                         std::uint64_t* keys, std::size_t capacity);
};

/// Converts n contiguous items as NumPy's astype does.
using Convert = void (*)(const std::byte* source, std::size_t n, std::byte* destination);

struct KernelTable {
    const char* level;
    const char* instructions;
    RowKernels rows[3];     // by the DType stored, which is never float64
    Convert convert[4][3];  // by the DType of the source and the DType stored

    const RowKernels& of(DType dtype) const { return rows[static_cast<int>(dtype)]; }
};

}  // namespace attncache
