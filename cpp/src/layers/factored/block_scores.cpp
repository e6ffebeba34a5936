// Panels of the other axis, one after another, against all lines; then the cap and the mask.
#include "block_scores.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

namespace attncache {
namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();
constexpr std::int64_t kPanel = static_cast<std::int64_t>(kPanelRows);

std::int64_t rounded_up(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

Range clipped(const Range& range, std::int64_t size) {
    const auto begin = std::clamp<std::int64_t>(range.begin, 0, size);
    return {begin, std::clamp<std::int64_t>(range.end, begin, size)};
}

Sight sight_of(const FactoredView& view) {
    return {view.query.shape.seq_q, view.key.shape.seq_q, view.scoring.causal, view.scoring.window};
}

/// The first of ascending ranges that ends after a position.
auto first_ending_after(const std::vector<Range>& ranges, std::int64_t position) {
    return std::partition_point(ranges.begin(), ranges.end(),
                                [=](const Range& range) { return range.end <= position; });
}

}  // namespace

Range FactoredView::visible_keys(std::int64_t query_position) const {
    return clipped(sight_of(*this).keys_of(query_position), key.shape.seq_q);
}

bool FactoredView::hides(std::int64_t batch, std::int64_t key_position) const {
    if (scoring.hidden_keys.empty()) return false;
    const auto& hidden = scoring.hidden_keys[static_cast<std::size_t>(batch)];
    const auto run = first_ending_after(hidden, key_position);
    return run != hidden.end() && run->begin <= key_position;
}

Range FactoredView::visible_queries(std::int64_t batch, std::int64_t key_position) const {
    if (hides(batch, key_position)) return {0, 0};
    return clipped(sight_of(*this).queries_of(key_position), query.shape.seq_q);
}

Range visible_to(const FactoredView& view, Direction direction, std::int64_t batch, const ScoredLine& line) {
    return direction == Direction::from ? view.visible_keys(line.position) : view.visible_queries(batch, line.position);
}

BlockScores::BlockScores(const FactoredView& view, Direction direction, const KernelTable& kernels)
    : view_(view),
      direction_(direction),
      kernels_(kernels),
      line_matrix_(direction == Direction::from ? view.query : view.key),
      other_matrix_(direction == Direction::from ? view.key : view.query),
      n_items_(rounded_up(view.head_dim(), 8)),
      panel_(allocate(n_items_ * kPanel * static_cast<std::int64_t>(sizeof(float)))) {}

void BlockScores::take(std::int64_t batch, std::span<const ScoredLine> lines) {
    const bool from = direction_ == Direction::from;
    batch_ = batch;
    lines_.assign(lines.begin(), lines.end());
    const std::int64_t head = lines.front().head;
    other_head_ = from ? view_.key_head_of(head) : head;
    visible_.clear();
    widened_.assign(lines.size() * static_cast<std::size_t>(n_items_), 0.0F);
    const auto widen = kernels_.of(line_matrix_.dtype).widen;
    for (std::size_t i = 0; i < lines.size(); ++i) {
        visible_.push_back(visible_to(view_, direction_, batch, lines[i]));
        const std::int64_t line_head = from ? lines[i].head : view_.key_head_of(lines[i].head);
        widen(line_matrix_.row(batch, line_head, lines[i].position), static_cast<std::size_t>(view_.head_dim()),
              widened_.data() + i * static_cast<std::size_t>(n_items_));
    }
    if (lines.size() > capacity_) {
        scores_ = allocate(static_cast<std::int64_t>(lines.size() * kBlock * sizeof(float)));
        capacity_ = lines.size();
    }
}

void BlockScores::turn_panel(std::int64_t begin, std::int64_t n, std::span<const std::int64_t> listed) {
    const auto panel_of = kernels_.of(other_matrix_.dtype).panel;
    const auto n_items = static_cast<std::size_t>(n_items_);
    if (listed.empty() && n == kPanel && n_items_ == view_.head_dim()) {
        panel_of(other_matrix_.row(batch_, other_head_, begin), other_matrix_.query_stride, n_items, panel());
        return;
    }
    // Rows that do not lie one after another, too few, or of an odd length: copied, with zeros for what is missing.
    const std::size_t item = item_bytes(other_matrix_.dtype);
    const std::size_t stride = n_items * item;
    staged_.assign(kPanelRows * stride, std::byte{0});
    for (std::int64_t row = 0; row < n; ++row) {
        const std::int64_t position = listed.empty() ? begin + row : listed[static_cast<std::size_t>(begin + row)];
        std::memcpy(staged_.data() + static_cast<std::size_t>(row) * stride,
                    other_matrix_.row(batch_, other_head_, position),
                    static_cast<std::size_t>(view_.head_dim()) * item);
    }
    panel_of(staged_.data(), static_cast<std::int64_t>(stride), n_items, panel());
}

void BlockScores::compute(std::int64_t begin, std::int64_t n, std::span<const std::int64_t> listed) {
    block_ = {begin, begin + n};
    is_listed_ = !listed.empty();
    const auto n_items = static_cast<std::size_t>(n_items_);
    for (std::int64_t first = begin; first < begin + n; first += kPanel) {
        const std::int64_t n_rows = std::min(kPanel, begin + n - first);
        const auto sees_panel = [&](const Range& visible) {
            return is_listed_ || (visible.begin < first + n_rows && first < visible.end);
        };
        const auto from = std::find_if(visible_.begin(), visible_.end(), sees_panel);
        if (from == visible_.end()) continue;
        const auto to = std::find_if(visible_.rbegin(), visible_.rend(), sees_panel).base();
        const auto first_line = static_cast<std::size_t>(from - visible_.begin());
        turn_panel(first, n_rows, listed);
        kernels_.scores(widened_.data() + first_line * n_items, n_items, static_cast<std::size_t>(to - from), panel(),
                        n_items, view_.scoring.scale, line(first_line) + (first - begin), kBlock);
    }
    for (std::size_t i = 0; i < lines_.size(); ++i) {
        if (!sees_any(i)) continue;
        cap(line(i), i, begin, n);
        if (is_listed_) {
            hide_listed(line(i), i, listed.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(n)));
        } else {
            hide(line(i), i, begin, n);
        }
        std::fill(line(i) + n, line(i) + rounded_up(n, 16), kHidden);
    }
}

