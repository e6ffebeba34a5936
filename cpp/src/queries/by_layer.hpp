// Selections that hold factored layers: asked layer by layer, each in its own way.
#pragma once

#include "../factored/queries.hpp"
#include "attncache/queries.hpp"

namespace attncache {

/// Calls ask_factored(layer, i) or ask_dense(selection of that layer alone, i) for the i-th layer, whose answers stand
/// one after another.
template <class AskFactored, class AskDense>
void for_each_layer(const Selection& selection, const AskFactored& ask_factored, const AskDense& ask_dense) {
    for (std::size_t i = 0; i < selection.layers.size(); ++i) {
        if (const FactoredLayer* const layer = selection.factored[i]) {
            ask_factored(FactoredSelection{*layer, selection.batches, selection.heads, selection.treat_heads},
                         static_cast<std::int64_t>(i));
            continue;
        }
        const std::size_t n_batches = selection.batches.size();
        Selection one{{selection.layers[i]}, selection.batches, selection.heads, selection.treat_heads, {}, {}};
        if (!selection.means.empty()) {
            const auto first = selection.means.begin() + static_cast<std::ptrdiff_t>(i * n_batches);
            one.means.assign(first, first + static_cast<std::ptrdiff_t>(n_batches));
        }
        ask_dense(one, static_cast<std::int64_t>(i));
    }
}

/// How many lines the answer about one layer has, of `n_positions` in each plane.
inline std::int64_t lines_per_layer(const Selection& selection, std::size_t n_positions) {
    return static_cast<std::int64_t>(selection.batches.size() * selection.n_head_results() * n_positions);
}

}  // namespace attncache
