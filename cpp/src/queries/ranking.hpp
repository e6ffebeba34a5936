// The k heaviest items of one row.
#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/kernel_table.hpp"

namespace attncache {

/// Finds the k heaviest items of rows, one row at a time; keeps its buffers between them.
///
/// Candidates are sort keys (rank << 32 | ~position), unique and totally ordered, so any selection gives the one right
/// answer. Three passes over a row that is in the first cache level after the first of them:
/// 1. `threshold` finds a rank that at least k items reach, and hardly more (O(n), a bisection over group maxima);
/// 2. `collect` makes keys of the items that reach it. Where many share that rank (the zeros of a causal row), the
///    buffer of 2k + 64 keys fills; then the k greatest are kept and only strictly heavier items still count, since
///    an equal one further back loses the tie: O(n + k) in all, however the row is sorted;
/// 3. the keys are sorted without a compare that a processor could mispredict: few by counting, many by radix.
/// If k is more than half of the row, there is nothing to gain by a threshold and all keys are sorted.
class Ranking {
public:
    Ranking(const KernelTable& kernels, std::int64_t k)
        : kernels_(kernels), k_(static_cast<std::size_t>(k)), keys_(2 * k_ + 64), sorted_(keys_.size()) {}

    /// Writes the positions of the k heaviest of n >= k items. `ahead` is the row to be ranked next, or this one.
    void rank(DType dtype, const std::byte* row, std::size_t n, std::int64_t* positions, const std::byte* ahead);

private:
    /// Collects candidates that reach a rank, in order of position; returns how many, at least k unless NaN are
    /// missing.
    std::size_t collect(const RowKernels& kernels, const std::byte* row, std::size_t n, std::uint32_t least_rank);
    /// The least of the k greatest among the first n_keys keys, which stay as they are.
    std::uint64_t least_of_greatest(std::size_t n_keys);
    /// The keys with at least the k greatest in front, greatest first.
    const std::uint64_t* sorted(std::size_t n_keys);

    auto at(std::size_t index) { return keys_.begin() + static_cast<std::ptrdiff_t>(index); }

    const KernelTable& kernels_;
    std::size_t k_;
    std::vector<std::uint64_t> keys_;
    std::vector<std::uint64_t> sorted_;
};

}  // namespace attncache
