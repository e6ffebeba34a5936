// top_k: the heaviest keys of queries, or queries of keys. A line (a row or column of a plane) is ranked as it is
// stored where it lies in memory as such, otherwise as floats in a scratch buffer of the thread.
#include "../parallel.hpp"
#include "by_layer.hpp"
#include "column_tile.hpp"
#include "ranking.hpp"

namespace attncache {
namespace {

/// Columns are read in tiles; smaller than those of `columns`, because a whole tile of columns waits in scratch.
constexpr std::int64_t kRankedColumns = 64;

/// Ranks lines and writes their positions and weights.
class LineRanker {
public:
    LineRanker(const KernelTable& kernels, std::int64_t length, std::int64_t k, std::int64_t* positions, float* weights)
        : kernels_(kernels),
          length_(static_cast<std::size_t>(length)),
          k_(static_cast<std::size_t>(k)),
          positions_(positions),
          weights_(weights),
          ranking_(kernels, k),
          items_(k_) {}

    /// Ranks a line of stored items; `index` is its place in the result, `ahead` the line that is ranked next.
    void rank(DType dtype, const std::byte* line, std::int64_t index, const std::byte* ahead) {
        std::int64_t* const positions = positions_ + static_cast<std::size_t>(index) * k_;
        ranking_.rank(dtype, line, length_, positions, ahead);
        const std::size_t item = item_bytes(dtype);
        for (std::size_t i = 0; i < k_; ++i) items_[i] = line + static_cast<std::size_t>(positions[i]) * item;
        kernels_.of(dtype).gather(items_.data(), k_, weights_ + static_cast<std::size_t>(index) * k_);
    }

    void rank(const float* line, std::int64_t index) {
        const auto* const items = reinterpret_cast<const std::byte*>(line);
        rank(DType::float32, items, index, items);
    }

private:
    const KernelTable& kernels_;
    std::size_t length_;
    std::size_t k_;
    std::int64_t* positions_;
    float* weights_;
    Ranking ranking_;
    std::vector<const std::byte*> items_;
};

void rank_rows(const Selection& selection, std::span<const std::int64_t> queries, std::int64_t k,
               std::int64_t* positions, float* weights) {
    const PatternView& pattern = selection.layers.front();
    const std::int64_t seq_k = pattern.shape.seq_k;
    const auto n_queries = static_cast<std::int64_t>(queries.size());
    const auto bytes = bytes_per_line(selection, seq_k, static_cast<std::int64_t>(item_bytes(pattern.dtype)));
    parallel_for(
        static_cast<std::int64_t>(selection.n_planes()) * n_queries, bytes, [&](std::int64_t begin, std::int64_t end) {
            LineRanker ranker(active_kernels(), seq_k, k, positions, weights);
            std::vector<float> row(static_cast<std::size_t>(seq_k));
            for_each_plane(selection, begin, end, n_queries, [&](Plane& plane, std::int64_t first, std::int64_t last) {
                for (std::int64_t r = first; r < last; ++r) {
                    const std::int64_t query = queries[static_cast<std::size_t>(r % n_queries)];
                    if (plane.is_stored()) {
                        const std::int64_t next = queries[static_cast<std::size_t>((r + 1) % n_queries)];
                        ranker.rank(plane.dtype(), plane.stored_row(query), r, plane.stored_row(next));
                    } else {
                        plane.read_row(query, 0, seq_k, row.data());
                        ranker.rank(row.data(), r);
                    }
                }
            });
        });
}

void rank_columns(const Selection& selection, std::span<const std::int64_t> keys, std::int64_t k,
                  std::int64_t* positions, float* weights) {
    const std::int64_t seq_q = selection.layers.front().shape.seq_q;
    const auto n_keys = static_cast<std::int64_t>(keys.size());
    const std::int64_t per_tile = std::min(n_keys, kRankedColumns);
    const std::int64_t n_tiles = (n_keys + per_tile - 1) / per_tile;
    parallel_for(
        static_cast<std::int64_t>(selection.n_planes()) * n_tiles, bytes_per_line(selection, seq_q * per_tile, 4),
        [&](std::int64_t begin, std::int64_t end) {
            LineRanker ranker(active_kernels(), seq_q, k, positions, weights);
            std::vector<float> columns;
            std::vector<float> scratch;
            for_each_plane(selection, begin, end, n_tiles, [&](Plane& plane, std::int64_t first, std::int64_t last) {
                for (std::int64_t tile = first; tile < last; ++tile) {
                    const std::int64_t start = tile % n_tiles * per_tile;
                    const std::int64_t count = std::min(per_tile, n_keys - start);
                    const std::int64_t index = tile / n_tiles * n_keys + start;
                    const auto chosen = keys.subspan(static_cast<std::size_t>(start), static_cast<std::size_t>(count));
                    if (plane.stored_column(chosen.front()) != nullptr) {
                        for (std::int64_t c = 0; c < count; ++c) {
                            ranker.rank(plane.stored_column(chosen[static_cast<std::size_t>(c)]), index + c);
                        }
                        continue;
                    }
                    columns.resize(static_cast<std::size_t>(seq_q * per_tile));
                    read_columns(plane, seq_q, {0, seq_q}, chosen, columns.data(), scratch);
                    for (std::int64_t c = 0; c < count; ++c) ranker.rank(columns.data() + c * seq_q, index + c);
                }
            });
        });
}

}  // namespace

void top_k(const Selection& selection, std::span<const std::int64_t> positions, Direction direction, std::int64_t k,
           std::int64_t* top_positions, float* top_weights) {
    if (selection.n_planes() == 0 || positions.empty() || k == 0) return;
    if (!selection.factored.empty()) {
        const std::int64_t stride = lines_per_layer(selection, positions.size()) * k;
        return for_each_layer(
            selection,
            [&](const FactoredSelection& one, std::int64_t i) {
                factored_top_k(one, positions, direction, k, top_positions + i * stride, top_weights + i * stride);
            },
            [&](const Selection& one, std::int64_t i) {
                top_k(one, positions, direction, k, top_positions + i * stride, top_weights + i * stride);
            });
    }
    const auto rank = direction == Direction::from ? rank_rows : rank_columns;
    rank(selection, positions, k, top_positions, top_weights);
}

}  // namespace attncache
