// Which index serves a selection, slabs of computed lines, and lines written straight into an answer.
#include "lines.hpp"

#include "attncache/memory.hpp"

namespace attncache {
namespace {

constexpr std::int64_t kSlabBytes = 64 * 1024 * 1024;
constexpr int kToFloat = static_cast<int>(DType::float32);

/// Rows are read in one piece, but for a few long ones, which all threads share.
constexpr std::int64_t kManyRows = 64;
constexpr std::int64_t kSegment = 4096;

/// Queries of a tile of columns that one thread reads: a whole number of the blocks in which tiles are read. Of a
/// single column each is a cache line in every head, so few are work enough.
constexpr std::int64_t kTileQueries = 512;
constexpr std::int64_t kColumnQueries = 128;

bool is_mean_of_all_heads(const Selection& selection) {
    if (selection.treat_heads != Heads::mean) return false;
    if (static_cast<std::int64_t>(selection.heads.size()) != selection.shape().n_heads) return false;
    for (std::size_t h = 0; h < selection.heads.size(); ++h) {
        if (selection.heads[h] != static_cast<std::int64_t>(h)) return false;
    }
    return true;
}

/// What lines of the mean over all heads cost without an index, of one batch item.
std::int64_t cost_of(const AskedLines& lines, const Costs& costs) {
    if (!lines.listed.empty()) {
        return std::min(lines.n() * static_cast<std::int64_t>(lines.listed.size()) * costs.edge, costs.layer);
    }
    if (lines.direction == Direction::from) return lines.n() * costs.row;
    return std::min(lines.n() * costs.column, costs.layer);
}

/// Writes rows of layers in memory.
void write_rows(const Selection& selection, std::span<const std::int64_t> queries, const Places& places, float* out) {
    const std::int64_t seq_k = selection.shape().seq_k;
    const auto n = static_cast<std::int64_t>(queries.size());
    const std::int64_t n_rows = static_cast<std::int64_t>(selection.n_planes()) * n;
    const std::int64_t segment = n_rows < kManyRows ? kSegment : std::max<std::int64_t>(1, seq_k);
    const std::int64_t n_segments = (seq_k + segment - 1) / segment;
    const bool streams = n_rows * seq_k * static_cast<std::int64_t>(sizeof(float)) >= kStreamedBytes;
    const KernelTable& kernels = active_kernels();
    const auto item = static_cast<std::int64_t>(item_bytes(selection.layers.front()->dtype()));
    for_each_plane(selection, n * n_segments, bytes_of_line(selection, std::min(segment, seq_k), item), [&] {
        return [&](Plane& plane, std::int64_t number, std::int64_t begin, std::int64_t end) {
            for (std::int64_t piece = begin; piece < end; ++piece) {
                const std::int64_t i = n_segments == 1 ? piece : piece / n_segments;
                const std::int64_t first = n_segments == 1 ? 0 : piece % n_segments * segment;
                const std::int64_t length = std::min(segment, seq_k - first);
                const std::int64_t query = queries[static_cast<std::size_t>(i)];
                float* const row = out + places.of(number, i) * seq_k + first;
                if (streams && plane.is_stored()) {
                    const auto widen = kernels.convert_streamed[static_cast<int>(plane.dtype())][kToFloat];
                    widen(plane.address(0, query, first), static_cast<std::size_t>(length),
                          reinterpret_cast<std::byte*>(row));
                } else {
                    plane.read_row(query, first, length, row);
                }
            }
        };
    });
}

/// Writes columns of layers in memory: tiles of neighbouring ones where there are such; a piece of work is a range of
/// queries of one tile, so that even a single column keeps all threads busy.
void write_columns(const Selection& selection, std::span<const std::int64_t> keys, const Places& places, float* out) {
    const std::int64_t seq_q = selection.shape().seq_q;
    const auto n = static_cast<std::int64_t>(keys.size());
    const bool is_single = n == 1;
    const std::int64_t range = is_single ? kColumnQueries : kTileQueries;
    const std::int64_t n_ranges = (seq_q + range - 1) / range;
    const std::int64_t n_tiles = (n + kTileColumns - 1) / kTileColumns;
    const std::int64_t bytes =
        bytes_of_line(selection, std::min(seq_q, range) * std::min(n, kTileColumns), is_single ? kCacheLine : 4);
    for_each_plane(selection, n_tiles * n_ranges, bytes, [&] {
        return [&, scratch = std::vector<float>()](Plane& plane, std::int64_t number, std::int64_t begin,
                                                   std::int64_t end) mutable {
            for (std::int64_t piece = begin; piece < end; ++piece) {
                const std::int64_t first = piece / n_ranges * kTileColumns;
                const std::int64_t query = piece % n_ranges * range;
                const auto chosen = keys.subspan(static_cast<std::size_t>(first),
                                                 static_cast<std::size_t>(std::min(kTileColumns, n - first)));
                float* const tile = out + places.of(number, first) * seq_q;
                read_columns(plane, seq_q, {query, std::min(query + range, seq_q)}, chosen, tile, scratch);
            }
        };
    });
}

LineRequest request_of(const Selection& selection, const AskedLines& lines, const Slab& slab) {
    const auto chosen = lines.positions.subspan(static_cast<std::size_t>(slab.first), static_cast<std::size_t>(slab.n));
    return {lines.direction, selection.batches[slab.batch], selection.heads, chosen, lines.listed};
}

}  // namespace

IndexedSelection::IndexedSelection(const Selection& selection, const AskedLines& lines) : selection_(selection) {
    if (!is_mean_of_all_heads(selection)) return;
    const std::size_t n_batches = selection.batches.size();
    for (std::size_t l = 0; l < selection.layers.size(); ++l) {
        const Layer& layer = *selection.layers[l];
        if (layer.stored() == nullptr) continue;
        const std::int64_t cost = cost_of(lines, layer.costs());
        for (std::size_t i = 0; i < n_batches; ++i) {
            auto found = head_mean_for(layer, selection.batches[i], selection.policy, cost);
            if (found == nullptr) continue;
            means_.resize(selection.layers.size() * n_batches);
            means_[l * n_batches + i] = found.get();
            kept_.push_back(std::move(found));
        }
    }
    selection_.means = means_;
}

Plane plane_of(const Selection& selection, std::int64_t number, const KernelTable& kernels) {
    const std::size_t n_head_results = selection.n_head_results();
    const std::size_t layer_and_batch = static_cast<std::size_t>(number) / n_head_results;
    const std::size_t n_batches = selection.batches.size();
    const PatternView& pattern = *selection.layers[layer_and_batch / n_batches]->stored();
    const std::int64_t batch = selection.batches[layer_and_batch % n_batches];
    if (selection.treat_heads == Heads::each) {
        return {pattern, batch, selection.heads[static_cast<std::size_t>(number) % n_head_results], kernels};
    }
    if (!selection.means.empty() && selection.means[layer_and_batch] != nullptr) {
        return {*selection.means[layer_and_batch], pattern.shape, kernels};
    }
    return {pattern, batch, selection.heads, kernels};
}

std::int64_t bytes_of_line(const Selection& selection, std::int64_t n, std::int64_t bytes_per_item) {
    const auto heads = selection.treat_heads == Heads::mean ? static_cast<std::int64_t>(selection.heads.size()) : 1;
    return n * (heads * bytes_per_item + static_cast<std::int64_t>(sizeof(float)));
}

void for_each_slab(const Selection& selection, const AskedLines& lines, const std::function<void(const Slab&)>& use) {
    const std::int64_t length = lines.length(selection.shape());
    const auto floats_each = static_cast<std::int64_t>(selection.heads.size()) * length;
    const std::int64_t bytes_each = std::max<std::int64_t>(1, floats_each * static_cast<std::int64_t>(sizeof(float)));
    const std::int64_t together = std::clamp<std::int64_t>(kSlabBytes / bytes_each, 1, lines.n());
    for (std::size_t batch = 0; batch < selection.batches.size(); ++batch) {
        for (std::int64_t first = 0; first < lines.n(); first += together) {
            use(Slab{batch, first, std::min(together, lines.n() - first)});
        }
    }
}

void for_each_computed(const Selection& selection, const AskedLines& lines,
                       const std::function<void(const Selection& rows, const Slab& slab)>& use) {
    const auto n_heads = static_cast<std::int64_t>(selection.heads.size());
    const std::int64_t length = lines.length(selection.shape());
    const std::int64_t only_batch = 0;
    const auto all_heads = first_positions(n_heads);
    std::shared_ptr<std::byte> memory;
    std::int64_t n_allocated = 0;
    for_each_slab(selection, lines, [&](const Slab& slab) {
        const std::int64_t n_bytes = n_heads * slab.n * length * static_cast<std::int64_t>(sizeof(float));
        if (n_bytes > n_allocated) {
            memory = allocate(n_bytes);
            n_allocated = n_bytes;
        }
        selection.layers.front()->read_lines(request_of(selection, lines, slab),
                                             {reinterpret_cast<float*>(memory.get()), slab.n * length, length});
        const DenseLayer rows(contiguous_view(memory.get(), DType::float32, {1, n_heads, slab.n, length}), memory);
        const Layer* const layer = &rows;
        use(Selection{{&layer, 1}, {&only_batch, 1}, all_heads, selection.treat_heads}, slab);
    });
}

void write_computed(const Selection& selection, const AskedLines& lines, float* out) {
    const std::int64_t length = lines.length(selection.shape());
    const std::int64_t n = lines.n();
    if (selection.treat_heads == Heads::mean) {
        return for_each_computed(selection, lines, [&](const Selection& rows, const Slab& slab) {
            write_rows(rows, first_positions(slab.n), {static_cast<std::int64_t>(slab.batch) * n + slab.first, n}, out);
        });
    }
    const auto n_heads = static_cast<std::int64_t>(selection.heads.size());
    for_each_slab(selection, lines, [&](const Slab& slab) {
        const std::int64_t line = static_cast<std::int64_t>(slab.batch) * n_heads * n + slab.first;
        selection.layers.front()->read_lines(request_of(selection, lines, slab),
                                             {out + line * length, n * length, length});
    });
}

void write_lines(const Selection& asked, const AskedLines& lines, float* out) {
    if (asked.n_planes() == 0 || lines.positions.empty()) return;
    const IndexedSelection selection(asked, lines);
    const std::int64_t n = lines.n();
    for_each_part(
        *selection, n,
        [&](const Selection& part, std::int64_t first) {
            const auto write = lines.direction == Direction::from ? write_rows : write_columns;
            write(part, lines.positions, {first, n}, out);
        },
        [&](const Selection& part, std::int64_t first) {
            write_computed(part, lines, out + first * lines.length(part.shape()));
        });
}

}  // namespace attncache
