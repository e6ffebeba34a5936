// Rows of a layer of queries and keys: weights e^(score - m) / s, of each head or as the mean over heads.
//
// Floor: that of the scores (factored_scores.cuh), where nearly all bytes are, and then the scores of each line read
// and written once more: 8 bytes * lines * seq_k / bandwidth, mostly in the caches.
//
// How: for a batch item, and for as many positions as a scratch of kScratchBytes holds: queries are widened by the rows
// kernel, scores computed by bundles and left in the result, and each line's block sums brought to its m and s; then
// scores become weights. A mean over heads is made by the rows kernel from the lines of all heads.
//
// Bounded as cpp/include/attncache/factored.hpp says, with expf and tanhf as CUDA's programming guide bounds them. The
// order of every sum is fixed: the same bits for the same request.
#include "factored_scores.cuh"
#include "rows.cuh"

namespace attncache::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kLanes;
constexpr int kTile = 16 * kThreads;  // keys of a block of the weights kernel

/// The greater of two, where NaN is never greater.
__device__ inline float greater_of(float one, float other) { return other > one ? other : one; }

/// The greatest and the sum over a block's threads, known to all of them.
__device__ inline float greatest_of_block(float greatest, float (&of_warps)[kWarps]) {
#pragma unroll
    for (int other = 1; other < kLanes; other *= 2) {
        greatest = greater_of(greatest, __shfl_xor_sync(kAllLanes, greatest, other));
    }
    if (threadIdx.x % kLanes == 0) of_warps[threadIdx.x / kLanes] = greatest;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) greatest = greater_of(greatest, of_warps[w]);
    __syncthreads();
    return greatest;
}

__device__ inline float sum_of_block(float sum, float (&of_warps)[kWarps]) {
#pragma unroll
    for (int other = 1; other < kLanes; other *= 2) sum += __shfl_xor_sync(kAllLanes, sum, other);
    if (threadIdx.x % kLanes == 0) of_warps[threadIdx.x / kLanes] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += of_warps[w];
    __syncthreads();
    return sum;
}

/// m and s of a row whose normaliser was given: as if its sum were 1, or infinite if no key is visible.
__device__ inline SoftmaxPart whole_of_lse(float lse) {
    if (isinf(lse)) return {0.0F, INFINITY};
    return {lse, isnan(lse) ? lse : 1.0F};
}

/// m and s of a row from the parts of its blocks, and its sink. A row without a visible key: 0 and infinity.
__device__ inline SoftmaxPart whole_of_parts(const SoftmaxPart* parts, std::int64_t n_blocks, const float* sink,
                                             float (&of_warps)[kWarps]) {
    float greatest = sink == nullptr ? kHidden : *sink;
#pragma unroll 4
    for (std::int64_t b = threadIdx.x; b < n_blocks; b += kThreads) greatest = greater_of(greatest, parts[b].greatest);
    greatest = greatest_of_block(greatest, of_warps);
    const float base = greatest == kHidden ? 0.0F : greatest;
    float sum = 0;
#pragma unroll 4
    for (std::int64_t b = threadIdx.x; b < n_blocks; b += kThreads)
        sum += parts[b].sum * expf(parts[b].greatest - base);
    sum = sum_of_block(sum, of_warps);
    if (sink != nullptr) sum += expf(*sink - base);
    if (greatest == kHidden && sum == 0) return {0.0F, INFINITY};
    return {base, sum};
}

/// e^(score - m) / s. Beyond e^88, which only a given normaliser can ask for, as the CPU has it.
__device__ inline float weight_of(float score, const SoftmaxPart& whole) {
    const float distance = score - whole.greatest;
    return __fdiv_rn(expf(distance > 88.0F ? 88.0F : distance), whole.sum);
}

__global__ void __launch_bounds__(kThreads)
    factored_weights_kernel(FactoredLines lines, Divisor n_tiles, std::int64_t head_stride,
                            const SoftmaxPart* parts /* [line, block] */,
                            float* out /* [listed head] at head_stride, [position, key]: scores become weights */) {
    __shared__ float of_warps[kWarps];
    const std::int64_t n_blocks = quotient_up(lines.seq_k, kKeysOfBlock);
    const std::int64_t n_units = lines.n_heads * lines.n_positions.value * n_tiles.value;
    for_each_unit(n_units, [&](std::int64_t unit) {
        const auto [line, tile] = divided(unit, n_tiles);
        const auto [listed, position] = divided(line, lines.n_positions);
        const std::int64_t begin = tile * kTile;
        const std::int64_t head = lines.heads[listed];
        const SoftmaxPart whole = lines.lse != nullptr
                                      ? whole_of_lse(lines.lse[head * lines.seq_q + lines.positions[position]])
                                      : whole_of_parts(parts + line * n_blocks, n_blocks,
                                                       lines.sinks == nullptr ? nullptr : lines.sinks + head, of_warps);
        float* const row = out + listed * head_stride + position * lines.seq_k;
        const std::int64_t end = begin + kTile < lines.seq_k ? begin + kTile : lines.seq_k;
#pragma unroll 4
        for (std::int64_t key = begin + threadIdx.x; key < end; key += kThreads) row[key] = weight_of(row[key], whole);
    });
}

