// Rows or columns of a factored layer as weights. Columns need the sums of all rows, and so do listed keys.
//
// Lines that read the same matrix are computed together, block by block, on all threads. If the sums of the rows are
// known, a block's scores become weights at once. Otherwise the scores are left in the result, the sums are made of the
// parts that the blocks give, and a second pass over the result turns it into weights: the keys are read only once.
#include "block_scores.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../../system/parallel.hpp"
#include "row_sums.hpp"

namespace attncache {
namespace {

constexpr std::int64_t kSegment = 16 * 1024;  // weights that a thread makes of scores in one go: 64 KiB

/// Lines that are computed together: heads first_head..last_head of the request at its positions first..last.
struct Piece {
    std::size_t first_head;
    std::size_t last_head;
    std::size_t first;
    std::size_t last;
};

/// The work of one request.
class WeightLines {
public:
    WeightLines(const FactoredLayer& layer, const LineRequest& request, const LinesOut& out)
        : view_(layer.view()),
          batch_(request.batch),
          heads_(request.heads),
          direction_(request.direction),
          positions_(request.positions),
          listed_(request.listed),
          out_(out),
          kernels_(active_kernels()),
          length_(!listed_.empty()                ? static_cast<std::int64_t>(listed_.size())
                  : direction_ == Direction::from ? view_.shape().seq_k
                                                  : view_.shape().seq_q),
          n_blocks_((length_ + kBlock - 1) / kBlock) {
        plan();
        const auto n_rows = static_cast<std::int64_t>(heads_.size() * positions_.size());
        const bool needs_all = direction_ == Direction::to || (!listed_.empty() && layer.row_sums_pay(n_rows));
        row_sums_ = needs_all ? &layer.row_sums() : layer.known_row_sums();
    }

    void run() {
        if (length_ == 0 || pieces_.empty()) return;
        if (direction_ == Direction::from && row_sums_ == nullptr) {
            if (!listed_.empty()) {
                sum_lines();
            } else {
                parts_.resize(n_lines() * static_cast<std::size_t>(n_blocks_));
            }
        }
        compute_blocks();
        if (!parts_.empty()) finish_lines();
    }

private:
    void plan() {
        for (std::size_t head = 0, end; head < heads_.size(); head = end) {
            end = head + 1;
            while (direction_ == Direction::from && end < heads_.size() &&
                   view_.key_head_of(heads_[end]) == view_.key_head_of(heads_[head])) {
                ++end;
            }
            const std::size_t together = std::max<std::size_t>(1, kLinesTogether / (end - head));
            for (std::size_t first = 0; first < positions_.size(); first += together) {
                pieces_.push_back({head, end, first, std::min(first + together, positions_.size())});
            }
        }
    }

    std::size_t n_lines() const { return heads_.size() * positions_.size(); }

    /// The number of a line in the request.
    std::size_t index_of(std::size_t head, std::size_t position) const { return head * positions_.size() + position; }

    float* out_of(std::size_t head, std::size_t position) const {
        return out_.out + static_cast<std::int64_t>(head) * out_.head_stride +
               static_cast<std::int64_t>(position) * out_.line_stride;
    }

    /// Calls work(i, head, position) for the lines of a piece in the order in which they are computed.
    template <class Work>
    static void for_each_line(const Piece& piece, const Work& work) {
        std::size_t i = 0;
        for (std::size_t position = piece.first; position < piece.last; ++position) {
            for (std::size_t head = piece.first_head; head < piece.last_head; ++head) work(i++, head, position);
        }
    }

    std::vector<ScoredLine> lines_of(const Piece& piece) const {
        std::vector<ScoredLine> lines;
        for_each_line(piece, [&](std::size_t, std::size_t head, std::size_t position) {
            lines.push_back({heads_[head], positions_[position]});
        });
        return lines;
    }

    void sum_lines() {
        whole_.resize(n_lines());
        const std::int64_t work = view_.shape().seq_k * work_of_score(view_) * lines_per_piece();
        parallel_for(static_cast<std::int64_t>(pieces_.size()), work, [&](std::int64_t begin, std::int64_t end) {
            std::vector<SoftmaxPart> sums;
            for (std::int64_t p = begin; p < end; ++p) {
                const Piece& piece = pieces_[static_cast<std::size_t>(p)];
                const std::vector<ScoredLine> lines = lines_of(piece);
                sums.resize(lines.size());
                sum_rows(view_, batch_, lines, kernels_, sums.data());
                for_each_line(piece, [&](std::size_t i, std::size_t head, std::size_t position) {
                    whole_[index_of(head, position)] = sums[i];
                });
            }
        });
    }

    std::int64_t lines_per_piece() const { return static_cast<std::int64_t>(n_lines() / pieces_.size() + 1); }

    void compute_blocks() {
        const auto n_units = static_cast<std::int64_t>(pieces_.size()) * n_blocks_;
        const std::int64_t read = view_.head_dim() * static_cast<std::int64_t>(item_bytes(view_.key.dtype));
        const std::int64_t work = std::min(kBlock, length_) * (read + work_of_score(view_) * lines_per_piece());
        parallel_for(n_units, work, [&](std::int64_t begin, std::int64_t end) {
            BlockScores scores(view_, direction_, kernels_);
            while (begin < end) {
                const std::int64_t p = begin / n_blocks_;
                const Piece& piece = pieces_[static_cast<std::size_t>(p)];
                scores.take(batch_, lines_of(piece));
                for (; begin < std::min(end, (p + 1) * n_blocks_); ++begin) {
                    const std::int64_t first = begin % n_blocks_ * kBlock;
                    const std::int64_t n = std::min(kBlock, length_ - first);
                    scores.compute(first, n, listed_);
                    for_each_line(piece, [&](std::size_t i, std::size_t head, std::size_t position) {
                        store_block(scores, i, head, position, first, n);
                    });
                }
            }
        });
    }

