// The scores of some lines of a pattern against a block of the other axis: rows (queries against keys) or columns (keys
// against queries). The same products in the same order either way, so the same bits.
#pragma once

#include <span>
#include <vector>

#include "../../system/active_kernels.hpp"
#include "attncache/memory.hpp"
#include "attncache/factored.hpp"
#include "attncache/queries.hpp"

namespace attncache {

/// Items of the other axis that are scored together; softmax sums are made of such blocks of keys.
constexpr std::int64_t kBlock = 256;

/// Lines that are scored together, unless more heads share a key head. Turning a panel of keys costs about as much as
/// the scores of six lines; scores (256 KiB) and lines (128 KiB at 128 items) stay in the second cache level.
constexpr std::size_t kLinesTogether = 256;

/// A row or column of one head.
struct ScoredLine {
    std::int64_t head;
    std::int64_t position;
};

/// What of the other axis may be seen by a line.
Range visible_to(const FactoredView& view, Direction direction, std::int64_t batch, const ScoredLine& line);

/// Buffers of one thread.
class BlockScores {
public:
    BlockScores(const FactoredView& view, Direction direction, const KernelTable& kernels);

    /// At most kLinesTogether lines that read the same matrix on the other axis: queries of heads that share a key
    /// head, or keys for one head.
    void take(std::int64_t batch, std::span<const ScoredLine> lines);

    /// Scores `n` <= kBlock items from `begin` on, or those `listed`. What a line may not see is -infinity, and so is
    /// everything from n up to the next multiple of 16.
    void compute(std::int64_t begin, std::int64_t n, std::span<const std::int64_t> listed);

    /// The scores of one line, to be read or turned into weights.
    float* line(std::size_t index) { return scores() + index * kBlock; }
    /// Whether the line sees any item of the last block.
    bool sees_any(std::size_t index) const;

private:
    float* scores() { return reinterpret_cast<float*>(scores_.get()); }
    float* panel() { return reinterpret_cast<float*>(panel_.get()); }
    void turn_panel(std::int64_t begin, std::int64_t n, std::span<const std::int64_t> listed);
    void cap(float* scores, std::size_t index, std::int64_t begin, std::int64_t n);
    void hide(float* scores, std::size_t index, std::int64_t begin, std::int64_t n);
    void hide_listed(float* scores, std::size_t index, std::span<const std::int64_t> listed);

    const FactoredView& view_;
    Direction direction_;
    const KernelTable& kernels_;
    const PatternView& line_matrix_;
    const PatternView& other_matrix_;
    std::int64_t n_items_;  // of a line, with zeros up to a multiple of 8
    std::int64_t batch_ = 0;
    std::int64_t other_head_ = 0;
    Range block_{0, 0};
    bool is_listed_ = false;
    std::vector<ScoredLine> lines_;
    std::vector<Range> visible_;  // by line
    std::vector<float> widened_;  // [line, item]
    std::vector<std::byte> staged_;
    std::shared_ptr<std::byte> panel_;
    std::size_t capacity_ = 0;           // lines
    std::shared_ptr<std::byte> scores_;  // [line, kBlock]
};

}  // namespace attncache
