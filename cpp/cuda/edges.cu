// Edges: the weights of (query, key) pairs, of each head or as the mean over heads.
//
// Floor: a lone weight costs a sector of 32 bytes, so (heads * 32 + 4) bytes * layers * batches * from * to / bandwidth
// at worst; keys that are neighbours in memory and in the list share sectors.
//
// Shape: blocks of 128 threads, x along the keys of the list and y over lines, where a line is the chosen keys of one
// query; a thread owns one weight, all heads of it, in a register.
//
// Exact: heads are added in the order of the list from +0 and divided as IEEE rounds, without fused products.
#include "items.cuh"
#include "selection.cuh"

namespace attncache::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kBlocksPerMultiprocessor = 8;  // at least, so at most 64 registers: 32 warps with 4 reads in flight each

template <class Item>
__device__ float edge(const Line& line, std::int64_t key, float empty) {
    const std::byte* const row = line.data + line.position * line.layer->query_stride;
    float sum = empty;
#pragma unroll 4
    for (std::int64_t h = 0; h < line.n_heads; ++h) {
        float weight[1];
        read(reinterpret_cast<const Item*>(row + line.heads[h] * line.layer->head_stride) + key, weight);
        sum = with_head(sum, weight[0]);
    }
    return mean_of(sum, line.n_heads);
}

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    edges_kernel(Selection selection, const std::int64_t* keys /* [n_to] */, std::int64_t n_to, std::int64_t n_lines,
                 std::int64_t n_units, Divisor n_tiles, float* out /* [line, to] */) {
    for_each_unit(n_units, [&](std::int64_t unit) {
        const auto [lines, tile] = divided(unit, n_tiles);
        const std::int64_t index = lines * blockDim.y + threadIdx.y;
        const std::int64_t to = tile * blockDim.x + threadIdx.x;
        if (index >= n_lines || to >= n_to) return;
        const Line line = line_at(selection, index);
        with_item(line.layer->dtype, [&](auto item) {
            out[index * n_to + to] = edge<decltype(item)>(line, keys[to], selection.empty_sum);
        });
    });
}

/// Threads along the listed keys: a power of two, enough for them if they are few.
unsigned threads_along(std::int64_t n_to) {
    unsigned threads = 1;
    while (threads < kThreads && threads < n_to) threads *= 2;
    return threads;
}

void edges(const attncache_cuda_selection& selection, const std::int64_t* from, std::int64_t n_from,
           const std::int64_t* to, std::int64_t n_to, float* device_out, cudaStream_t stream) {
    const attncache_cuda_pattern& pattern = checked(selection);
    require_inside(from, n_from, selection.n_layers == 0 ? 0 : pattern.seq_q);
    require_inside(to, n_to, selection.n_layers == 0 ? 0 : pattern.seq_k);
    const std::int64_t n_lines = lines_of(selection, n_from);
    if (product(n_lines, n_to, sizeof(float)) == 0) return;
    require(device_out != nullptr);
    const SelectionOnDevice lists = on_device(selection, from, n_from, stream, to, n_to);
    const dim3 block(threads_along(n_to), kThreads / threads_along(n_to));
    const Divisor n_tiles = Divisor::of(quotient_up(n_to, block.x));
    const std::int64_t n_units = quotient_up(n_lines, block.y) * n_tiles.value;
    launch(edges_kernel, n_units, block, stream, lists.selection, lists.others, n_to, n_lines, n_units, n_tiles,
           device_out);
}

}  // namespace
}  // namespace attncache::cuda

int attncache_cuda_edges(const attncache_cuda_selection* selection, const std::int64_t* from, std::int64_t n_from,
                         const std::int64_t* to, std::int64_t n_to, float* device_out, void* stream) {
    return attncache::cuda::status_of([=] {
        attncache::cuda::require(selection != nullptr);
        attncache::cuda::edges(*selection, from, n_from, to, n_to, device_out, static_cast<cudaStream_t>(stream));
    });
}
