// Builds the index block by block: rows of the mean are written, then turned into columns while they are in the cache.
#include "attncache/index.hpp"

#include <algorithm>

#include "layer_copy.hpp"
#include "memory.hpp"
#include "parallel.hpp"
#include "queries/plane.hpp"

namespace attncache {
namespace {

/// Queries in a block: 16 floats of each key fill one cache line of the index by key.
constexpr std::int64_t kBlock = 16;

struct IndexMemory {
    HeadMeanIndex index;
    float* by_query;
    float* by_key;
};

IndexMemory allocate_index(const Shape& shape) {
    const std::int64_t n = shape.seq_q * shape.seq_k;
    const std::int64_t aligned = (n + 15) / 16 * 16;  // so that both halves begin at a cache line
    const std::int64_t n_bytes = 2 * aligned * static_cast<std::int64_t>(sizeof(float));
    const auto memory = allocate(n_bytes);
    auto* const by_query = reinterpret_cast<float*>(memory.get());
    return {{by_query, by_query + aligned, 2 * n * static_cast<std::int64_t>(sizeof(float)), memory},
            by_query,
            by_query + aligned};
}

/// Rows first..last of the mean, by query and by key.
void write_block(Plane& mean, const Shape& shape, const IndexMemory& memory, std::int64_t first, std::int64_t last) {
    const float* const rows = memory.by_query + first * shape.seq_k;
    for (std::int64_t q = first; q < last; ++q) mean.read_row(q, 0, shape.seq_k, memory.by_query + q * shape.seq_k);
    const std::int64_t n = last - first;
    for (std::int64_t key = 0; key < shape.seq_k; ++key) {
        float* const column = memory.by_key + key * shape.seq_q + first;
        for (std::int64_t q = 0; q < n; ++q) column[q] = rows[q * shape.seq_k + key];
    }
}

/// Calls work(first, last) for blocks of queries, in parallel.
template <class Work>
void for_each_block(const Shape& shape, std::int64_t bytes_per_row, const Work& work) {
    if (shape.seq_k == 0) return;
    parallel_for((shape.seq_q + kBlock - 1) / kBlock, kBlock * bytes_per_row,
                 [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t block = begin; block < end; ++block) {
                         work(block * kBlock, std::min((block + 1) * kBlock, shape.seq_q));
                     }
                 });
}

}  // namespace

IndexCosts index_costs(const PatternView& pattern) {
    constexpr std::int64_t cache_line = 64;
    constexpr std::int64_t result = sizeof(float);
    const Shape& shape = pattern.shape;
    const std::int64_t item = shape.n_heads * static_cast<std::int64_t>(item_bytes(pattern.dtype)) + result;
    const std::int64_t stray = shape.n_heads * cache_line + result;
    const std::int64_t n = shape.seq_q * shape.seq_k;
    return {shape.seq_k * item, shape.seq_q * stray, stray, n * item, n * (item + result)};
}

HeadMeanIndex build_index(const PatternView& pattern, std::int64_t batch) {
    const IndexMemory memory = allocate_index(pattern.shape);
    const KernelTable& kernels = active_kernels();
    for_each_block(pattern.shape, index_costs(pattern).row, [&](std::int64_t first, std::int64_t last) {
        Plane mean(pattern, batch, kernels);
        write_block(mean, pattern.shape, memory, first, last);
    });
    return memory.index;
}

std::pair<std::shared_ptr<const Layer>, std::vector<HeadMeanIndex>> copy_and_index_layer(const SourceArray& source,
                                                                                         DType dtype) {
    const LayerCopy copy = allocate_copy(source.shape, dtype);
    const PatternView& pattern = copy.pattern;
    const KernelTable& kernels = active_kernels();
    std::vector<HeadMeanIndex> indexes;
    for (std::int64_t batch = 0; batch < source.shape.batch_size; ++batch) {
        const IndexMemory memory = allocate_index(source.shape);
        for_each_block(source.shape, index_costs(pattern).row, [&](std::int64_t first, std::int64_t last) {
            RowCopier copier(source, copy, kernels);
            for (std::int64_t head = 0; head < source.shape.n_heads; ++head) {
                for (std::int64_t query = first; query < last; ++query) copier.copy(batch, head, query);
            }
            Plane mean(pattern, batch, kernels);
            write_block(mean, pattern.shape, memory, first, last);
        });
        indexes.push_back(memory.index);
    }
    return {std::make_shared<const Layer>(Layer{pattern, copy.memory}), std::move(indexes)};
}

}  // namespace attncache
