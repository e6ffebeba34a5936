// edges: the weights of (query, key) pairs. Reads just those items.
#include "../parallel.hpp"
#include "plane.hpp"

namespace attncache {
namespace {

constexpr std::int64_t kCacheLine = 64;  // what reading one stray item costs in bytes

}  // namespace

void edges(const Selection& selection, std::span<const std::int64_t> from_positions,
           std::span<const std::int64_t> to_positions, float* out) {
    if (selection.n_planes() == 0 || from_positions.empty() || to_positions.empty()) return;
    const auto n_from = static_cast<std::int64_t>(from_positions.size());
    const auto n_to = static_cast<std::int64_t>(to_positions.size());
    const auto n_lines = static_cast<std::int64_t>(selection.n_planes()) * n_from;
    parallel_for(n_lines, bytes_per_line(selection, n_to, kCacheLine), [&](std::int64_t begin, std::int64_t end) {
        std::vector<float> scratch(static_cast<std::size_t>(n_to));
        for_each_plane(selection, begin, end, n_from, [&](Plane& plane, std::int64_t first, std::int64_t last) {
            for (std::int64_t r = first; r < last; ++r) {
                const std::int64_t query = from_positions[static_cast<std::size_t>(r % n_from)];
                plane.read_edges(query, to_positions, out + r * n_to, scratch.data());
            }
        });
    });
}

}  // namespace attncache
