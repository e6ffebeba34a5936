// Reads several columns of a plane at once.
#pragma once

#include "plane.hpp"

namespace attncache {

/// A range of queries, first..last.
struct Queries {
    std::int64_t first;
    std::int64_t last;
};

/// out[c * seq_q + q] = weight of keys[c] for query q, for the queries of a range and up to kTileColumns keys.
///
/// A single column costs one cache line per query and head. When the keys lie so close together that reading the
/// whole span between the outermost of them costs no more bytes than that, rows of the span are read instead (in
/// blocks of queries that stay in the second cache level) and turned into columns.
void read_columns(Plane& plane, std::int64_t seq_q, Queries queries, std::span<const std::int64_t> keys, float* out,
                  std::vector<float>& scratch);

/// What reading one stray item costs in bytes.
constexpr std::int64_t kCacheLine = 64;

/// The most columns that one read takes: a span of them in one row of a head fills a few cache lines, a block of
/// kTileQueries such rows (64 KiB of floats) stays in the second cache level.
constexpr std::int64_t kTileColumns = 256;

}  // namespace attncache
