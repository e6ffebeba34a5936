// The greatest score of a row and the sum of its powers: what turns scores into weights.
#pragma once

#include "block_scores.hpp"

namespace attncache {

/// Puts the parts of a row together: rescaled to the greatest of all and added in the order of the blocks, then the
/// sink. `scratch` has room for n_parts + 1 floats. Of nothing but hidden keys: {0, infinity}.
SoftmaxPart whole_row(const SoftmaxPart* parts, std::size_t n_parts, const float* sink, const KernelTable& kernels,
                      std::vector<float>& scratch);

/// The sums of some rows of heads that share a key head, in the order of `lines`.
void sum_rows(const FactoredView& view, std::int64_t batch, std::span<const ScoredLine> lines,
              const KernelTable& kernels, SoftmaxPart* out);

/// Whether any of them is.
bool has_nan(const std::vector<float>& sums);

/// About the work of scoring one line against one item, in the bytes that take as long to read.
std::int64_t work_of_score(const FactoredView& view);

/// The sinks of a head, or nullptr.
inline const float* sink_of(const FactoredView& view, std::int64_t head) {
    return view.scoring.sinks.empty() ? nullptr : view.scoring.sinks.data() + head;
}

}  // namespace attncache
