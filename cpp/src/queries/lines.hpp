// The one source of lines for every query. A line is a row or column of a [query, key] plane of the answer: of one
// head, or of the mean of several. Layers in memory are read where they lie, all of them together; other kinds are
// asked for as many lines at a time as fit into a slab. What splits over threads, what is read together, what is
// fetched ahead and whether an index pays is decided here.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "../layers/column_tile.hpp"
#include "../system/parallel.hpp"
#include "../system/positions.hpp"
#include "attncache/dense.hpp"
#include "attncache/queries.hpp"

namespace attncache {

/// The lines that a query asks of every plane.
struct AskedLines {
    Direction direction;
    std::span<const std::int64_t> positions;
    std::span<const std::int64_t> listed = {};  // keys: rows at those alone; empty: whole lines

    std::int64_t n() const { return static_cast<std::int64_t>(positions.size()); }
    std::int64_t length(const Shape& shape) const {
        if (!listed.empty()) return static_cast<std::int64_t>(listed.size());
        return direction == Direction::from ? shape.seq_k : shape.seq_q;
    }
};

/// Where the lines of some planes stand in an answer: the i-th of plane p at `first + p * per_plane + i`.
struct Places {
    std::int64_t first;
    std::int64_t per_plane;

    std::int64_t of(std::int64_t plane, std::int64_t i) const { return first + plane * per_plane + i; }
};

/// A line as it lies in memory.
struct Line {
    DType dtype;
    const std::byte* items;
    const std::byte* ahead;  // the line that comes next, or this one
    std::int64_t place;      // in the answer
};

/// A selection whose means over all heads come from the index where there is one, or where building it pays with lines
/// at hand. Holds on to what it points at.
class IndexedSelection {
public:
    IndexedSelection(const Selection& selection, const AskedLines& lines);
    IndexedSelection(const IndexedSelection&) = delete;
    IndexedSelection& operator=(const IndexedSelection&) = delete;

