// A rank that at least k items of a row reach, and not many more: where the candidates of a top-k begin. The rank only
// decides how much is looked at twice, so levels may find different ones.
//
// The row is split into groups (item i belongs to group i mod kGroups) and the greatest of each group is kept: if k
// groups have a greatest item of at least t, then k items are at least t. A bisection over the bits of weights, whose
// order is that of the numbers, finds the greatest such t: at most 32 counts over a few hundred bytes. For larger k,
// where the groups are too few, it counts over the row itself.
namespace attncache::ATTNCACHE_LEVEL {
namespace {

/// More candidates than k that are accepted to end a bisection early: sorting them costs less than another count.
inline std::size_t enough(std::size_t k) { return k + k / 4 + 2; }

/// The greatest value v in [least, beyond) that the bisection finds with count(v) >= k, given count(least) >= k and
/// count(beyond) < k.
template <class Count>
std::uint32_t bisect(std::uint32_t least, std::uint32_t beyond, std::size_t k, const Count& count) {
    while (beyond - least > 1) {
        const std::uint32_t middle = least + (beyond - least) / 2;
        const std::size_t n_reached = count(middle);
        const bool too_few = n_reached < k;  // half of the time: no branch that could be mispredicted
        beyond = too_few ? middle : beyond;
        least = too_few ? least : middle;
        if (!too_few & (n_reached <= enough(k))) break;
    }
    return least;
}

/// How many bits are set; compilers make one instruction of it where the level has that.
inline std::size_t n_set(std::uint32_t bits) {
    bits -= (bits >> 1) & 0x55555555U;
    bits = (bits & 0x33333333U) + ((bits >> 2) & 0x33333333U);
    return (((bits + (bits >> 4)) & 0x0f0f0f0fU) * 0x01010101U) >> 24;
}

template <class T>
std::size_t n_reaching(const T* row, std::size_t n, float least) {
    const auto bound = Simd::set1(least);
    std::size_t n_reached = 0;
    const std::size_t n_whole = n - n % Simd::lanes;
    for (std::size_t i = 0; i < n_whole; i += Simd::lanes) n_reached += n_set(Simd::ge(Simd::load(row + i), bound));
    for (std::size_t i = n_whole; i < n; ++i) n_reached += widen_item(row[i]) >= least;
    return n_reached;
}

inline std::size_t n_reaching_bits(const std::uint16_t* row, std::size_t n, std::uint16_t least) {
    const auto bound = Simd::set1_bits(least);
    std::size_t n_reached = 0;
    const std::size_t n_whole = n - n % Simd::bits_lanes;
    for (std::size_t i = 0; i < n_whole; i += Simd::bits_lanes) {
        n_reached += n_set(Simd::ge_bits(Simd::load_bits(row + i), bound));
    }
    for (std::size_t i = n_whole; i < n; ++i) n_reached += row[i] >= least;
    return n_reached;
}

/// Asks for the cache lines of n items.
template <class T>
void prefetch_items(const T* items, std::size_t n) {
    constexpr std::size_t line = 64;
    for (std::size_t byte = 0; byte < n * sizeof(T); byte += line) {
        Simd::prefetch(reinterpret_cast<const std::byte*>(items) + byte);
    }
}

/// Of floats, or of 16-bit weights widened: any weights, NaN left out.
template <class T>
std::uint32_t threshold_of_floats(const T* row, std::size_t n, std::size_t k, const T* ahead) {
    constexpr std::size_t step = 4 * Simd::lanes;  // also the number of groups
    const auto lightest = Simd::set1(weight_of_rank(kRankOfMinusInfinity));
    auto max0 = lightest, max1 = lightest, max2 = lightest, max3 = lightest;
    std::size_t i = 0;
    for (; i + step <= n; i += step) {
        prefetch_items(ahead + i, step);
        max0 = Simd::max(Simd::load(row + i), max0);
        max1 = Simd::max(Simd::load(row + i + Simd::lanes), max1);
        max2 = Simd::max(Simd::load(row + i + 2 * Simd::lanes), max2);
        max3 = Simd::max(Simd::load(row + i + 3 * Simd::lanes), max3);
    }
    float greatest[step];
    Simd::store(max0, greatest);
    Simd::store(max1, greatest + Simd::lanes);
    Simd::store(max2, greatest + 2 * Simd::lanes);
    Simd::store(max3, greatest + 3 * Simd::lanes);
    for (std::size_t group = 0; i < n; ++i, ++group) {
        const float weight = widen_item(row[i]);
        if (weight > greatest[group]) greatest[group] = weight;
    }
    float heaviest = greatest[0];
    float lightest_group = greatest[0];
    for (const float weight : greatest) {
        heaviest = weight > heaviest ? weight : heaviest;
        lightest_group = weight < lightest_group ? weight : lightest_group;
    }
    // Every group reaches the lightest one's greatest: a close lower end, if the groups are enough.
    const std::uint32_t least = k <= step && n >= step ? rank_of(lightest_group) : kRankOfMinusInfinity;
    const bool by_groups = 4 * k <= step && 2 * step <= n;
    return bisect(least, rank_of(heaviest) + 1, k, [&](std::uint32_t rank) {
        const float bound = weight_of_rank(rank);
        return by_groups ? n_reaching(greatest, step, bound) : n_reaching(row, n, bound);
    });
}

/// Of 16-bit weights as they are stored, if none is negative or NaN; 0 otherwise.
template <class T>
std::uint32_t threshold_of_bits(const T* items, std::size_t n, std::size_t k, const T* ahead) {
    constexpr std::size_t step = 4 * Simd::bits_lanes;
    const auto* row = reinterpret_cast<const std::uint16_t*>(items);
    auto max0 = Simd::set1_bits(0), max1 = max0, max2 = max0, max3 = max0;
    std::size_t i = 0;
    for (; i + step <= n; i += step) {
        prefetch_items(ahead + i, step);
        max0 = Simd::max_bits(Simd::load_bits(row + i), max0);
        max1 = Simd::max_bits(Simd::load_bits(row + i + Simd::bits_lanes), max1);
        max2 = Simd::max_bits(Simd::load_bits(row + i + 2 * Simd::bits_lanes), max2);
        max3 = Simd::max_bits(Simd::load_bits(row + i + 3 * Simd::bits_lanes), max3);
    }
    std::uint16_t greatest[step];
    Simd::store_bits(max0, greatest);
    Simd::store_bits(max1, greatest + Simd::bits_lanes);
    Simd::store_bits(max2, greatest + 2 * Simd::bits_lanes);
    Simd::store_bits(max3, greatest + 3 * Simd::bits_lanes);
    for (std::size_t group = 0; i < n; ++i, ++group)
        greatest[group] = row[i] > greatest[group] ? row[i] : greatest[group];
    std::uint16_t heaviest = 0;
    std::uint16_t lightest_group = 0xffff;
    for (const std::uint16_t bits : greatest) {
        heaviest = bits > heaviest ? bits : heaviest;
        lightest_group = bits < lightest_group ? bits : lightest_group;
    }
    if (heaviest > infinity_bits(T{})) return 0;
    const std::uint32_t least = k <= step && n >= step ? lightest_group : 0;
    const bool by_groups = 4 * k <= step && 2 * step <= n;
    const std::uint32_t bits = bisect(least, heaviest + 1U, k, [&](std::uint32_t reached) {
        const auto bound = static_cast<std::uint16_t>(reached);
        return by_groups ? n_reaching_bits(greatest, step, bound) : n_reaching_bits(row, n, bound);
    });
    return rank_of(widen_item(T{static_cast<std::uint16_t>(bits)}));
}

template <class T>
std::uint32_t threshold(const std::byte* row, std::size_t n, std::size_t k, const std::byte* ahead) {
    const auto* items = reinterpret_cast<const T*>(row);
    const auto* items_ahead = reinterpret_cast<const T*>(ahead);
    if constexpr (sizeof(T) == 2) {
        if (const std::uint32_t rank = threshold_of_bits(items, n, k, items_ahead)) return rank;
    }
    return threshold_of_floats(items, n, k, items_ahead);
}

}  // namespace
}  // namespace attncache::ATTNCACHE_LEVEL
