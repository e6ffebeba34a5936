// rows: what queries attend to. Each result row reads the row of every head once, front to back.
#include "../parallel.hpp"
#include "plane.hpp"

namespace attncache {

void rows(const Selection& selection, std::span<const std::int64_t> positions, float* out) {
    if (selection.n_planes() == 0 || positions.empty()) return;
    const PatternView& pattern = selection.layers.front();
    const std::int64_t seq_k = pattern.shape.seq_k;
    const auto n_positions = static_cast<std::int64_t>(positions.size());
    const auto n_rows = static_cast<std::int64_t>(selection.n_planes()) * n_positions;
    const std::int64_t bytes = bytes_per_line(selection, seq_k, static_cast<std::int64_t>(item_bytes(pattern.dtype)));
    parallel_for(n_rows, bytes, [&](std::int64_t begin, std::int64_t end) {
        for_each_plane(selection, begin, end, n_positions, [&](Plane& plane, std::int64_t first, std::int64_t last) {
            for (std::int64_t r = first; r < last; ++r) {
                plane.read_row(positions[static_cast<std::size_t>(r % n_positions)], 0, seq_k, out + r * seq_k);
            }
        });
    });
}

}  // namespace attncache