    const Selection& operator*() const { return selection_; }

private:
    Selection selection_;
    std::vector<std::shared_ptr<const HeadMean>> kept_;
    std::vector<const HeadMean*> means_;
};

/// The plane of that number of a selection of layers in memory: layers outermost, heads innermost.
Plane plane_of(const Selection& selection, std::int64_t number, const KernelTable& kernels);

/// About how many bytes are moved for one line of `n` items, with an item of a head for `bytes_per_item`.
std::int64_t bytes_of_line(const Selection& selection, std::int64_t n, std::int64_t bytes_per_item);

/// Calls `stored(part, first)` for layers in memory that follow each other, and `computed(part, first)` for each other
/// layer; `first` is the place of the part's first line in the answer.
template <class Stored, class Computed>
void for_each_part(const Selection& selection, std::int64_t n_lines, const Stored& stored, const Computed& computed) {
    const std::size_t n_batches = selection.batches.size();
    const std::int64_t per_layer = static_cast<std::int64_t>(n_batches * selection.n_head_results()) * n_lines;
    for (std::size_t begin = 0, end; begin < selection.layers.size(); begin = end) {
        const bool is_stored = selection.layers[begin]->stored() != nullptr;
        end = begin + 1;
        while (is_stored && end < selection.layers.size() && selection.layers[end]->stored() != nullptr) ++end;
        Selection part = selection;
        part.layers = selection.layers.subspan(begin, end - begin);
        if (!selection.means.empty())
            part.means = selection.means.subspan(begin * n_batches, part.layers.size() * n_batches);
        const std::int64_t first = static_cast<std::int64_t>(begin) * per_layer;
        is_stored ? stored(part, first) : computed(part, first);
    }
}

/// Calls `work(plane, number, begin, end)` for pieces begin..end of each plane of layers in memory, of `per_plane`
/// pieces that move about `bytes_each`; on many threads, each with its own `work = make()`.
template <class Make>
void for_each_plane(const Selection& selection, std::int64_t per_plane, std::int64_t bytes_each, const Make& make) {
    const KernelTable& kernels = active_kernels();
    parallel_for(static_cast<std::int64_t>(selection.n_planes()) * per_plane, bytes_each,
                 [&](std::int64_t begin, std::int64_t end) {
                     auto work = make();
                     while (begin < end) {
                         const std::int64_t number = begin / per_plane;
                         const std::int64_t stop = std::min(end, (number + 1) * per_plane);
                         Plane plane = plane_of(selection, number, kernels);
                         work(plane, number, begin - number * per_plane, stop - number * per_plane);
                         begin = stop;
                     }
                 });
}

/// Lines of one layer that fit into a slab together: first..first+n of the i-th batch item of the selection.
struct Slab {
    std::size_t batch;
    std::int64_t first;
    std::int64_t n;
};

/// Calls `use(slab)` for the slabs of a selection of one layer.
void for_each_slab(const Selection& selection, const AskedLines& lines, const std::function<void(const Slab&)>& use);

/// Calls `use(rows, slab)` with the lines of each slab as the rows 0..slab.n of a dense layer of the selected heads.
void for_each_computed(const Selection& selection, const AskedLines& lines,
                       const std::function<void(const Selection& rows, const Slab& slab)>& use);

/// Writes lines as floats, [layer, batch, head, position, item].
void write_lines(const Selection& selection, const AskedLines& lines, float* out);

/// The same of one layer that computes its lines.
void write_computed(const Selection& selection, const AskedLines& lines, float* out);

/// Shows the rows of layers in memory; see `for_each_line`.
template <class Make>
void show_rows(const Selection& selection, std::span<const std::int64_t> queries, const Places& places,
               const Make& make) {
    const std::int64_t seq_k = selection.shape().seq_k;
    const auto item = static_cast<std::int64_t>(item_bytes(selection.layers.front()->dtype()));
    const auto n = static_cast<std::int64_t>(queries.size());
    for_each_plane(selection, n, bytes_of_line(selection, seq_k, item), [&] {
        return [&, look = make(), row = std::vector<float>()](Plane& plane, std::int64_t number, std::int64_t begin,
                                                              std::int64_t end) mutable {
            for (std::int64_t i = begin; i < end; ++i) {
                const std::int64_t query = queries[static_cast<std::size_t>(i)];
                if (plane.is_stored()) {
                    const std::int64_t next = queries[static_cast<std::size_t>(i + 1 < n ? i + 1 : 0)];
                    look(Line{plane.dtype(), plane.stored_row(query), plane.stored_row(next), places.of(number, i)});
                } else {
                    row.resize(static_cast<std::size_t>(seq_k));
                    plane.read_row(query, 0, seq_k, row.data());
                    const auto* const items = reinterpret_cast<const std::byte*>(row.data());
                    look(Line{DType::float32, items, items, places.of(number, i)});
                }
            }
        };
    });
}

/// Columns that wait in scratch together.
constexpr std::int64_t kShownColumns = 64;

/// Shows the columns of layers in memory; see `for_each_line`.
template <class Make>
void show_columns(const Selection& selection, std::span<const std::int64_t> keys, const Places& places,
                  const Make& make) {
    const std::int64_t seq_q = selection.shape().seq_q;
    const auto n = static_cast<std::int64_t>(keys.size());
    const std::int64_t per_tile = std::min(n, kShownColumns);
    const std::int64_t n_tiles = (n + per_tile - 1) / per_tile;
    for_each_plane(selection, n_tiles, bytes_of_line(selection, seq_q * per_tile, 4), [&] {
        return [&, look = make(), columns = std::vector<float>(), scratch = std::vector<float>()](
                   Plane& plane, std::int64_t number, std::int64_t begin, std::int64_t end) mutable {
            for (std::int64_t first = begin * per_tile; first < std::min(end * per_tile, n); first += per_tile) {
                const std::int64_t count = std::min(per_tile, n - first);
                const auto chosen = keys.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
                const bool is_indexed = plane.stored_column(chosen.front()) != nullptr;
                if (!is_indexed) {
                    columns.resize(static_cast<std::size_t>(seq_q * per_tile));
                    read_columns(plane, seq_q, {0, seq_q}, chosen, columns.data(), scratch);
                }
                for (std::int64_t c = 0; c < count; ++c) {
                    const float* const column = is_indexed ? plane.stored_column(chosen[static_cast<std::size_t>(c)])
                                                           : columns.data() + c * seq_q;
                    const auto* const items = reinterpret_cast<const std::byte*>(column);
                    look(Line{DType::float32, items, items, places.of(number, first + c)});
                }
            }
        };
    });
}

/// Shows every line to one of many consumers: each thread makes its own, `auto look = make()`, and calls `look(line)`.
/// Lines of a plane come in the order of the positions to whichever consumer has them.
template <class Make>
void for_each_line(const Selection& asked, const AskedLines& lines, const Make& make) {
    const IndexedSelection selection(asked, lines);
    const std::int64_t n = lines.n();
    for_each_part(
        *selection, n,
        [&](const Selection& part, std::int64_t first) {
            if (lines.direction == Direction::from) return show_rows(part, lines.positions, {first, n}, make);
            show_columns(part, lines.positions, {first, n}, make);
        },
        [&](const Selection& part, std::int64_t first) {
            const auto per_batch = static_cast<std::int64_t>(part.n_head_results()) * n;
            for_each_computed(part, lines, [&](const Selection& rows, const Slab& slab) {
                const std::int64_t place = first + static_cast<std::int64_t>(slab.batch) * per_batch + slab.first;
                show_rows(rows, first_positions(slab.n), {place, n}, make);
            });
        });
}

}  // namespace attncache
