// Collect, prune, sort.
#include "ranking.hpp"

#include <algorithm>
#include <functional>

namespace attncache {

void Ranking::rank(const RowKernels& kernels, const std::byte* row, std::size_t n, std::int64_t* positions) {
    if (k_ == 0) return;
    std::size_t n_keys = 0;
    std::uint32_t least_rank = 0;
    const auto kept_end = keys_.begin() + static_cast<std::ptrdiff_t>(k_);
    const auto keep_greatest = [&] {
        const auto end = keys_.begin() + static_cast<std::ptrdiff_t>(n_keys);
        std::nth_element(keys_.begin(), kept_end - 1, end, std::greater<>());
        n_keys = k_;
    };
    for (std::size_t begin = 0; begin < n;) {
        const Collected collected =
            kernels.collect(row, begin, n, least_rank, keys_.data() + n_keys, keys_.size() - n_keys);
        begin = collected.end;
        n_keys += collected.n_keys;
        if (n_keys > k_) keep_greatest();
        if (n_keys == k_) {
            const std::uint64_t threshold = *std::min_element(keys_.begin(), kept_end);
            least_rank = static_cast<std::uint32_t>(threshold >> 32) + 1;
        }
    }
    std::sort(keys_.begin(), kept_end, std::greater<>());
    for (std::size_t i = 0; i < k_; ++i) {
        positions[i] = static_cast<std::int64_t>(~static_cast<std::uint32_t>(keys_[i]));
    }
}

}  // namespace attncache
