// top_k: the heaviest keys of queries, or queries of keys. A line (a row or column of a plane) is ranked as it is
// stored where it lies in memory as such, otherwise as floats in a scratch buffer of the thread.
#include "../parallel.hpp"
#include "column_tile.hpp"
#include "ranking.hpp"

namespace attncache {
namespace {

/// Columns are read in tiles; smaller than those of `columns`, because a whole tile of columns waits in scratch.
constexpr std::int64_t kRankedColumns = 64;

/// Ranks lines and writes their positions and weights.
class LineRanker {
public:
    LineRanker(std::int64_t length, std::int64_t k, std::int64_t* positions, float* weights)
        : length_(static_cast<std::size_t>(length)), k_(k), positions_(positions), weights_(weights), ranking_(k) {}

    void rank(const RowKernels& kernels, const std::byte* line, std::int64_t index) {
        std::int64_t* positions = positions_ + index * k_;
        ranking_.rank(kernels, line, length_, positions);
        kernels.gather(line, positions, static_cast<std::size_t>(k_), weights_ + index * k_);
    }

private:
    std::size_t length_;
    std::int64_t k_;
    std::int64_t* positions_;
    float* weights_;
    Ranking ranking_;
};

}  // namespace

void top_k(const Selection& selection, std::span<const std::int64_t> positions, Direction direction, std::int64_t k,
           std::int64_t* top_positions, float* top_weights) {
    if (selection.n_planes() == 0 || positions.empty() || k == 0) return;
    const PatternView& pattern = selection.layers.front();
    const bool ranks_rows = direction == Direction::from;
    const std::int64_t length = ranks_rows ? pattern.shape.seq_k : pattern.shape.seq_q;
    const auto n_positions = static_cast<std::int64_t>(positions.size());
    const std::int64_t per_piece = ranks_rows ? 1 : std::min(n_positions, kRankedColumns);
    const std::int64_t n_pieces = (n_positions + per_piece - 1) / per_piece;
    const KernelTable& kernels = active_kernels();
    const RowKernels& float_kernels = kernels.of(DType::float32);
    const auto as_bytes = [](const float* p) { return reinterpret_cast<const std::byte*>(p); };

    parallel_for(
        static_cast<std::int64_t>(selection.n_planes()) * n_pieces, bytes_per_line(selection, length * per_piece, 4),
        [&](std::int64_t begin, std::int64_t end) {
            LineRanker ranker(length, k, top_positions, top_weights);
            std::vector<float> lines(static_cast<std::size_t>(length * per_piece));
            std::vector<float> scratch;
            for_each_plane(selection, begin, end, n_pieces, [&](Plane& plane, std::int64_t first, std::int64_t last) {
                for (std::int64_t piece = first; piece < last; ++piece) {
                    const std::int64_t start = piece % n_pieces * per_piece;
                    const std::int64_t count = std::min(per_piece, n_positions - start);
                    const std::int64_t index = piece / n_pieces * n_positions + start;
                    const auto chosen =
                        positions.subspan(static_cast<std::size_t>(start), static_cast<std::size_t>(count));
                    if (!ranks_rows) {
                        read_columns(plane, length, chosen, lines.data(), scratch);
                        for (std::int64_t c = 0; c < count; ++c) {
                            ranker.rank(float_kernels, as_bytes(lines.data() + c * length), index + c);
                        }
                    } else if (const std::byte* row = plane.stored_row(chosen.front())) {
                        ranker.rank(kernels.of(plane.dtype()), row, index);
                    } else {
                        plane.read_row(chosen.front(), 0, length, lines.data());
                        ranker.rank(float_kernels, as_bytes(lines.data()), index);
                    }
                }
            });
        });
}

}  // namespace attncache