void BlockScores::cap(float* scores, std::size_t index, std::int64_t begin, std::int64_t n) {
    if (view_.scoring.softcap == 0) return;
    const Range seen =
        is_listed_ ? Range{0, n} : clipped({visible_[index].begin - begin, visible_[index].end - begin}, n);
    kernels_.softcap(scores + seen.begin, static_cast<std::size_t>(seen.end - seen.begin), view_.scoring.softcap);
}

bool BlockScores::sees_any(std::size_t index) const {
    const Range& visible = visible_[index];
    return visible.begin < visible.end && (is_listed_ || (visible.begin < block_.end && block_.begin < visible.end));
}

void BlockScores::hide(float* scores, std::size_t index, std::int64_t begin, std::int64_t n) {
    const auto hide_range = [&](std::int64_t from, std::int64_t to) {
        from = std::max(from, begin);
        to = std::min(to, begin + n);
        if (from < to) std::fill(scores + (from - begin), scores + (to - begin), kHidden);
    };
    hide_range(begin, visible_[index].begin);
    hide_range(visible_[index].end, begin + n);
    if (direction_ == Direction::to || view_.scoring.hidden_keys.empty()) return;
    const auto& hidden = view_.scoring.hidden_keys[static_cast<std::size_t>(batch_)];
    for (auto run = first_ending_after(hidden, begin); run != hidden.end() && run->begin < begin + n; ++run)
        hide_range(run->begin, run->end);
}

void BlockScores::hide_listed(float* scores, std::size_t index, std::span<const std::int64_t> listed) {
    const Range& visible = visible_[index];
    for (std::size_t i = 0; i < listed.size(); ++i) {
        const bool is_outside = listed[i] < visible.begin || listed[i] >= visible.end;
        if (is_outside || (direction_ == Direction::from && view_.hides(batch_, listed[i]))) scores[i] = kHidden;
    }
}

}  // namespace attncache
