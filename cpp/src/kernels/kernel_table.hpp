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

    /// out[i] = the item at items[i] as float.
    void (*gather)(const std::byte* const* items, std::size_t n, float* out);

    /// out[i] = the i-th item as float, of n items that lie `stride` bytes apart.
    void (*column)(const std::byte* first, std::int64_t stride, std::size_t n, float* out);

    /// out[i] = (0 + rows[0][i] + rows[1][i] + ...) / n_rows, added in this order.
    void (*mean)(const std::byte* const* rows, std::size_t n_rows, std::size_t n, float* out);

    /// out[i] = (0 + the i-th item of each column, in order) / n_columns; items lie `stride` bytes apart.
    void (*mean_column)(const std::byte* const* firsts, std::size_t n_columns, std::int64_t stride, std::size_t n,
                        float* out);

    /// A rank that at least k items reach (1 <= k <= n; NaN count as reaching it only if it is 0), and few more if
    /// possible. Meanwhile the n items at `ahead`, which are read next, are fetched: any address will do.
    std::uint32_t (*threshold)(const std::byte* row, std::size_t n, std::size_t k, const std::byte* ahead);

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
    RowKernels rows[3];              // by the DType stored, which is never float64
    Convert convert[4][3];           // by the DType of the source and the DType stored
    Convert convert_streamed[4][3];  // the same past the caches, for results that are larger than these

    /// The n_wanted greatest of n sort keys, greatest first; quadratic, for up to a hundred or so.
    void (*order)(const std::uint64_t* keys, std::size_t n, std::size_t n_wanted, std::uint64_t* out);

    const RowKernels& of(DType dtype) const { return rows[static_cast<int>(dtype)]; }
};

}  // namespace attncache