/// Listed heads in an order in which those that read one key head are together.
struct Order {
    std::vector<std::int64_t> heads;
    std::vector<HeadRun> runs;
};

Order order_of(const std::int64_t* heads, std::int64_t n_heads, std::int64_t n_key_heads, std::int64_t group) {
    std::vector<std::vector<std::int64_t>> by_key_head(static_cast<std::size_t>(n_key_heads));
    for (std::int64_t i = 0; i < n_heads; ++i) by_key_head[static_cast<std::size_t>(heads[i] / group)].push_back(i);
    Order order;
    for (std::size_t key_head = 0; key_head < by_key_head.size(); ++key_head) {
        const auto& listed = by_key_head[key_head];
        if (listed.empty()) continue;
        order.runs.push_back({static_cast<std::int64_t>(key_head), static_cast<std::int64_t>(order.heads.size()),
                              Divisor::of(static_cast<std::int64_t>(listed.size()))});
        order.heads.insert(order.heads.end(), listed.begin(), listed.end());
    }
    return order;
}

/// One request: a layer and the listed heads.
class Rows {
public:
    Rows(const attncache_cuda_factored& layer, const std::int64_t* heads, std::int64_t n_heads, cudaStream_t stream)
        : layer_(layer), heads_(heads), n_heads_(n_heads), stream_(stream) {
        if (n_heads > 0) {
            order_ = order_of(heads, n_heads, layer.key.n_heads, layer.query.n_heads / layer.key.n_heads);
        }
    }

    std::int64_t seq_k() const { return layer_.key.seq_q; }

    /// Writes the weights at some positions of a batch item: [listed head] at head_stride, [position, key].
    void write_heads(std::int64_t batch, const std::int64_t* positions, std::int64_t n_positions,
                     std::int64_t head_stride, float* out) const {
        const std::int64_t n_lines = product(n_heads_, n_positions);
        if (product(n_lines, seq_k()) == 0) return;
        const DeviceMemory queries(product(n_lines, layer_.query.seq_k, sizeof(float)), stream_);
        rows({&layer_.query, 1, &batch, 1, heads_, n_heads_, 0}, positions, n_positions, queries.as<float>(), stream_);
        const std::int64_t n_blocks = quotient_up(seq_k(), kKeysOfBlock);
        const DeviceMemory parts(product(n_lines, n_blocks, sizeof(SoftmaxPart)), stream_);
        Upload lists;
        const std::size_t runs_at = lists.add(order_.runs.data(), static_cast<std::int64_t>(order_.runs.size()));
        const std::size_t order_at = lists.add(order_.heads.data(), n_heads_);
        const std::size_t heads_at = lists.add(heads_, n_heads_);
        const std::size_t positions_at = lists.add(positions, n_positions);
        const DeviceMemory memory = lists.send(stream_);
        FactoredLines lines = lines_of_batch(batch);
        lines.queries = queries.as<float>();
        lines.runs = memory.at<HeadRun>(runs_at);
        lines.order = memory.at<std::int64_t>(order_at);
        lines.heads = memory.at<std::int64_t>(heads_at);
        lines.positions = memory.at<std::int64_t>(positions_at);
        lines.n_positions = Divisor::of(n_positions);
        std::int64_t n_bundles = 0;
        for (const HeadRun& run : order_.runs) n_bundles += quotient_up(run.n.value * n_positions, kLinesOfBundle);
        launch(factored_scores_kernel, product(n_bundles, n_blocks), dim3(kScoreThreads), stream_, lines,
               Divisor::of(n_bundles), head_stride, out, parts.as<SoftmaxPart>());
        const Divisor n_tiles = Divisor::of(quotient_up(seq_k(), kTile));
        launch(factored_weights_kernel, product(n_lines, n_tiles.value), dim3(kThreads), stream_, lines, n_tiles,
               head_stride, parts.as<SoftmaxPart>(), out);
    }

