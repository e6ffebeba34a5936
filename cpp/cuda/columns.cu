// Columns: who attends to keys, of each head or as the mean over heads.
//
// Floor: memory moves in sectors of 32 bytes, so
//   bytes = layers * batches * (heads * seq_q * sectors of the chosen keys in a row * 32 + results * 4) / bandwidth;
// neighbouring keys share sectors, lone ones cost one each. Nothing is reused but within a sector.
//
// Shape: blocks of 256 threads, each owning a tile of listed keys times queries. A thread sums all heads of its results
// in registers, a tile is turned in shared memory, and written with threads along the queries.
//   Keys in sequence that lie on 16 bytes: tiles of 4096 results, 128 bytes of keys wide. A thread reads 16 bytes at a
// time and writes 16. Of a mean it has 8 reads under way, so 3 blocks have 96 KiB; of heads on their own 2 (4 of
// float), so 24 KiB (48) beside twice (once) as much that is written.
//   Any other list: tiles of 1024 results, `chosen` keys wide, the least power of two that holds the list, 32 at most.
// A thread reads single items along the list (neighbours in memory, if the list has neighbours), 16 under way.
//
// Exact: heads are added in the order of the list from +0 and divided as IEEE rounds, without fused products.
#include "heads.cuh"
#include "runs.cuh"

namespace attncache::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 1024;
constexpr int kResults = kTile / kThreads;  // of a thread
constexpr int kMostChosen = 32;
constexpr int kWideTile = 4096;
constexpr int kThreadsOfRow = 8;  // each with 16 bytes
constexpr int kLeastInSequence = 32;

/// What a launch asks of its blocks: tiles of the same queries in a sequence.
struct Planes {
    Selection selection;
    std::int64_t seq_q, n_units;
    Divisor n_tiles, n_key_tiles;
    int log2_chosen;  // keys of a tile
    float* out;       // [plane, position, seq_q]
};

/// The part of a plane that a block owns: listed keys times queries.
struct Tile {
    std::int64_t first_line;  // of the result: the column of the first listed key
    std::int64_t first_key, first_query;
    int n_chosen, n_queries;
};

__device__ Tile tile_of(const Planes& planes, std::int64_t unit, int chosen, int queries) {
    const auto [plane, in_plane] = divided(unit, planes.n_tiles);
    const auto [query_tile, key_tile] = divided(in_plane, planes.n_key_tiles);
    const std::int64_t n_positions = planes.selection.n_positions.value;
    const std::int64_t first_key = key_tile * chosen;
    const std::int64_t first_query = query_tile * queries;
    const std::int64_t keys_left = n_positions - first_key;
    const std::int64_t queries_left = planes.seq_q - first_query;
    return {plane * n_positions + first_key, first_key, first_query,
            static_cast<int>(keys_left < chosen ? keys_left : chosen),
            static_cast<int>(queries_left < queries ? queries_left : queries)};
}

template <class Item>
__global__ void __launch_bounds__(kThreads, 3) columns_kernel(Planes planes) {
    __shared__ float turned[kTile + kMostChosen];  // [key, query], each key's queries followed by padding
    const int chosen = 1 << planes.log2_chosen;
    const int queries = kTile >> planes.log2_chosen;
    const int stride = queries + (kMostChosen >> planes.log2_chosen);  // the 32 lanes of a warp on 32 banks either way
    for_each_unit(planes.n_units, [&](std::int64_t unit) {
        const Tile tile = tile_of(planes, unit, chosen, queries);
        const Line line = line_at(planes.selection, tile.first_line);
        Place<Item, 1> places[kResults];
        float means[kResults][1];
#pragma unroll
        for (int r = 0; r < kResults; ++r) {
            const int i = r * kThreads + static_cast<int>(threadIdx.x);
            const int key = i & (chosen - 1);
            const int query = i >> planes.log2_chosen;
            const std::byte* const row = line.data + (tile.first_query + query) * line.layer->query_stride;
            places[r] = {reinterpret_cast<const Item*>(row), key < tile.n_chosen && query < tile.n_queries};
            if (places[r].is_inside) places[r].items += planes.selection.positions[tile.first_key + key];
        }
        read_means<4>(planes.selection, line, places, means);
#pragma unroll
        for (int r = 0; r < kResults; ++r) {
            const int i = r * kThreads + static_cast<int>(threadIdx.x);
            turned[(i & (chosen - 1)) * stride + (i >> planes.log2_chosen)] = means[r][0];
        }
        __syncthreads();
#pragma unroll
        for (int r = 0; r < kResults; ++r) {
            const int i = r * kThreads + static_cast<int>(threadIdx.x);
            const int key = i / queries;
            const int query = i & (queries - 1);
            if (key >= tile.n_chosen || query >= tile.n_queries) continue;
            planes.out[(tile.first_line + key) * planes.seq_q + tile.first_query + query] =
                turned[key * stride + query];
        }
        __syncthreads();  // before the next tile overwrites this one
    });
}

