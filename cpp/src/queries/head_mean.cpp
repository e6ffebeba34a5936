// The mean over all heads: one row, one column, a whole layer.
#include "../parallel.hpp"
#include "plane.hpp"
#include "ranking.hpp"

namespace attncache {
namespace {

constexpr std::int64_t kCacheLine = 64;

std::int64_t bytes_per_result(const PatternView& pattern, std::int64_t bytes_per_item) {
    return pattern.shape.n_heads * bytes_per_item + static_cast<std::int64_t>(sizeof(float));
}

}  // namespace

void mean_row(const PatternView& pattern, std::int64_t batch, std::int64_t query, float* out) {
    const auto bytes = bytes_per_result(pattern, static_cast<std::int64_t>(item_bytes(pattern.dtype)));
    const KernelTable& kernels = active_kernels();
    parallel_for(pattern.shape.seq_k, bytes, [&](std::int64_t begin, std::int64_t end) {
        Plane(pattern, batch, kernels).read_row(query, begin, end - begin, out + begin);
    });
}

void mean_column(const PatternView& pattern, std::int64_t batch, std::int64_t key, float* out) {
    const KernelTable& kernels = active_kernels();
    parallel_for(pattern.shape.seq_q, bytes_per_result(pattern, kCacheLine), [&](std::int64_t begin, std::int64_t end) {
        Plane(pattern, batch, kernels).read_column(key, begin, end - begin, out + begin);
    });
}

void head_mean(const PatternView& pattern, std::int64_t batch, float* out) {
    const std::int64_t seq_k = pattern.shape.seq_k;
    const auto bytes = seq_k * bytes_per_result(pattern, static_cast<std::int64_t>(item_bytes(pattern.dtype)));
    const KernelTable& kernels = active_kernels();
    parallel_for(pattern.shape.seq_q, bytes, [&](std::int64_t begin, std::int64_t end) {
        Plane plane(pattern, batch, kernels);
        for (std::int64_t query = begin; query < end; ++query) plane.read_row(query, 0, seq_k, out + query * seq_k);
    });
}

void heaviest(const float* weights, std::int64_t n, std::int64_t k, std::int64_t* positions) {
    const auto* const row = reinterpret_cast<const std::byte*>(weights);
    Ranking(active_kernels(), k).rank(DType::float32, row, static_cast<std::size_t>(n), positions, row);
}

}  // namespace attncache
