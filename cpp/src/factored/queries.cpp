// Slabs: some lines of all selected heads of one batch item, [head, line, item] in float. One line of each head is the
// least; as many as fit into kSlabBytes are computed together, because lines share what reading the other axis costs.
#include "queries.hpp"

#include <algorithm>
#include <cstring>

#include "../memory.hpp"
#include "../positions.hpp"
#include "weight_lines.hpp"

namespace attncache {
namespace {

constexpr std::int64_t kSlabBytes = 64 * 1024 * 1024;

/// Which lines of a pattern: rows of queries or columns of keys, whole or (rows) at the `listed` keys alone.
struct Lines {
    Direction direction;
    std::span<const std::int64_t> positions;
    std::span<const std::int64_t> listed;
    std::int64_t length;  // of each
};

/// Lines first..first+n of a batch item, the index-th of the selection.
struct Part {
    std::size_t index;
    std::int64_t first;
    std::int64_t n;
};

/// Calls work(part) for lines that fit into a slab together.
template <class Work>
void for_each_part(const FactoredSelection& selection, const Lines& lines, const Work& work) {
    const auto n_lines = static_cast<std::int64_t>(lines.positions.size());
    const auto floats_each = static_cast<std::int64_t>(selection.heads.size()) * lines.length;
    const std::int64_t bytes_each = std::max<std::int64_t>(1, floats_each * static_cast<std::int64_t>(sizeof(float)));
    const std::int64_t together =
        std::clamp<std::int64_t>(kSlabBytes / bytes_each, 1, std::max<std::int64_t>(1, n_lines));
    for (std::size_t index = 0; index < selection.batches.size(); ++index) {
        for (std::int64_t first = 0; first < n_lines; first += together) {
            work(Part{index, first, std::min(together, n_lines - first)});
        }
    }
}

void compute(const FactoredSelection& selection, const Lines& lines, const Part& part, const LinesOut& out) {
    const auto chosen = lines.positions.subspan(static_cast<std::size_t>(part.first), static_cast<std::size_t>(part.n));
    weight_lines(selection.layer, selection.batches[part.index], selection.heads, lines.direction, chosen, lines.listed,
                 out);
}

/// Calls use(part, slab) with the lines of each part as a dense layer: a selection of all heads, queries 0..part.n.
template <class Use>
void for_each_slab(const FactoredSelection& selection, const Lines& lines, const Use& use) {
    const auto n_heads = static_cast<std::int64_t>(selection.heads.size());
    std::shared_ptr<std::byte> memory;
    std::int64_t n_allocated = 0;
    for_each_part(selection, lines, [&](const Part& part) {
        const std::int64_t n_bytes = n_heads * part.n * lines.length * static_cast<std::int64_t>(sizeof(float));
        if (n_bytes > n_allocated) {
            memory = allocate(n_bytes);
            n_allocated = n_bytes;
        }
        compute(selection, lines, part, {reinterpret_cast<float*>(memory.get()), part.n * lines.length, lines.length});
        const PatternView slab = contiguous_view(memory.get(), DType::float32, {1, n_heads, part.n, lines.length});
        use(part, Selection{{slab}, {0}, first_positions(n_heads), selection.treat_heads, {}, {}});
    });
}

/// [batch, head, line, item], or without heads if it is their mean.
void write_lines(const FactoredSelection& selection, const Lines& lines, float* out) {
    const auto n_lines = static_cast<std::int64_t>(lines.positions.size());
    if (selection.treat_heads == Heads::mean) {
        for_each_slab(selection, lines, [&](const Part& part, const Selection& slab) {
            const std::int64_t line = static_cast<std::int64_t>(part.index) * n_lines + part.first;
            rows(slab, first_positions(part.n), out + line * lines.length);
        });
        return;
    }
    const auto n_heads = static_cast<std::int64_t>(selection.heads.size());
    for_each_part(selection, lines, [&](const Part& part) {
        const std::int64_t line = static_cast<std::int64_t>(part.index) * n_heads * n_lines + part.first;
        compute(selection, lines, part, {out + line * lines.length, n_lines * lines.length, lines.length});
    });
}

std::int64_t length_of(const FactoredSelection& selection, Direction direction) {
    const Shape shape = selection.layer.view().shape();
    return direction == Direction::from ? shape.seq_k : shape.seq_q;
}

/// The mean over all heads of one batch item.
void mean_lines(const FactoredLayer& layer, std::int64_t batch, Direction direction,
                std::span<const std::int64_t> positions, float* out) {
    const std::vector<std::int64_t> heads = first_positions(layer.view().shape().n_heads);
    factored_lines({layer, {&batch, 1}, heads, Heads::mean}, direction, positions, out);
}

}  // namespace

void factored_lines(const FactoredSelection& selection, Direction direction, std::span<const std::int64_t> positions,
                    float* out) {
    write_lines(selection, {direction, positions, {}, length_of(selection, direction)}, out);
}

void factored_edges(const FactoredSelection& selection, std::span<const std::int64_t> from_positions,
                    std::span<const std::int64_t> to_positions, float* out) {
    if (to_positions.empty()) return;
    write_lines(selection,
                {Direction::from, from_positions, to_positions, static_cast<std::int64_t>(to_positions.size())}, out);
}

void factored_top_k(const FactoredSelection& selection, std::span<const std::int64_t> positions, Direction direction,
                    std::int64_t k, std::int64_t* top_positions, float* top_weights) {
    const auto n_lines = static_cast<std::int64_t>(positions.size());
    const Lines lines{direction, positions, {}, length_of(selection, direction)};
    std::vector<std::int64_t> found;
    std::vector<float> weights;
    for_each_slab(selection, lines, [&](const Part& part, const Selection& slab) {
        const auto n_heads = static_cast<std::int64_t>(slab.n_head_results());
        found.resize(static_cast<std::size_t>(n_heads * part.n * k));
        weights.resize(found.size());
        top_k(slab, first_positions(part.n), Direction::from, k, found.data(), weights.data());
        for (std::int64_t head = 0; head < n_heads; ++head) {
            const std::int64_t to =
                ((static_cast<std::int64_t>(part.index) * n_heads + head) * n_lines + part.first) * k;
            const std::int64_t from = head * part.n * k;
            std::copy_n(found.begin() + from, part.n * k, top_positions + to);
            std::copy_n(weights.begin() + from, part.n * k, top_weights + to);
        }
    });
}

void mean_row(const FactoredLayer& layer, std::int64_t batch, std::int64_t query, float* out) {
    mean_lines(layer, batch, Direction::from, {&query, 1}, out);
}

void mean_column(const FactoredLayer& layer, std::int64_t batch, std::int64_t key, float* out) {
    mean_lines(layer, batch, Direction::to, {&key, 1}, out);
}

void head_mean(const FactoredLayer& layer, std::int64_t batch, float* out) {
    mean_lines(layer, batch, Direction::from, first_positions(layer.view().shape().seq_q), out);
}

}  // namespace attncache
