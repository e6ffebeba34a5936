// The index of a layer: the mean over its heads, kept by query and by key, so that a mean row or column is a view.
#pragma once

#include "attncache/layer.hpp"

namespace attncache {

/// The mean over all heads of one batch item as float [query, key] and [key, query]: the bits that a query computes.
struct HeadMean final : Derived {
    const float* by_query = nullptr;
    const float* by_key = nullptr;
};

/// Whether head means are built: never, when they pay, or with each push.
enum class IndexPolicy : std::uint8_t { off, automatic, eager };

/// The head mean of a batch item if it is kept, nullptr if not. As `Slot::peek`.
inline const HeadMean* peek_head_mean(const Layer& layer, std::int64_t batch) {
    return static_cast<const HeadMean*>(layer.slot(Derivation::head_mean, batch).peek());
}

/// The head mean of a batch item for a query that costs `query_bytes` without it: kept already, or built now because
/// with this query it pays. Never waits for another thread that builds it; nullptr means: answer directly, as does a
/// build for which there is no memory. Throws what a Watcher throws.
std::shared_ptr<const HeadMean> head_mean_for(const Layer& layer, std::int64_t batch, IndexPolicy policy,
                                              std::int64_t query_bytes);

/// Builds the head mean of a batch item in one parallel pass over the pattern. Throws std::bad_alloc.
std::shared_ptr<const HeadMean> build_head_mean(const PatternView& pattern, std::int64_t batch);

}  // namespace attncache