template <class Item, int kHeadsAhead>
__global__ void __launch_bounds__(kThreads, 3) columns_in_sequence_kernel(Planes planes) {
    constexpr int kCount = kWide<Item>;
    constexpr int kKeys = kThreadsOfRow * kCount;
    constexpr int kRows = kThreads / kThreadsOfRow;  // of one read
    constexpr int kReads = kWideTile / kKeys / kRows;
    constexpr int kFours = kWideTile / kKeys / 4;  // of a key's queries
    // [key, four queries]: fours change places by the thread that read the key, so that 32 lanes are on 32 banks when
    // they write, each to keys of its own, and 8 when they read 16 bytes each.
    __shared__ float4 turned[kWideTile / 4];
    const int thread = static_cast<int>(threadIdx.x);
    const int first_key = thread % kThreadsOfRow * kCount;
    const int first_row = thread / kThreadsOfRow;
    for_each_unit(planes.n_units, [&](std::int64_t unit) {
        const Tile tile = tile_of(planes, unit, kKeys, kRows * kReads);
        const Line line = line_at(planes.selection, tile.first_line);
        Place<Item, kCount> places[kReads];
        float means[kReads][kCount];
#pragma unroll
        for (int r = 0; r < kReads; ++r) {
            const int query = first_row + r * kRows;
            const std::byte* const row = line.data + (tile.first_query + query) * line.layer->query_stride;
            places[r] = {reinterpret_cast<const Item*>(row) + line.position + first_key,
                         first_key < tile.n_chosen && query < tile.n_queries};
        }
        read_means<kHeadsAhead>(planes.selection, line, places, means);
#pragma unroll
        for (int r = 0; r < kReads; ++r) {
            const int query = first_row + r * kRows;
            const int four = query / 4 ^ thread % kThreadsOfRow;
#pragma unroll
            for (int i = 0; i < kCount; ++i) {
                reinterpret_cast<float*>(turned + (first_key + i) * kFours + four)[query % 4] = means[r][i];
            }
        }
        __syncthreads();
#pragma unroll
        for (int w = 0; w < kWideTile / 4 / kThreads; ++w) {
            const int i = w * kThreads + thread;
            const int key = i / kFours;
            const int four = i % kFours;
            if (key >= tile.n_chosen || four * 4 >= tile.n_queries) continue;
            const std::int64_t first = (tile.first_line + key) * planes.seq_q + tile.first_query;
            __stcs(reinterpret_cast<float4*>(planes.out + first) + four, turned[key * kFours + (four ^ key / kCount)]);
        }
        __syncthreads();  // before the next tile takes its place
    });
}

int log2_of_chosen(std::int64_t n_positions, int most) {
    int log2 = 0;
    while ((1 << log2) < most && (1 << log2) < n_positions) ++log2;
    return log2;
}

/// Whether positions are a row of neighbours, the first of them at a multiple of n.
bool in_sequence(const std::int64_t* positions, std::int64_t n_positions, std::int64_t n) {
    for (std::int64_t i = 1; i < n_positions; ++i) {
        if (positions[i] != positions[0] + i) return false;
    }
    return n_positions >= kLeastInSequence && positions[0] % n == 0;
}

void launch_planes(void (*kernel)(Planes), Planes planes, std::int64_t n_planes, int log2_chosen, int tile,
                   cudaStream_t stream) {
    planes.log2_chosen = log2_chosen;
    planes.n_key_tiles = Divisor::of(quotient_up(planes.selection.n_positions.value, 1 << log2_chosen));
    planes.n_tiles = Divisor::of(quotient_up(planes.seq_q, tile >> log2_chosen) * planes.n_key_tiles.value);
    planes.n_units = n_planes * planes.n_tiles.value;
    launch(kernel, planes.n_units, dim3(kThreads), stream, planes);
}

void columns(const attncache_cuda_selection& selection, const std::int64_t* positions, std::int64_t n_positions,
             float* device_out, cudaStream_t stream) {
    const attncache_cuda_pattern& pattern = checked(selection);
    require_inside(positions, n_positions, selection.n_layers == 0 ? 0 : pattern.seq_k);
    if (product(lines_of(selection, n_positions), pattern.seq_q, sizeof(float)) == 0) return;
    require(device_out != nullptr);
    const SelectionOnDevice lists = on_device(selection, positions, n_positions, stream);
    const bool is_out_wide = reinterpret_cast<std::uintptr_t>(device_out) % 16 == 0 && pattern.seq_q % 4 == 0;
    const std::int64_t planes_of_layer = lines_of(selection, 1) / selection.n_layers;
    for_each_run(selection, [&](auto item, const Run& run) {
        using Item = decltype(item);
        const std::int64_t n_planes = run.n_layers * planes_of_layer;
        float* const out = device_out + run.first * planes_of_layer * n_positions * pattern.seq_q;
        const Planes planes{part_of(lists.selection, run), pattern.seq_q, 0, {}, {}, 0, out};
        if (!is_out_wide || !run.is_wide || !in_sequence(positions, n_positions, kWide<Item>)) {
            return launch_planes(columns_kernel<Item>, planes, n_planes, log2_of_chosen(n_positions, kMostChosen),
                                 kTile, stream);
        }
        constexpr int kHeadsAhead = sizeof(Item) == 4 ? 2 : 4;  // 8 reads
        const bool is_mean = lists.selection.n_heads_of_result != 1;
        const auto kernel =
            is_mean ? columns_in_sequence_kernel<Item, kHeadsAhead> : columns_in_sequence_kernel<Item, 1>;
        constexpr int kLog2Keys = sizeof(Item) == 4 ? 5 : 6;
        static_assert(1 << kLog2Keys == kThreadsOfRow * kWide<Item>);
        launch_planes(kernel, planes, n_planes, kLog2Keys, kWideTile, stream);
    });
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
