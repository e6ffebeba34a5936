// columns: who attends to keys. Tiles of neighbouring columns where there are such; a piece of work is a range of
// queries of one tile, so that even a single column keeps all threads busy.
#include "../parallel.hpp"
#include "by_layer.hpp"
#include "column_tile.hpp"

namespace attncache {
namespace {

constexpr std::int64_t kPieceQueries = 512;  // a whole number of the blocks in which tiles are read

std::int64_t n_pieces_of(std::int64_t n, std::int64_t piece) { return (n + piece - 1) / piece; }

}  // namespace

void columns(const Selection& selection, std::span<const std::int64_t> positions, float* out) {
    if (selection.n_planes() == 0 || positions.empty()) return;
    const std::int64_t seq_q = selection.layers.front().shape.seq_q;
    if (!selection.factored.empty()) {
        const std::int64_t stride = lines_per_layer(selection, positions.size()) * seq_q;
        return for_each_layer(
            selection,
            [&](const FactoredSelection& one, std::int64_t i) {
                factored_lines(one, Direction::to, positions, out + i * stride);
            },
            [&](const Selection& one, std::int64_t i) { columns(one, positions, out + i * stride); });
    }
    const auto n_positions = static_cast<std::int64_t>(positions.size());
    const std::int64_t n_tiles = n_pieces_of(n_positions, kTileColumns);
    const std::int64_t n_ranges = n_pieces_of(seq_q, kPieceQueries);
    const std::int64_t per_plane = n_tiles * n_ranges;
    const bool is_single = n_positions == 1;  // a cache line for each item
    const std::int64_t bytes = bytes_per_line(
        selection, std::min(seq_q, kPieceQueries) * std::min(n_positions, kTileColumns), is_single ? 64 : 4);
    parallel_for(
        static_cast<std::int64_t>(selection.n_planes()) * per_plane, bytes, [&](std::int64_t begin, std::int64_t end) {
            std::vector<float> scratch;
            for_each_plane(selection, begin, end, per_plane, [&](Plane& plane, std::int64_t first, std::int64_t last) {
                for (std::int64_t piece = first; piece < last; ++piece) {
                    const std::int64_t start = piece % per_plane / n_ranges * kTileColumns;
                    const std::int64_t count = std::min(kTileColumns, n_positions - start);
                    const std::int64_t query = piece % n_ranges * kPieceQueries;
                    const Queries queries{query, std::min(query + kPieceQueries, seq_q)};
                    const auto keys =
                        positions.subspan(static_cast<std::size_t>(start), static_cast<std::size_t>(count));
                    float* const tile = out + (piece / per_plane * n_positions + start) * seq_q;
                    read_columns(plane, seq_q, queries, keys, tile, scratch);
                }
            });
        });
}

}  // namespace attncache