    /// Writes the mean over the listed heads at some positions of a batch item: [position, key].
    void write_mean(std::int64_t batch, const std::int64_t* positions, std::int64_t n_positions, float* out) const {
        const std::int64_t head_stride = product(n_positions, seq_k());
        const DeviceMemory weights(product(n_heads_, head_stride, sizeof(float)), stream_);
        write_heads(batch, positions, n_positions, head_stride, weights.as<float>());
        const std::int64_t row_bytes = seq_k() * static_cast<std::int64_t>(sizeof(float));
        const std::int64_t plane_bytes = n_positions * row_bytes;
        const attncache_cuda_pattern pattern{weights.as<float>(),
                                             ATTNCACHE_CUDA_FLOAT32,
                                             1,
                                             n_heads_,
                                             n_positions,
                                             seq_k(),
                                             n_heads_ * plane_bytes,
                                             plane_bytes,
                                             row_bytes};
        const std::int64_t first = 0;
        const std::vector<std::int64_t> all_heads = first_indices(n_heads_);
        const std::vector<std::int64_t> all_positions = first_indices(n_positions);
        rows({&pattern, 1, &first, 1, all_heads.data(), n_heads_, 1}, all_positions.data(), n_positions, out, stream_);
    }

private:
    static std::vector<std::int64_t> first_indices(std::int64_t n) {
        std::vector<std::int64_t> indices(static_cast<std::size_t>(n));
        for (std::int64_t i = 0; i < n; ++i) indices[static_cast<std::size_t>(i)] = i;
        return indices;
    }

    /// What does not change from request to request of a batch item.
    FactoredLines lines_of_batch(std::int64_t batch) const {
        FactoredLines lines{};
        lines.key = layer_of(layer_.key);
        lines.key.data += batch * layer_.key.batch_stride;
        if (layer_.device_hidden != nullptr) lines.hidden = layer_.device_hidden + batch * seq_k();
        if (layer_.device_lse != nullptr) {
            lines.lse = layer_.device_lse + batch * layer_.query.n_heads * layer_.query.seq_q;
        }
        lines.sinks = layer_.device_sinks;
        lines.n_heads = n_heads_;
        lines.seq_q = layer_.query.seq_q;
        lines.seq_k = seq_k();
        lines.head_dim = layer_.key.seq_k;
        lines.window = layer_.window;
        lines.scale = layer_.scale;
        lines.softcap = layer_.softcap;
        lines.is_causal = layer_.causal != 0;
        return lines;
    }

    const attncache_cuda_factored& layer_;
    const std::int64_t* heads_;
    std::int64_t n_heads_;
    cudaStream_t stream_;
    Order order_;
};

void require_factored(const attncache_cuda_factored& layer) {
    require_readable(layer.query);
    require_readable(layer.key);
    require(layer.query.batch_size == layer.key.batch_size && layer.query.seq_k == layer.key.seq_k);
    require(layer.key.n_heads > 0 ? layer.query.n_heads % layer.key.n_heads == 0 : layer.query.n_heads == 0);
    require(layer.window >= 0 && layer.softcap >= 0);
}

void factored_rows(const attncache_cuda_factored& layer, const std::int64_t* batches, std::int64_t n_batches,
                   const std::int64_t* heads, std::int64_t n_heads, bool mean_heads, const std::int64_t* positions,
                   std::int64_t n_positions, float* device_out, cudaStream_t stream) {
    require_factored(layer);
    require_inside(batches, n_batches, layer.query.batch_size);
    require_inside(heads, n_heads, layer.query.n_heads);
    require_inside(positions, n_positions, layer.query.seq_q);
    const Rows request(layer, heads, n_heads, stream);
    const std::int64_t seq_k = request.seq_k();
    const std::int64_t plane = product(n_positions, seq_k);
    if (product(n_batches, mean_heads ? 1 : n_heads, plane, sizeof(float)) == 0) return;
    require(device_out != nullptr);
    const std::int64_t bytes_each = product(n_heads, seq_k, sizeof(float));
    const std::int64_t fit = bytes_each == 0 ? n_positions : kScratchBytes / bytes_each;
    const std::int64_t together = fit < 1 ? 1 : fit < n_positions ? fit : n_positions;
    for (std::int64_t b = 0; b < n_batches; ++b) {
        for (std::int64_t first = 0; first < n_positions; first += together) {
            const std::int64_t n = first + together < n_positions ? together : n_positions - first;
            float* const out = device_out + b * (mean_heads ? 1 : n_heads) * plane + first * seq_k;
            if (mean_heads) {
                request.write_mean(batches[b], positions + first, n, out);
            } else {
                request.write_heads(batches[b], positions + first, n, plane, out);
            }
        }
    }
}

}  // namespace
}  // namespace attncache::cuda

int attncache_cuda_factored_rows(const attncache_cuda_factored* layer, const std::int64_t* batches,
                                 std::int64_t n_batches, const std::int64_t* heads, std::int64_t n_heads,
                                 std::int32_t mean_heads, const std::int64_t* positions, std::int64_t n_positions,
                                 float* device_out, void* stream) {
    return attncache::cuda::status_of([=] {
        attncache::cuda::require(layer != nullptr);
        attncache::cuda::factored_rows(*layer, batches, n_batches, heads, n_heads, mean_heads != 0, positions,
                                       n_positions, device_out, static_cast<cudaStream_t>(stream));
    });
}
