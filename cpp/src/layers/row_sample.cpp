// Rows at even distances through all rows of a source, each converted to float32 and added up.
#include "attncache/row_sample.hpp"

#include <algorithm>
#include <cmath>

#include "copying.hpp"

namespace attncache {
namespace {

constexpr std::int64_t kRows = 16;
constexpr std::int64_t kWeights = 16384;
constexpr std::int64_t kLanes = 16;

struct Row {
    float least;
    float sum;
};

Row look_at(const float* weights, std::int64_t n) {
    float least[kLanes] = {};
    float sums[kLanes] = {};
    const std::int64_t whole = n - n % kLanes;
    for (std::int64_t i = 0; i < whole; i += kLanes) {
        for (std::int64_t lane = 0; lane < kLanes; ++lane) {
            const float weight = weights[i + lane];
            least[lane] = weight < least[lane] ? weight : least[lane];
            sums[lane] += weight;
        }
    }
    for (std::int64_t i = whole; i < n; ++i) {
        least[i - whole] = std::min(least[i - whole], weights[i]);
        sums[i - whole] += weights[i];
    }
    Row row{0, 0};
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
        row.least = std::min(row.least, least[lane]);
        row.sum += sums[lane];
    }
    return row;
}

/// One row of a source, or the beginning of it, as a source.
SourceArray row_of(const SourceArray& source, std::int64_t number, std::int64_t n) {
    const Shape& shape = source.shape;
    const std::int64_t query = number % shape.seq_q;
    const std::int64_t head = number / shape.seq_q % shape.n_heads;
    const std::int64_t batch = number / shape.seq_q / shape.n_heads;
    SourceArray row = source;
    row.data += batch * source.strides[0] + head * source.strides[1] + query * source.strides[2];
    row.shape = {1, 1, 1, n};
    return row;
}

}  // namespace

RowSample sample_rows(const SourceArray& source) {
    const Shape& shape = source.shape;
    RowSample sample;
    if (shape.batch_size == 0 || shape.n_heads == 0 || shape.seq_q == 0 || shape.seq_k == 0) return sample;
    const std::int64_t n = std::min(shape.seq_k, kWeights);
    const std::int64_t n_rows = shape.batch_size * shape.n_heads * shape.seq_q;
    const std::int64_t n_looked_at = std::min({n_rows, kRows, kWeights / n});
    const LayerCopy copy = allocate_copy({1, 1, 1, n}, DType::float32);
    for (std::int64_t i = 0; i < n_looked_at; ++i) {
        // From the last row backwards: the first rows of a causal pattern say the least.
        const SourceArray row = row_of(source, n_rows - 1 - i * n_rows / n_looked_at, n);
        RowCopier(row, copy, active_kernels()).copy(0, 0, 0);
        const Row looked_at = look_at(reinterpret_cast<const float*>(copy.pattern.data), n);
        if (!std::isfinite(looked_at.sum)) continue;
        const bool is_first = sample.n_rows++ == 0;
        sample.least_weight = std::min<double>(sample.least_weight, looked_at.least);
        sample.least_sum = is_first ? looked_at.sum : std::min<double>(sample.least_sum, looked_at.sum);
        sample.greatest_sum = is_first ? looked_at.sum : std::max<double>(sample.greatest_sum, looked_at.sum);
    }
    return sample;
}

}  // namespace attncache
