// Rows: what queries attend to, of each head or as the mean over heads; with all positions, the head mean of layers.
//
// Floor: every selected item is read once and every result written once, so
//   (heads * item + 4) bytes * layers * batches * positions * seq_k / bandwidth for a mean,
//   (item + 4) bytes * layers * batches * heads * positions * seq_k / bandwidth for heads on their own.
// Nothing is reused and there is one addition per item: only bytes in flight count. A thread owns keys of one row, all
// heads of them, in registers. Of a mean it owns 8 keys and has 8 reads of 16 bytes under way, so 128 bytes; 6 blocks
// or more make 96 KiB of a multiprocessor. Of heads on their own it owns 32 keys, in pieces of 4 so that a warp's
// writes of 16 bytes join, and reads all before it writes: 64 bytes or more of 7 blocks or more, so 56 KiB.
//
// Shape: blocks of 128 threads, x along the keys of a row and y over rows, so that short rows fill a block too;
// a unit of work is 128 / x rows times a tile of x threads' keys. A tile lies in pieces as wide as one read, thread
// after thread. Rows that do not lie on 16 bytes go one item a read, through the same code.
//
// Exact: heads are added in the order of the list from +0 and divided as IEEE rounds, without fused products.
#include "rows.cuh"

#include "heads.cuh"
#include "runs.cuh"

namespace attncache::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kLeastThreadsOfRow = 8;

/// What a launch asks of its threads.
struct Lines {
    Selection selection;
    std::int64_t seq_k, n_lines, n_units;
    Divisor n_tiles;  // of a row
    float* out;       // [line, seq_k]
};

/// How a thread works: items of a read, reads of a head, heads that are read before they are added.
template <int count, int reads, int heads_ahead>
struct Way {
    static constexpr int kCount = count, kReads = reads, kHeadsAhead = heads_ahead, kItems = count * reads;
};
template <class Item>
using OfMean = Way<kWide<Item>, 8 / kWide<Item>, kWide<Item>>;  // 8 reads under way
using OfHeads = Way<4, 8, 1>;
using OfMeanByItem = Way<1, 8, 2>;
using OfHeadsByItem = Way<1, 8, 1>;

template <class Way, class Item>
__device__ void write_lines(const Lines& lines) {
    constexpr int kCount = Way::kCount;
    const int first = static_cast<int>(threadIdx.x) * kCount;
    const int step = static_cast<int>(blockDim.x) * kCount;
    const std::int64_t tile = static_cast<std::int64_t>(step) * Way::kReads;
    for_each_unit(lines.n_units, [&](std::int64_t unit) {
        const auto [group, tile_of_row] = divided(unit, lines.n_tiles);
        const std::int64_t index = group * blockDim.y + threadIdx.y;
        if (index >= lines.n_lines) return;
        const std::int64_t begin = tile_of_row * tile;
        const int n_keys = static_cast<int>(lines.seq_k - begin < tile ? lines.seq_k - begin : tile);
        const Line line = line_at(lines.selection, index);
        const std::byte* const row = line.data + line.position * line.layer->query_stride;
        Place<Item, kCount> places[Way::kReads];
        float means[Way::kReads][kCount];
#pragma unroll
        for (int r = 0; r < Way::kReads; ++r) {
            places[r] = {reinterpret_cast<const Item*>(row) + begin + first + r * step, first + r * step < n_keys};
        }
        read_means<Way::kHeadsAhead>(lines.selection, line, places, means);
#pragma unroll
        for (int r = 0; r < Way::kReads; ++r) {
            if (places[r].is_inside) write(means[r], lines.out + index * lines.seq_k + begin + first + r * step);
        }
    });
}

template <class Item>
__global__ void __launch_bounds__(kThreads, 6) means_kernel(Lines lines) {
    write_lines<OfMean<Item>, Item>(lines);
}

template <class Item>
__global__ void __launch_bounds__(kThreads, 7) rows_kernel(Lines lines) {
    write_lines<OfHeads, Item>(lines);
}

template <class Item, class Way>
__global__ void __launch_bounds__(kThreads, 6) rows_by_item_kernel(Lines lines) {
    write_lines<Way, Item>(lines);
}

/// Threads along a row: a power of two, enough for the row if it is short.
unsigned threads_of_row(std::int64_t seq_k, int items_of_thread) {
    unsigned threads = kLeastThreadsOfRow;
    while (threads < kThreads && threads * items_of_thread < seq_k) threads *= 2;
    return threads;
}

template <class Way>
void launch_lines(Way, void (*kernel)(Lines), Lines lines, cudaStream_t stream) {
    const unsigned threads = threads_of_row(lines.seq_k, Way::kItems);
    const dim3 block(threads, kThreads / threads);
    lines.n_tiles = Divisor::of(quotient_up(lines.seq_k, Way::kItems * threads));
    lines.n_units = quotient_up(lines.n_lines, block.y) * lines.n_tiles.value;
    launch(kernel, lines.n_units, block, stream, lines);
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
    const bool is_out_wide = reinterpret_cast<std::uintptr_t>(device_out) % 16 == 0 && pattern.seq_k % 4 == 0;
    const std::int64_t lines_of_layer = n_lines / selection.n_layers;
    for_each_run(selection, [&](auto item, const Run& run) {
        using Item = decltype(item);
        const Lines lines{part_of(lists.selection, run),
                          pattern.seq_k,
                          run.n_layers * lines_of_layer,
                          0,
                          {},
                          device_out + run.first * lines_of_layer * pattern.seq_k};
        const bool is_mean = lists.selection.n_heads_of_result != 1;
        if (is_out_wide && run.is_wide) {
            if (is_mean) return launch_lines(OfMean<Item>{}, means_kernel<Item>, lines, stream);
            return launch_lines(OfHeads{}, rows_kernel<Item>, lines, stream);
        }
        if (is_mean) return launch_lines(OfMeanByItem{}, rows_by_item_kernel<Item, OfMeanByItem>, lines, stream);
        launch_lines(OfHeadsByItem{}, rows_by_item_kernel<Item, OfHeadsByItem>, lines, stream);
    });
}

}  // namespace attncache::cuda

int attncache_cuda_rows(const attncache_cuda_selection* selection, const std::int64_t* positions,
                        std::int64_t n_positions, float* device_out, void* stream) {
    return attncache::cuda::status_of([=] {
        attncache::cuda::require(selection != nullptr);
        attncache::cuda::rows(*selection, positions, n_positions, device_out, static_cast<cudaStream_t>(stream));
    });
}
