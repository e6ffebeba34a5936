// What a SIMD level provides: one function pointer per kernel and storage type. Each level fills one KernelTable.
#pragma once

#include "attncache/types.hpp"

namespace attncache {

/// Where `collect` stopped, and how many keys it wrote.
struct Collected {
    std::size_t end;
    std::size_t n_keys;
};

/// How many rows of a matrix stand side by side in a panel.
constexpr std::size_t kPanelRows = 32;

/// What a softmax needs of some of its scores: the greatest, and the sum of e^(score - greatest).
struct SoftmaxPart {
    float greatest;
    float sum;
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

    /// out[i * kPanelRows + r] = item i of row r as float, of kPanelRows rows that begin `stride` bytes apart; n_items
    /// is a multiple of 8.
    void (*panel)(const std::byte* rows, std::int64_t stride, std::size_t n_items, float* out);
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

    /// out[q * out_stride + r] = scale * (0 + queries[q][0] * panel[0][r] + queries[q][1] * panel[1][r] + ...), fused,
    /// for all kPanelRows rows r of a panel; a query begins query_stride floats after the one before.
    void (*scores)(const float* queries, std::size_t query_stride, std::size_t n_queries, const float* panel,
                   std::size_t n_items, float scale, float* out, std::size_t out_stride);

    /// scores[i] = cap * tanh(scores[i] / cap).
    void (*softcap)(float* scores, std::size_t n, float cap);

    /// The greatest of n scores and the sum of e^(score - greatest); n is a multiple of 16. See softmax.inl.hpp.
    SoftmaxPart (*softmax_part)(const float* scores, std::size_t n);

    /// scores[i] = e^(scores[i] - greatest) / sum, for scores of one row.
    void (*row_weights)(float* scores, std::size_t n, SoftmaxPart whole);

    /// scores[i] = e^(scores[i] - greatest[i]) / sums[i], for scores of one column.
    void (*column_weights)(float* scores, std::size_t n, const float* greatest, const float* sums);

    const RowKernels& of(DType dtype) const { return rows[static_cast<int>(dtype)]; }
};

}  // namespace attncache
