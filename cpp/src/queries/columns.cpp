// columns: who attends to keys. Tiles of neighbouring columns where there are such.
#include "../parallel.hpp"
#include "column_tile.hpp"

namespace attncache {

void columns(const Selection& selection, std::span<const std::int64_t> positions, float* out) {
    if (selection.n_planes() == 0 || positions.empty()) return;
    const std::int64_t seq_q = selection.layers.front().shape.seq_q;
    const auto n_positions = static_cast<std::int64_t>(positions.size());
    const std::int64_t n_tiles = (n_positions + kTileColumns - 1) / kTileColumns;
    const std::int64_t tile_columns = std::min(n_positions, kTileColumns);
    const std::int64_t bytes = bytes_per_line(selection, seq_q * tile_columns, 4);
    parallel_for(
        static_cast<std::int64_t>(selection.n_planes()) * n_tiles, bytes, [&](std::int64_t begin, std::int64_t end) {
            std::vector<float> scratch;
            for_each_plane(selection, begin, end, n_tiles, [&](Plane& plane, std::int64_t first, std::int64_t last) {
                for (std::int64_t t = first; t < last; ++t) {
                    const std::int64_t start = t % n_tiles * kTileColumns;
                    const std::int64_t count = std::min(kTileColumns, n_positions - start);
                    const auto keys =
                        positions.subspan(static_cast<std::size_t>(start), static_cast<std::size_t>(count));
                    read_columns(plane, seq_q, keys, out + (t / n_tiles * n_positions + start) * seq_q, scratch);
                }
            });
        });
}

}  // namespace attncache
