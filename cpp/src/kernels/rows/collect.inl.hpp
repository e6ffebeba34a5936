// The candidates of a top-k: items at least as heavy as a threshold, as sort keys. Exact: order and ties are decided on
// ranks, the vector compare only skips what cannot matter.
namespace attncache::ATTNCACHE_LEVEL {
namespace {

inline std::uint64_t sort_key(std::uint32_t rank, std::size_t position) {
    return static_cast<std::uint64_t>(rank) << 32 | static_cast<std::uint32_t>(~position);
}

template <class T>
Collected collect(const std::byte* row, std::size_t begin, std::size_t n, std::uint32_t least_rank, std::uint64_t* keys,
                  std::size_t capacity) {
    const auto* weights = reinterpret_cast<const T*>(row);
    std::size_t i = begin;
    std::size_t n_keys = 0;
    const auto keep = [&](std::size_t position) {
        const std::uint32_t rank = rank_of(widen_item(weights[position]));
        keys[n_keys] = sort_key(rank, position);
        n_keys += rank >= least_rank;
    };
    if (least_rank > kRankOfInfinity) return {n, 0};
    if (least_rank > kRankOfMinusInfinity) {  // some number is too light: skip whole vectors of such
        const auto least = Simd::set1(weight_of_rank(least_rank));
        for (; i + Simd::lanes <= n && n_keys + Simd::lanes <= capacity; i += Simd::lanes) {
            std::uint32_t candidates = Simd::ge(Simd::load(weights + i), least);
            for (std::size_t lane = 0; candidates != 0; ++lane, candidates >>= 1) {
                if (candidates & 1) keep(i + lane);
            }
        }
    }
    for (; i < n && n_keys < capacity; ++i) keep(i);
    return {i, n_keys};
}

}  // namespace
}  // namespace attncache::ATTNCACHE_LEVEL
