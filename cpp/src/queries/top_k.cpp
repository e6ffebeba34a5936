// top_k: the heaviest keys of queries, or queries of keys. Each line is ranked as it is stored.
#include "attncache/device.hpp"
#include "attncache/watcher.hpp"
#include "lines.hpp"
#include "ranking.hpp"

namespace attncache {
namespace {

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

    void operator()(const Line& line) {
        std::int64_t* const positions = positions_ + static_cast<std::size_t>(line.place) * k_;
        ranking_.rank(line.dtype, line.items, length_, positions, line.ahead);
        const std::size_t item = item_bytes(line.dtype);
        for (std::size_t i = 0; i < k_; ++i) items_[i] = line.items + static_cast<std::size_t>(positions[i]) * item;
        kernels_.of(line.dtype).gather(items_.data(), k_, weights_ + static_cast<std::size_t>(line.place) * k_);
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

}  // namespace

void top_k(const Selection& selection, std::span<const std::int64_t> positions, Direction direction, std::int64_t k,
           std::int64_t* top_positions, float* top_weights) {
    if (const Device* const device = selection.device()) {
        return device->top_k(selection, positions, direction, k, top_positions, top_weights);
    }
    if (selection.n_planes() == 0 || positions.empty() || k == 0) return;
    const AskedLines lines{direction, positions};
    const std::int64_t length = lines.length(selection.shape());
    for_each_line(selection, lines,
                  [&] { return LineRanker(active_kernels(), length, k, top_positions, top_weights); });
}

void heaviest(const float* weights, std::int64_t n, std::int64_t k, std::int64_t* positions) {
    const auto* const row = reinterpret_cast<const std::byte*>(weights);
    announce(n * static_cast<std::int64_t>(sizeof(float)));
    Ranking(active_kernels(), k).rank(DType::float32, row, static_cast<std::size_t>(n), positions, row);
}

}  // namespace attncache
