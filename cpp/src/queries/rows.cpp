// rows, columns and means: lines, written as floats.
#include "../system/positions.hpp"
#include "attncache/device.hpp"
#include "lines.hpp"

namespace attncache {

void rows(const Selection& selection, std::span<const std::int64_t> positions, const Out& out) {
    if (const Device* const device = selection.device()) return device->rows(selection, positions, out);
    write_lines(selection, {Direction::from, positions}, out.data);
}

void columns(const Selection& selection, std::span<const std::int64_t> positions, const Out& out) {
    if (const Device* const device = selection.device()) return device->columns(selection, positions, out);
    write_lines(selection, {Direction::to, positions}, out.data);
}

void mean_lines(const Layer& layer, std::int64_t batch, Direction direction, std::span<const std::int64_t> positions,
                const Out& out) {
    const Layer* const only = &layer;
    const auto heads = first_positions(layer.shape().n_heads);
    const Selection selection{{&only, 1}, {&batch, 1}, heads, Heads::mean};
    direction == Direction::from ? rows(selection, positions, out) : columns(selection, positions, out);
}

void head_mean(const Layer& layer, std::int64_t batch, const Out& out) {
    mean_lines(layer, batch, Direction::from, first_positions(layer.shape().seq_q), out);
}

}  // namespace attncache
