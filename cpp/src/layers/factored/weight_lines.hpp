// Rows or columns of a factored layer as weights.
#pragma once

#include "block_scores.hpp"

namespace attncache {

/// Where the weights of a line go: `out + head * head_stride + line * line_stride` floats.
struct LinesOut {
    float* out;
    std::int64_t head_stride;
    std::int64_t line_stride;
};

/// The lines at `positions` (queries: rows, keys: columns) of `heads`, over the whole other axis or, for rows, at the
/// keys `listed` if there are any. Columns need the sums of all rows, which are computed if they are not known; listed
/// keys need those of their rows. Parallel over heads, lines and blocks.
void weight_lines(const FactoredLayer& layer, std::int64_t batch, std::span<const std::int64_t> heads,
                  Direction direction, std::span<const std::int64_t> positions, std::span<const std::int64_t> listed,
                  const LinesOut& out);

}  // namespace attncache
