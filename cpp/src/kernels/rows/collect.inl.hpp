// The candidates of a top-k: items that reach a rank, as sort keys. Exact: order and ties are decided on ranks, the
// vector compare only skips what cannot matter.
namespace attncache::ATTNCACHE_LEVEL {
namespace {

inline std::uint64_t sort_key(std::uint32_t rank, std::size_t position) {
    return static_cast<std::uint64_t>(rank) << 32 | static_cast<std::uint32_t>(~position);
}

/// How a scan skips items: `kLanes` items are compared at once by `may_reach`, which may say yes too often.
struct SkipFloats {
    static constexpr std::size_t kLanes = Simd::lanes;
    template <class T>
    static std::uint32_t may_reach(const T* items, float least) {
        return Simd::ge(Simd::load(items), Simd::set1(least));
    }
    static float bound(float least) { return least; }
};

/// 16-bit weights compared as unsigned integers: that is the order of the non-negative ones; negative ones and NaN lie
/// above all of these and are sorted out by their rank.
template <class T>
struct SkipBits {
    static constexpr std::size_t kLanes = Simd::bits_lanes;
    static std::uint32_t may_reach(const T* items, std::uint16_t least) {
        return Simd::ge_bits(Simd::load_bits(items), Simd::set1_bits(least));
    }
    /// The bits of the least weight that is not below `least`, itself at least 0.
    static std::uint16_t bound(float least) {
        T narrow;
        narrow_item(least, &narrow);
        return static_cast<std::uint16_t>(narrow.bits + (widen_item(narrow) < least ? 1 : 0));
    }
};

template <class T, class Skip>
Collected collect_by(const T* row, std::size_t begin, std::size_t n, std::uint32_t least_rank, bool skips,
                     std::uint64_t* keys, std::size_t capacity) {
    std::size_t i = begin;
    std::size_t n_keys = 0;
    const auto keep = [&](std::size_t position) {
        const std::uint32_t rank = rank_of(widen_item(row[position]));
        keys[n_keys] = sort_key(rank, position);
        n_keys += rank >= least_rank;
    };
    if (skips) {
        // Candidates are rare and lie anywhere, so that a branch on each vector would be mispredicted at each of them:
        // a block of vectors is compared first, and those that hold candidates are listed without a branch.
        constexpr std::size_t block = 32;
        const auto least = Skip::bound(weight_of_rank(least_rank));
        for (; i + block * Skip::kLanes <= n; i += block * Skip::kLanes) {
            std::uint32_t candidates[block];
            std::size_t hits[block];
            std::size_t n_hits = 0;
            for (std::size_t v = 0; v < block; ++v) {
                candidates[v] = Skip::may_reach(row + i + v * Skip::kLanes, least);
                hits[n_hits] = v;
                n_hits += candidates[v] != 0;
            }
            for (std::size_t h = 0; h < n_hits; ++h) {
                const std::size_t first = i + hits[h] * Skip::kLanes;
                if (n_keys + Skip::kLanes > capacity) return {first, n_keys};
                for (std::uint32_t left = candidates[hits[h]]; left != 0; left &= left - 1) {
                    keep(first + lowest_bit(left));
                }
            }
        }
        for (; i + Skip::kLanes <= n && n_keys + Skip::kLanes <= capacity; i += Skip::kLanes) {
            for (std::uint32_t left = Skip::may_reach(row + i, least); left != 0; left &= left - 1) {
                keep(i + lowest_bit(left));
            }
        }
    }
    for (; i < n && n_keys < capacity; ++i) keep(i);
    return {i, n_keys};
}

template <class T>
Collected collect(const std::byte* row, std::size_t begin, std::size_t n, std::uint32_t least_rank, std::uint64_t* keys,
                  std::size_t capacity) {
    const auto* items = reinterpret_cast<const T*>(row);
    if (least_rank > kRankOfInfinity) return {n, 0};
    if constexpr (sizeof(T) == 2) {
        if (least_rank >= kRankOfZero) {
            return collect_by<T, SkipBits<T>>(items, begin, n, least_rank, true, keys, capacity);
        }
    }
    const bool some_number_is_too_light = least_rank > kRankOfMinusInfinity;
    return collect_by<T, SkipFloats>(items, begin, n, least_rank, some_number_is_too_light, keys, capacity);
}

/// The `n_wanted` greatest of n keys, greatest first: each key's place is how many are greater. For few keys.
inline void order(const std::uint64_t* keys, std::size_t n, std::size_t n_wanted, std::uint64_t* out) {
    for (std::size_t i = 0; i < n; ++i) {
        std::size_t n_greater = 0;
        for (std::size_t j = 0; j < n; ++j) n_greater += keys[j] > keys[i];
        if (n_greater < n_wanted) out[n_greater] = keys[i];
    }
}

}  // namespace
}  // namespace attncache::ATTNCACHE_LEVEL
