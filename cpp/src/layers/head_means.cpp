// Builds head means block by block: rows are written, then turned into columns while they are in the cache.
#include "head_means.hpp"

#include <algorithm>
#include <new>

#include "attncache/memory.hpp"
#include "../system/parallel.hpp"
#include "plane.hpp"

namespace attncache {
namespace {

/// Queries in a block: 16 floats of each key fill one cache line of the index by key.
constexpr std::int64_t kBlock = 16;

/// A head mean that is being written.
struct Building {
    std::shared_ptr<HeadMean> mean;
    float* by_query;
    float* by_key;
};

Building allocate_head_mean(const Shape& shape) {
    const std::int64_t n = shape.seq_q * shape.seq_k;
    const std::int64_t aligned = (n + 15) / 16 * 16;  // so that both halves begin at a cache line
    const auto memory = allocate(2 * aligned * static_cast<std::int64_t>(sizeof(float)));
    auto* const by_query = reinterpret_cast<float*>(memory.get());
    const auto mean = std::make_shared<HeadMean>();
    mean->n_bytes = 2 * n * static_cast<std::int64_t>(sizeof(float));
    mean->memory = memory;
    mean->by_query = by_query;
    mean->by_key = by_query + aligned;
    return {mean, by_query, by_query + aligned};
}

/// Rows first..last of the mean, by query and by key.
void write_block(Plane& mean, const Shape& shape, const Building& memory, std::int64_t first, std::int64_t last) {
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
void for_each_block(const Shape& shape, std::int64_t row_bytes, const Work& work) {
    if (shape.seq_k == 0) return;
    parallel_for((shape.seq_q + kBlock - 1) / kBlock, kBlock * row_bytes, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t block = begin; block < end; ++block) {
            work(block * kBlock, std::min((block + 1) * kBlock, shape.seq_q));
        }
    });
}

std::int64_t bytes_per_row(const PatternView& pattern) {
    return pattern.shape.seq_k * (pattern.shape.n_heads * static_cast<std::int64_t>(item_bytes(pattern.dtype)) +
                                  static_cast<std::int64_t>(sizeof(float)));
}

}  // namespace

std::shared_ptr<const HeadMean> build_head_mean(const PatternView& pattern, std::int64_t batch) {
    const Building memory = allocate_head_mean(pattern.shape);
    const KernelTable& kernels = active_kernels();
    for_each_block(pattern.shape, bytes_per_row(pattern), [&](std::int64_t first, std::int64_t last) {
        Plane mean(pattern, batch, kernels);
        write_block(mean, pattern.shape, memory, first, last);
    });
    return memory.mean;
}

void copy_with_head_means(const SourceArray& source, const LayerCopy& copy, const Layer& layer) {
    const PatternView& pattern = copy.pattern;
    const KernelTable& kernels = active_kernels();
    for (std::int64_t batch = 0; batch < source.shape.batch_size; ++batch) {
        const Building memory = allocate_head_mean(source.shape);
        for_each_block(source.shape, bytes_per_row(pattern), [&](std::int64_t first, std::int64_t last) {
            RowCopier copier(source, copy, kernels);
            for (std::int64_t head = 0; head < source.shape.n_heads; ++head) {
                for (std::int64_t query = first; query < last; ++query) copier.copy(batch, head, query);
            }
            Plane mean(pattern, batch, kernels);
            write_block(mean, pattern.shape, memory, first, last);
        });
        layer.slot(Derivation::head_mean, batch).put(memory.mean);
    }
}

std::shared_ptr<const HeadMean> head_mean_for(const Layer& layer, std::int64_t batch, IndexPolicy policy,
                                              std::int64_t query_bytes) {
    Slot& slot = layer.slot(Derivation::head_mean, batch);
    if (slot.peek() == nullptr) {
        if (policy == IndexPolicy::off || layer.stored() == nullptr) return nullptr;
        const std::int64_t build_bytes = layer.costs().head_mean;
        if (build_bytes == Costs::kNever || !slot.begin_building(query_bytes, build_bytes)) return nullptr;
        try {
            slot.put(build_head_mean(*layer.stored(), batch));
        } catch (const std::bad_alloc&) {  // for what nobody asked for: go on without it
            slot.put(nullptr);
        } catch (...) {
            slot.put(nullptr);
            throw;
        }
    }
    return std::static_pointer_cast<const HeadMean>(slot.get());
}

}  // namespace attncache