    /// Puts a line's share of a block into the result: weights, or scores and the part of their sum.
    void store_block(BlockScores& scores, std::size_t i, std::size_t head, std::size_t position, std::int64_t first,
                     std::int64_t n) {
        float* const out = out_of(head, position) + first;
        const auto n_bytes = static_cast<std::size_t>(n) * sizeof(float);
        const bool sees_any = scores.sees_any(i);
        if (!parts_.empty()) {
            SoftmaxPart part{-std::numeric_limits<float>::infinity(), 0.0F};
            if (sees_any) {
                part = kernels_.softmax_part(scores.line(i), static_cast<std::size_t>(n + 15) / 16 * 16);
                std::memcpy(out, scores.line(i), n_bytes);
            }
            parts_[index_of(head, position) * static_cast<std::size_t>(n_blocks_) +
                   static_cast<std::size_t>(first / kBlock)] = part;
        } else if (sees_any || has_nan()) {
            if (!sees_any) std::fill_n(scores.line(i), n, -std::numeric_limits<float>::infinity());
            make_weights(scores.line(i), head, position, first, n);
            std::memcpy(out, scores.line(i), n_bytes);
        } else {
            std::memset(out, 0, n_bytes);
        }
    }

    /// Whether some hidden weight is not 0: in a row whose sum is NaN, every weight is NaN.
    bool has_nan() const { return row_sums_ != nullptr && row_sums_->has_nan; }

    void make_weights(float* scores, std::size_t head, std::size_t position, std::int64_t first, std::int64_t n) {
        const auto count = static_cast<std::size_t>(n);
        if (row_sums_ == nullptr) return kernels_.row_weights(scores, count, whole_[index_of(head, position)]);
        const Shape shape = view_.shape();
        const auto row = static_cast<std::size_t>((batch_ * shape.n_heads + heads_[head]) * shape.seq_q);
        if (direction_ == Direction::from) {
            const std::size_t at = row + static_cast<std::size_t>(positions_[position]);
            return kernels_.row_weights(scores, count, {row_sums_->greatest[at], row_sums_->sums[at]});
        }
        const std::size_t at = row + static_cast<std::size_t>(first);
        kernels_.column_weights(scores, count, row_sums_->greatest.data() + at, row_sums_->sums.data() + at);
    }

    /// Makes weights of the scores of rows whose parts are all there.
    void finish_lines() {
        const auto n_blocks = static_cast<std::size_t>(n_blocks_);
        whole_.resize(n_lines());
        parallel_for(static_cast<std::int64_t>(n_lines()), n_blocks_ * 16, [&](std::int64_t begin, std::int64_t end) {
            std::vector<float> scratch;
            for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
                const std::int64_t head = heads_[i / positions_.size()];
                whole_[i] = whole_row(parts_.data() + i * n_blocks, n_blocks, sink_of(view_, head), kernels_, scratch);
            }
        });
        const std::int64_t n_segments = (length_ + kSegment - 1) / kSegment;
        const auto bytes = 4 * std::min(kSegment, length_) * static_cast<std::int64_t>(sizeof(float));
        parallel_for(static_cast<std::int64_t>(n_lines()) * n_segments, bytes,
                     [&](std::int64_t begin, std::int64_t end) {
                         for (; begin < end; ++begin) {
                             const auto i = static_cast<std::size_t>(begin / n_segments);
                             const std::int64_t first = begin % n_segments * kSegment;
                             finish_segment(i, first, std::min(first + kSegment, length_));
                         }
                     });
    }

    void finish_segment(std::size_t i, std::int64_t first, std::int64_t last) {
        const std::size_t head = i / positions_.size();
        const std::size_t position = i % positions_.size();
        float* const out = out_of(head, position);
        Range visible = visible_to(view_, Direction::from, batch_, {heads_[head], positions_[position]});
        visible = {std::clamp(visible.begin, first, last), std::clamp(visible.end, first, last)};
        const float hidden = std::isnan(whole_[i].sum) ? whole_[i].sum : 0.0F;
        std::fill(out + first, out + visible.begin, hidden);
        kernels_.row_weights(out + visible.begin, static_cast<std::size_t>(visible.end - visible.begin), whole_[i]);
        std::fill(out + visible.end, out + last, hidden);
    }

    const FactoredView& view_;
    std::int64_t batch_;
    std::span<const std::int64_t> heads_;
    Direction direction_;
    std::span<const std::int64_t> positions_;
    std::span<const std::int64_t> listed_;
    LinesOut out_;
    const KernelTable& kernels_;
    std::int64_t length_;
    std::int64_t n_blocks_;
    std::vector<Piece> pieces_;
    const RowSums* row_sums_ = nullptr;
    std::vector<SoftmaxPart> parts_;  // [line, block], while the sums are not known
    std::vector<SoftmaxPart> whole_;  // by line
};

}  // namespace

void FactoredLayer::read_lines(const LineRequest& request, const LinesOut& out) const {
    WeightLines(*this, request, out).run();
}

}  // namespace attncache
