// What a factored layer keeps, how it grows, and how it becomes a dense one.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../layer_copy.hpp"
#include "../positions.hpp"
#include "growing_rows.hpp"
#include "row_sums.hpp"
#include "weight_lines.hpp"

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

FactoredLayer::FactoredLayer(Rows query, Rows key, FactoredView options, std::vector<float> lse)
    : view_(std::move(options)), query_(std::move(query)), key_(std::move(key)), has_given_lse_(!lse.empty()) {
    view_.query = query_.view;
    view_.key = key_.view;
    if (has_given_lse_) row_sums_.store(row_sums_of(lse).release());
}

FactoredLayer::~FactoredLayer() { delete row_sums_.load(); }

std::int64_t FactoredLayer::n_bytes() const {
    const RowSums* const rows = known_row_sums();
    const std::size_t floats = view_.sinks.size() + (rows == nullptr ? 0 : 2 * rows->sums.size());
    return view_.query.n_bytes() + view_.key.n_bytes() + static_cast<std::int64_t>(floats * sizeof(float));
}

std::shared_ptr<const FactoredLayer> FactoredLayer::with_more(
    const SourceArray& query, const SourceArray& key, const std::vector<std::vector<Range>>& hidden_keys) const {
    FactoredView options = view_;
    if (!hidden_keys.empty()) {
        options.hidden_keys.resize(static_cast<std::size_t>(view_.shape().batch_size));
        for (std::size_t batch = 0; batch < hidden_keys.size(); ++batch) {
            for (const Range& hidden : hidden_keys[batch]) {
                options.hidden_keys[batch].push_back(
                    {hidden.begin + view_.shape().seq_k, hidden.end + view_.shape().seq_k});
            }
        }
    }
    return std::make_shared<const FactoredLayer>(GrowingRows::append(query_, query), GrowingRows::append(key_, key),
                                                 std::move(options), std::vector<float>{});
}

std::shared_ptr<const FactoredLayer> FactoredLayer::with_given(RowSums rows) const {
    FactoredView options = view_;
    options.sinks.clear();
    auto layer = std::make_shared<FactoredLayer>(query_, key_, std::move(options), std::vector<float>{});
    layer->has_given_lse_ = true;
    layer->adopt_row_sums(std::move(rows));
    return layer;
}

std::shared_ptr<const Layer> dense_layer(const FactoredLayer& layer, DType dtype) {
    constexpr std::int64_t kTogether = 4 * 1024 * 1024;  // weights: 16 MiB on their way to another dtype
    const Shape shape = layer.view().shape();
    const LayerCopy copy = allocate_copy(shape, dtype);
    const auto heads = first_positions(shape.n_heads);
    const auto queries = first_positions(shape.seq_q);
    const std::int64_t row_floats = std::max<std::int64_t>(1, shape.n_heads * shape.seq_k);
    const std::int64_t together = std::max<std::int64_t>(1, kTogether / row_floats);
    std::vector<float> slab;
    for (std::int64_t batch = 0; batch < shape.batch_size; ++batch) {
        for (std::int64_t first = 0; first < shape.seq_q; first += together) {
            const std::int64_t n = std::min(together, shape.seq_q - first);
            const auto chosen =
                std::span(queries).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(n));
            const LayerCopy part = part_of(copy, batch, 1, first, n);
            if (dtype == DType::float32) {
                auto* const out = reinterpret_cast<float*>(part.memory.get());
                weight_lines(layer, batch, heads, Direction::from, chosen, {},
                             {out, shape.seq_q * shape.seq_k, shape.seq_k});
                continue;
            }
            slab.resize(static_cast<std::size_t>(n * shape.n_heads * shape.seq_k));
            weight_lines(layer, batch, heads, Direction::from, chosen, {}, {slab.data(), n * shape.seq_k, shape.seq_k});
            const auto* const weights = reinterpret_cast<const std::byte*>(slab.data());
            copy_rows(source_of(contiguous_view(weights, DType::float32, part.pattern.shape)), part);
        }
    }
    return std::make_shared<const Layer>(Layer{copy.pattern, copy.memory});
}

}  // namespace attncache
