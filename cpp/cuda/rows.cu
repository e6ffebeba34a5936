// Rows: what queries attend to, of each head or as the mean over heads; with all positions, the head mean of layers.
//
// Floor: every selected item is read once and every result written once, so
//   (heads * item + 4) bytes * layers * batches * positions * seq_k / bandwidth for a mean,
//   (item + 4) bytes * layers * batches * heads * positions * seq_k / bandwidth for heads on their own.
// Nothing is reused and there is one addition per item: only bytes in flight count. A thread owns 8 keys of one row,
// all heads of them, in registers; it reads 16 bytes of a head at a time, several heads ahead.
//
// Shape: blocks of 128 threads, x along the keys of a row and y over rows, so that short rows fill a block too;
// a unit of work is 128 / x rows times a tile of 8 x keys. A tile lies in pieces as wide as one read, thread after
// thread, so that a warp's reads join. Rows that do not lie on 16 bytes go one item a read, through the same code.
//
// Exact: heads are added in the order of the list from +0 and divided as IEEE rounds, without fused products.
#include "rows.cuh"

#include "items.cuh"
#include "selection.cuh"

namespace attncache::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kItems = 8;  // keys of a thread: 16 bytes of half, so one read of a head, or two of float
constexpr int kLeastThreadsOfRow = 8;
constexpr int kBlocksPerMultiprocessor = 4;  // at least, so at most 128 registers: 16 warps with 2 KB in flight each

/// The mean over the heads of a line at the keys of a tile that this thread owns.
template <int kCount, class Item>
__device__ void write_tile(const Line& line,         // from the first key of the tile on, of heads [n_heads]
                           int n_keys, float empty,  // a multiple of kCount, at most kItems * blockDim.x
                           float* out /* [n_keys] */) {
    constexpr int kReads = kItems / kCount;
    [[maybe_unused]] constexpr int kHeadsAhead = kCount == 1 ? 2 : 4;
    const int first = static_cast<int>(threadIdx.x) * kCount;
    const int step = static_cast<int>(blockDim.x) * kCount;
    float sums[kReads][kCount];
#pragma unroll
    for (int r = 0; r < kReads; ++r) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) sums[r][i] = empty;
    }
#pragma unroll kHeadsAhead
    for (std::int64_t h = 0; h < line.n_heads; ++h) {
        const auto* const items = reinterpret_cast<const Item*>(line.data + line.heads[h] * line.layer->head_stride);
#pragma unroll
        for (int r = 0; r < kReads; ++r) {
            if (first + r * step >= n_keys) continue;
            float weights[kCount];
            read(items + first + r * step, weights);
#pragma unroll
            for (int i = 0; i < kCount; ++i) sums[r][i] = with_head(sums[r][i], weights[i]);
        }
    }
#pragma unroll
    for (int r = 0; r < kReads; ++r) {
        if (first + r * step >= n_keys) continue;
#pragma unroll
        for (int i = 0; i < kCount; ++i) sums[r][i] = mean_of(sums[r][i], line.n_heads);
        write(sums[r], out + first + r * step);
    }
}

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    rows_kernel(Selection selection, std::int64_t seq_k, std::int64_t n_lines, std::int64_t n_units, Divisor n_tiles,
                bool is_out_wide, float* out /* [line, seq_k] */) {
    const std::int64_t tile = kItems * static_cast<std::int64_t>(blockDim.x);
    for_each_unit(n_units, [&](std::int64_t unit) {
        const auto [lines, tile_of_row] = divided(unit, n_tiles);
        const std::int64_t index = lines * blockDim.y + threadIdx.y;
        if (index >= n_lines) return;
        const std::int64_t begin = tile_of_row * tile;
        const int n_keys = static_cast<int>(seq_k - begin < tile ? seq_k - begin : tile);
        Line line = line_at(selection, index);
        line.data += line.position * line.layer->query_stride;
        float* const out_of_tile = out + index * seq_k + begin;
        with_item(line.layer->dtype, [&](auto item) {
            using Item = decltype(item);
            line.data += begin * static_cast<std::int64_t>(sizeof(Item));
            if (is_out_wide && line.layer->is_wide) {
                write_tile<kWide<Item>, Item>(line, n_keys, selection.empty_sum, out_of_tile);
            } else {
                write_tile<1, Item>(line, n_keys, selection.empty_sum, out_of_tile);
            }
        });
    });
}

/// Threads along a row: a power of two, enough for the row if it is short.
unsigned threads_of_row(std::int64_t seq_k) {
    unsigned threads = kLeastThreadsOfRow;
    while (threads < kThreads && threads * kItems < seq_k) threads *= 2;
    return threads;
}

}  // namespace

void rows(const attncache_cuda_selection& selection, const std::int64_t* positions, std::int64_t n_positions,
          float* device_out, cudaStream_t stream) {
    const attncache_cuda_pattern& pattern = checked(selection);
    require_inside(positions, n_positions, selection.n_layers == 0 ? 0 : pattern.seq_q);
    const std::int64_t n_lines = lines_of(selection, n_positions);
    if (product(n_lines, pattern.seq_k, sizeof(float)) == 0) return;
    require(device_out != nullptr);
    const SelectionOnDevice lists = on_device(selection, positions, n_positions, stream);
    const dim3 block(threads_of_row(pattern.seq_k), kThreads / threads_of_row(pattern.seq_k));
    const Divisor n_tiles = Divisor::of(quotient_up(pattern.seq_k, kItems * block.x));
    const std::int64_t n_units = quotient_up(n_lines, block.y) * n_tiles.value;
    const bool is_out_wide = reinterpret_cast<std::uintptr_t>(device_out) % 16 == 0 && pattern.seq_k % 4 == 0;
    launch(rows_kernel, n_units, block, stream, lists.selection, pattern.seq_k, n_lines, n_units, n_tiles, is_out_wide,
           device_out);
}

}  // namespace attncache::cuda

int attncache_cuda_rows(const attncache_cuda_selection* selection, const std::int64_t* positions,
                        std::int64_t n_positions, float* device_out, void* stream) {
    return attncache::cuda::status_of([=] {
        attncache::cuda::require(selection != nullptr);
        attncache::cuda::rows(*selection, positions, n_positions, device_out, static_cast<cudaStream_t>(stream));
    });
}
