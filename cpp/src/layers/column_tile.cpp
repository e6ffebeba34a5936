// Columns by tiles of rows, or one by one.
#include "column_tile.hpp"

#include <algorithm>

namespace attncache {
namespace {

constexpr std::int64_t kTileQueries = 64;

}  // namespace

void read_columns(Plane& plane, std::int64_t seq_q, Queries queries, std::span<const std::int64_t> keys, float* out,
                  std::vector<float>& scratch) {
    const auto [least, greatest] = std::minmax_element(keys.begin(), keys.end());
    const std::int64_t first_key = *least;
    const std::int64_t span = *greatest - first_key + 1;
    const auto n_keys = static_cast<std::int64_t>(keys.size());
    const bool is_indexed = plane.stored_column(first_key) != nullptr;
    if (is_indexed || span * static_cast<std::int64_t>(item_bytes(plane.dtype())) > n_keys * kCacheLine ||
        n_keys == 1) {
        for (std::int64_t c = 0; c < n_keys; ++c) {
            plane.read_column(keys[static_cast<std::size_t>(c)], queries.first, queries.last - queries.first,
                              out + c * seq_q + queries.first);
        }
        return;
    }
    scratch.resize(static_cast<std::size_t>(kTileQueries * span));
    for (std::int64_t block = queries.first; block < queries.last; block += kTileQueries) {
        const std::int64_t n_queries = std::min(kTileQueries, queries.last - block);
        for (std::int64_t q = 0; q < n_queries; ++q) {
            plane.read_row(block + q, first_key, span, scratch.data() + q * span);
        }
        for (std::int64_t c = 0; c < n_keys; ++c) {
            const float* from = scratch.data() + (keys[static_cast<std::size_t>(c)] - first_key);
            float* to = out + c * seq_q + block;
            for (std::int64_t q = 0; q < n_queries; ++q) to[q] = from[q * span];
        }
    }
}

}  // namespace attncache
