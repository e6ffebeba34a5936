// What a factored layer keeps, how it grows, and how it becomes a dense one.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../copying.hpp"
#include "../../system/positions.hpp"
#include "growing_rows.hpp"
#include "row_sums.hpp"

namespace attncache {
namespace {

/// The normaliser of a row as if its sum had been computed: e^(score - lse) / 1.
std::unique_ptr<RowSums> row_sums_of(const std::vector<float>& lse) {
    auto rows = std::make_unique<RowSums>();
    rows->greatest = lse;
    rows->sums.assign(lse.size(), 1.0F);
    for (std::size_t i = 0; i < lse.size(); ++i) {
        if (std::isnan(lse[i])) rows->sums[i] = lse[i];
        if (!std::isinf(lse[i])) continue;  // a row without visible keys: libraries give one infinity or the other
        rows->greatest[i] = 0.0F;
        rows->sums[i] = std::numeric_limits<float>::infinity();
    }
    rows->has_nan = has_nan(rows->sums);
    return rows;
}

}  // namespace

FactoredLayer::FactoredLayer(Projection query, Projection key, Scoring scoring, std::vector<float> lse)
    : Layer(Kind::factored, FactoredView{query.view, key.view, {}}.shape(), query.view.dtype),
      view_{query.view, key.view, std::move(scoring)},
      query_(std::move(query)),
      key_(std::move(key)),
      has_given_lse_(!lse.empty()) {
    if (has_given_lse_) row_sums_.store(row_sums_of(lse).release());
}

FactoredLayer::~FactoredLayer() { delete row_sums_.load(); }

std::int64_t FactoredLayer::n_bytes() const {
    const RowSums* const rows = known_row_sums();
    const std::size_t floats = view_.scoring.sinks.size() + (rows == nullptr ? 0 : 2 * rows->sums.size());
    return view_.query.n_bytes() + view_.key.n_bytes() + static_cast<std::int64_t>(floats * sizeof(float));
}

Costs FactoredLayer::costs() const {
    const std::int64_t item = view_.head_dim() * static_cast<std::int64_t>(item_bytes(dtype()));
    const std::int64_t score = shape().n_heads * work_of_score(view_);
    const std::int64_t row = shape().seq_k * (view_.key.shape.n_heads * item + score);
    const std::int64_t column = shape().seq_q * (shape().n_heads * item + score);
    return {row, column, row, shape().seq_q * row, Costs::kNever};  // an index would be the square that it avoids
}

std::shared_ptr<const FactoredLayer> FactoredLayer::with_more(
    const SourceArray& query, const SourceArray& key, const std::vector<std::vector<Range>>& hidden_keys) const {
    Scoring scoring = view_.scoring;
    if (!hidden_keys.empty()) {
        scoring.hidden_keys.resize(static_cast<std::size_t>(view_.shape().batch_size));
        for (std::size_t batch = 0; batch < hidden_keys.size(); ++batch) {
            for (const Range& hidden : hidden_keys[batch]) {
                scoring.hidden_keys[batch].push_back(
                    {hidden.begin + view_.shape().seq_k, hidden.end + view_.shape().seq_k});
            }
        }
    }
    return std::make_shared<const FactoredLayer>(GrowingRows::append(query_, query), GrowingRows::append(key_, key),
                                                 std::move(scoring), std::vector<float>{});
}

std::shared_ptr<const FactoredLayer> FactoredLayer::with_given(RowSums rows) const {
    Scoring scoring = view_.scoring;
    scoring.sinks.clear();
    auto layer = std::make_shared<FactoredLayer>(query_, key_, std::move(scoring), std::vector<float>{});
    layer->has_given_lse_ = true;
    layer->adopt_row_sums(std::move(rows));
    return layer;
}

}  // namespace attncache
