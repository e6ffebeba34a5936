// Columns: who attends to keys, of each head or as the mean over heads.
//
// Floor: memory moves in sectors of 32 bytes, so
//   bytes = layers * batches * (heads * seq_q * sectors of the chosen keys in a row * 32 + results * 4) / bandwidth;
// neighbouring keys share sectors, lone ones cost one each. Nothing is reused but within a sector.
//
// Shape: blocks of 256 threads, each owning a tile of 1024 results: `chosen` keys times 1024 / chosen queries, where
// `chosen` is the least power of two that holds the listed keys, 32 at most. The tile is read with threads along the
// list (neighbours in memory, if the list has neighbours), all heads of a result into one register, turned in shared
// memory, and written with threads along the queries. Padding puts the 32 lanes of a warp on 32 banks either way.
//
// Exact: heads are added in the order of the list from +0 and divided as IEEE rounds, without fused products.
#include "items.cuh"
#include "selection.cuh"

namespace attncache::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 1024;
constexpr int kResults = kTile / kThreads;  // of a thread
constexpr int kMostChosen = 32;
constexpr int kBlocksPerMultiprocessor = 3;  // at least, so at most 80 registers: 24 warps with 16 reads in flight each

/// The part of a plane that a block owns: listed keys times queries.
struct Tile {
    std::int64_t first_line;  // of the result: the column of the first listed key
    std::int64_t first_key, first_query;
    int n_chosen, n_queries;
};

/// Sums over the heads at this thread's results: key i % chosen of the list, query i / chosen, i = thread, thread +
/// 256..
template <class Item>
__device__ void read_tile(const Selection& selection, const Tile& tile, int log2_chosen, float (&sums)[kResults]) {
    const Line plane = line_at(selection, tile.first_line);
    const std::int64_t* const keys = selection.positions + tile.first_key;
    const std::byte* items[kResults];
    bool is_inside[kResults];
#pragma unroll
    for (int r = 0; r < kResults; ++r) {
        const int i = r * kThreads + static_cast<int>(threadIdx.x);
        const int key = i & ((1 << log2_chosen) - 1);
        const int query = i >> log2_chosen;
        is_inside[r] = key < tile.n_chosen && query < tile.n_queries;
        items[r] = plane.data + (tile.first_query + query) * plane.layer->query_stride;
        if (is_inside[r]) items[r] += keys[key] * static_cast<std::int64_t>(sizeof(Item));
        sums[r] = selection.empty_sum;
    }
#pragma unroll 4
    for (std::int64_t h = 0; h < plane.n_heads; ++h) {
        const std::int64_t offset = plane.heads[h] * plane.layer->head_stride;
#pragma unroll
        for (int r = 0; r < kResults; ++r) {
            if (!is_inside[r]) continue;
            float weight[1];
            read(reinterpret_cast<const Item*>(items[r] + offset), weight);
            sums[r] = with_head(sums[r], weight[0]);
        }
    }
#pragma unroll
    for (int r = 0; r < kResults; ++r) sums[r] = mean_of(sums[r], plane.n_heads);
}

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    columns_kernel(Selection selection, std::int64_t seq_q, std::int64_t n_units, Divisor n_tiles, Divisor n_key_tiles,
                   int log2_chosen, float* out /* [plane, position, seq_q] */) {
    __shared__ float turned[kTile + kMostChosen];  // [key, query], each key's queries followed by padding
    const int chosen = 1 << log2_chosen;
    const int queries = kTile >> log2_chosen;
    const int stride = queries + (kMostChosen >> log2_chosen);
    for_each_unit(n_units, [&](std::int64_t unit) {
        const auto [plane, in_plane] = divided(unit, n_tiles);
        const auto [query_tile, key_tile] = divided(in_plane, n_key_tiles);  // tiles of the same queries in a sequence
        const std::int64_t first_key = key_tile * chosen;
        const std::int64_t first_query = query_tile * queries;
        const std::int64_t keys_left = selection.n_positions.value - first_key;
        const std::int64_t queries_left = seq_q - first_query;
        const Tile tile{plane * selection.n_positions.value + first_key, first_key, first_query,
                        static_cast<int>(keys_left < chosen ? keys_left : chosen),
                        static_cast<int>(queries_left < queries ? queries_left : queries)};
        float sums[kResults];
        with_item(line_at(selection, tile.first_line).layer->dtype,
                  [&](auto item) { read_tile<decltype(item)>(selection, tile, log2_chosen, sums); });
#pragma unroll
        for (int r = 0; r < kResults; ++r) {
            const int i = r * kThreads + static_cast<int>(threadIdx.x);
            turned[(i & (chosen - 1)) * stride + (i >> log2_chosen)] = sums[r];
        }
        __syncthreads();
#pragma unroll
        for (int r = 0; r < kResults; ++r) {
            const int i = r * kThreads + static_cast<int>(threadIdx.x);
            const int key = i / queries;
            const int query = i & (queries - 1);
            if (key >= tile.n_chosen || query >= tile.n_queries) continue;
            out[(tile.first_line + key) * seq_q + first_query + query] = turned[key * stride + query];
        }
        __syncthreads();  // before the next tile overwrites this one
    });
}

int log2_of_chosen(std::int64_t n_positions) {
    int log2 = 0;
    while ((1 << log2) < kMostChosen && (1 << log2) < n_positions) ++log2;
    return log2;
}

void columns(const attncache_cuda_selection& selection, const std::int64_t* positions, std::int64_t n_positions,
             float* device_out, cudaStream_t stream) {
    const attncache_cuda_pattern& pattern = checked(selection);
    require_inside(positions, n_positions, selection.n_layers == 0 ? 0 : pattern.seq_k);
    if (product(lines_of(selection, n_positions), pattern.seq_q, sizeof(float)) == 0) return;
    require(device_out != nullptr);
    const SelectionOnDevice lists = on_device(selection, positions, n_positions, stream);
    const int log2_chosen = log2_of_chosen(n_positions);
    const Divisor n_key_tiles = Divisor::of(quotient_up(n_positions, 1 << log2_chosen));
    const Divisor n_tiles = Divisor::of(quotient_up(pattern.seq_q, kTile >> log2_chosen) * n_key_tiles.value);
    const std::int64_t n_units = lines_of(selection, 1) * n_tiles.value;
    launch(columns_kernel, n_units, dim3(kThreads), stream, lists.selection, pattern.seq_q, n_units, n_tiles,
           n_key_tiles, log2_chosen, device_out);
}

}  // namespace
}  // namespace attncache::cuda

int attncache_cuda_columns(const attncache_cuda_selection* selection, const std::int64_t* positions,
                           std::int64_t n_positions, float* device_out, void* stream) {
    return attncache::cuda::status_of([=] {
        attncache::cuda::require(selection != nullptr);
        attncache::cuda::columns(*selection, positions, n_positions, device_out, static_cast<cudaStream_t>(stream));
    });
}
