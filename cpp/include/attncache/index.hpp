// The index of a layer: its head mean, kept by query and by key, so that a mean row or column is a view.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "attncache/store.hpp"

namespace attncache {

/// The head mean of one batch item as float [query, key] and [key, query]: the bits that `head_mean` gives.
struct HeadMeanIndex {
    const float* by_query = nullptr;
    const float* by_key = nullptr;
    std::int64_t n_bytes = 0;
    std::shared_ptr<const void> memory;

    bool is_built() const { return by_query != nullptr; }
};

/// Builds the index in one parallel pass over the pattern. Throws std::bad_alloc.
HeadMeanIndex build_index(const PatternView& pattern, std::int64_t batch);

/// `copy_layer`, and the index of every batch item from the rows while they are in the cache.
std::pair<std::shared_ptr<const Layer>, std::vector<HeadMeanIndex>> copy_and_index_layer(const SourceArray& source,
                                                                                         DType dtype);

/// When to build an index that nobody asked for.
///
/// Every query that the index could answer adds what it costs without it; the index is built as soon as this sum,
/// with the query at hand, reaches the cost of building. This is the ski-rental rule. Let B be the cost of building and
/// D that of all queries answered directly. In hindsight the better choice costs min(D, B) (answers from the index
/// count as free). While D < B nothing is built and the rule costs D, the optimum. Otherwise it has spent less than B
/// on direct answers, then B: less than twice the optimum, however the queries come. Costs are bytes moved, as all of
/// them are bound by memory; a stray item costs its cache line.
class IndexRule {
public:
    /// Counts a query; true if the index should be built before it.
    bool pays(std::int64_t query_bytes, std::int64_t build_bytes) {
        spent_ = query_bytes > kNever - spent_ ? kNever : spent_ + query_bytes;
        return spent_ >= build_bytes;
    }
    /// Starts counting afresh.
    void reset() { spent_ = 0; }

private:
    static constexpr std::int64_t kNever = INT64_MAX;
    std::int64_t spent_ = 0;
};

/// What answers about the mean of all heads of a batch item cost without the index, and the index itself, in bytes.
struct IndexCosts {
    std::int64_t row;     // one query
    std::int64_t column;  // one key: a cache line for each item
    std::int64_t edge;    // one weight
    std::int64_t layer;   // all queries
    std::int64_t build;
};
IndexCosts index_costs(const PatternView& pattern);

}  // namespace attncache
