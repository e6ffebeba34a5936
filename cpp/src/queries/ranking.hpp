// The k heaviest items of one row.
#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/kernel_table.hpp"

namespace attncache {

/// Finds the k heaviest items of rows, one row at a time; keeps its buffer between them.
///
/// Candidates are sort keys (rank << 32 | ~position), unique and totally ordered, so any selection algorithm gives the
/// one right answer. A row is scanned once from the front: keys that can still matter are collected into a buffer, and
/// when it is full the k greatest are kept and the least of those becomes the threshold for the rest. An item equal to
/// the threshold lies further back than all that were kept, so it loses the tie and is not collected. The buffer holds
/// 2k + 64 keys: a prune costs O(buffer) and makes room for at least half as many, so a row costs O(n + k log k)
/// however it is sorted.
class Ranking {
public:
    explicit Ranking(std::int64_t k) : k_(static_cast<std::size_t>(k)), keys_(2 * k_ + 64) {}

    /// Writes the positions of the k heaviest of n >= k items.
    void rank(const RowKernels& kernels, const std::byte* row, std::size_t n, std::int64_t* positions);

private:
    std::size_t k_;
    std::vector<std::uint64_t> keys_;
};

}  // namespace attncache
