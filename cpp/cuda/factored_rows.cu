// Rows of a layer of queries and keys: weights e^(score - m) / s, of each head or as the mean over heads.
//
// Floor: that of the scores (factored_scores.cuh), where nearly all bytes are, and of the weights
// (factored_weights.cuh).
//
// How: for a batch item, and for as many positions as a scratch of kScratchBytes holds: one kernel computes scores by
// bundles and leaves them in the result, another makes weights of them. A mean over heads is made by the rows kernel
// from the lines of all heads.
//
// Bounded as cpp/include/attncache/factored.hpp says, with expf and tanhf as CUDA's programming guide
// bounds them. The order of every sum is fixed: the same bits for the same request.
#include <algorithm>

#include "factored_weights.cuh"
#include "rows.cuh"

namespace attncache::cuda {
namespace {

/// Listed heads in an order in which those that read one key head are together.
struct Order {
    std::vector<std::int64_t> heads;
    std::vector<HeadRun> runs;
    std::int64_t most_heads = 0;  // of a run
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
        order.most_heads = std::max(order.most_heads, static_cast<std::int64_t>(listed.size()));
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
        const std::int64_t n_blocks = quotient_up(seq_k(), kKeysOfBlock);
        const DeviceMemory parts(product(n_lines, n_blocks, sizeof(SoftmaxPart)), stream_);
        Upload lists;
        const std::size_t runs_at = lists.add(order_.runs.data(), static_cast<std::int64_t>(order_.runs.size()));
        const std::size_t order_at = lists.add(order_.heads.data(), n_heads_);
        const std::size_t heads_at = lists.add(heads_, n_heads_);
        const std::size_t positions_at = lists.add(positions, n_positions);
        const DeviceMemory memory = lists.send(stream_);
        FactoredLines lines = lines_of_batch(batch);
        lines.runs = memory.at<HeadRun>(runs_at);
        lines.order = memory.at<std::int64_t>(order_at);
        lines.heads = memory.at<std::int64_t>(heads_at);
        lines.positions = memory.at<std::int64_t>(positions_at);
        lines.n_positions = Divisor::of(n_positions);
        if (product(order_.most_heads, n_positions) <= kFewLines) {
            launch_scores<kFewLines>(lines, head_stride, out, parts.as<SoftmaxPart>());
        } else {
            launch_scores<kLinesOfBundle>(lines, head_stride, out, parts.as<SoftmaxPart>());
        }
        const Divisor n_tiles = Divisor::of(quotient_up(seq_k(), kTile));
        const bool is_out_wide = reinterpret_cast<std::uintptr_t>(out) % 16 == 0 && (seq_k() | head_stride) % 4 == 0;
        launch(factored_weights_kernel, product(n_lines, n_tiles.value), dim3(kThreads), stream_, lines, n_tiles,
               head_stride, is_out_wide, parts.as<SoftmaxPart>(), out);
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

    template <int kLines>
    void launch_scores(const FactoredLines& lines, std::int64_t head_stride, float* out, SoftmaxPart* parts) const {
        const std::int64_t n_of_run = quotient_up(order_.most_heads * lines.n_positions.value, kLines);
        const Divisor n_bundles = Divisor::of(product(order_.runs.size(), n_of_run));
        launch(factored_scores_kernel<kLines>, product(n_bundles.value, quotient_up(seq_k(), kKeysOfBlock)),
               dim3(kScoreThreads), stream_, lines, n_bundles, Divisor::of(n_of_run), head_stride, out, parts);
    }

    /// What does not change from request to request of a batch item.
    FactoredLines lines_of_batch(std::int64_t batch) const {
        FactoredLines lines{};
        lines.query = layer_of(layer_.query);
        lines.query.data += batch * layer_.query.batch_stride;
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
