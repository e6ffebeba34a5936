// Lists of positions.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

namespace attncache {

/// 0, 1, ..., n - 1.
inline std::vector<std::int64_t> first_positions(std::int64_t n) {
    std::vector<std::int64_t> positions(static_cast<std::size_t>(n));
    std::iota(positions.begin(), positions.end(), 0);
    return positions;
}

}  // namespace attncache
