// Products of queries with a panel of keys. Each score is one chain of fused multiply-adds over the items, in their
// order, from +0; then one multiplication with the scale. Lanes are keys and never meet, so the width of a level and
// the tile a score is computed in cannot change a bit of it.
//
// A tile of kTileQueries x 2 vectors of scores stays in registers: for each item of the queries, two loads of keys and
// a broadcast for each query feed two multiply-adds per query.
namespace attncache::ATTNCACHE_LEVEL {
namespace {

constexpr std::size_t kTileQueries = Simd::registers == 32 ? 12 : 6;  // of 2 accumulators each, and 3 registers more

/// One tile: kQueries x 2 vectors.
template <std::size_t kQueries>
void score_tile(const float* queries, std::size_t query_stride, const float* panel, std::size_t n_items, float scale,
                float* out, std::size_t out_stride) {
    typename Simd::Vec sums[kQueries][2];
#pragma GCC unroll 16
    for (std::size_t q = 0; q < kQueries; ++q) sums[q][0] = sums[q][1] = Simd::zero();
    for (std::size_t i = 0; i < n_items; ++i) {
        const auto keys0 = Simd::load(panel + i * kPanelRows);
        const auto keys1 = Simd::load(panel + i * kPanelRows + Simd::lanes);
#pragma GCC unroll 16
        for (std::size_t q = 0; q < kQueries; ++q) {
            const auto query = Simd::set1(queries[q * query_stride + i]);
            sums[q][0] = Simd::fma(query, keys0, sums[q][0]);
            sums[q][1] = Simd::fma(query, keys1, sums[q][1]);
        }
    }
    const auto factor = Simd::set1(scale);
#pragma GCC unroll 16
    for (std::size_t q = 0; q < kQueries; ++q) {
        Simd::store(Simd::mul(sums[q][0], factor), out + q * out_stride);
        Simd::store(Simd::mul(sums[q][1], factor), out + q * out_stride + Simd::lanes);
    }
}

/// The tile of the n_queries <= kQueries that are left.
template <std::size_t kQueries>
void score_rest(std::size_t n_queries, const float* queries, std::size_t query_stride, const float* panel,
                std::size_t n_items, float scale, float* out, std::size_t out_stride) {
    if constexpr (kQueries > 0) {
        if (n_queries < kQueries) {
            score_rest<kQueries - 1>(n_queries, queries, query_stride, panel, n_items, scale, out, out_stride);
        } else {
            score_tile<kQueries>(queries, query_stride, panel, n_items, scale, out, out_stride);
        }
    }
}

inline void scores(const float* queries, std::size_t query_stride, std::size_t n_queries, const float* panel,
                   std::size_t n_items, float scale, float* out, std::size_t out_stride) {
    for (; n_queries > 0; queries += kTileQueries * query_stride, out += kTileQueries * out_stride) {
        const std::size_t n = n_queries < kTileQueries ? n_queries : kTileQueries;
        for (std::size_t v = 0; v < kPanelRows; v += 2 * Simd::lanes) {
            score_rest<kTileQueries>(n, queries, query_stride, panel + v, n_items, scale, out + v, out_stride);
        }
        n_queries -= n;
    }
}

}  // namespace
}  // namespace attncache::ATTNCACHE_LEVEL
