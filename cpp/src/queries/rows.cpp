// rows: what queries attend to. Each result row reads the row of every head once, front to back; results too large for
// the caches are written past them.
#include "../memory.hpp"
#include "../parallel.hpp"
#include "by_layer.hpp"
#include "plane.hpp"

namespace attncache {
namespace {

constexpr int kToFloat = static_cast<int>(DType::float32);

}  // namespace

void rows(const Selection& selection, std::span<const std::int64_t> positions, float* out) {
    if (selection.n_planes() == 0 || positions.empty()) return;
    const PatternView& pattern = selection.layers.front();
    const std::int64_t seq_k = pattern.shape.seq_k;
    if (!selection.factored.empty()) {
        const std::int64_t stride = lines_per_layer(selection, positions.size()) * seq_k;
        return for_each_layer(
            selection,
            [&](const FactoredSelection& one, std::int64_t i) {
                factored_lines(one, Direction::from, positions, out + i * stride);
            },
            [&](const Selection& one, std::int64_t i) { rows(one, positions, out + i * stride); });
    }
    const auto n_positions = static_cast<std::int64_t>(positions.size());
    const auto n_rows = static_cast<std::int64_t>(selection.n_planes()) * n_positions;
    const std::int64_t bytes = bytes_per_line(selection, seq_k, static_cast<std::int64_t>(item_bytes(pattern.dtype)));
    const bool streams = n_rows * seq_k * static_cast<std::int64_t>(sizeof(float)) >= kStreamedBytes;
    const KernelTable& kernels = active_kernels();
    parallel_for(n_rows, bytes, [&](std::int64_t begin, std::int64_t end) {
        for_each_plane(selection, begin, end, n_positions, [&](Plane& plane, std::int64_t first, std::int64_t last) {
            for (std::int64_t r = first; r < last; ++r) {
                const std::int64_t query = positions[static_cast<std::size_t>(r % n_positions)];
                if (streams && plane.is_stored()) {
                    const auto widen = kernels.convert_streamed[static_cast<int>(plane.dtype())][kToFloat];
                    widen(plane.stored_row(query), static_cast<std::size_t>(seq_k),
                          reinterpret_cast<std::byte*>(out + r * seq_k));
                } else {
                    plane.read_row(query, 0, seq_k, out + r * seq_k);
                }
            }
        });
    });
}

}  // namespace attncache
