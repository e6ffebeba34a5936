// From scores to weights: exp, tanh, and sums in one fixed order. The same polynomials over the same operations on
// every level, so the same bits.
namespace attncache::ATTNCACHE_LEVEL {
namespace {

/// Lanes of a sum along keys: key i is added to sum i mod 16, and the sixteen are added as a tree.
constexpr std::size_t kSumLanes = 16;

inline float minus_infinity() { return bits_as<float>(0xff800000U); }

/// e^x for x <= 0 with a relative error below 1.3 * 2^-24 (measured over every float); 0 below log(2^-126), where the
/// result would be subnormal; x above 88 counts as 88. e^0 is 1, e^NaN is NaN.
///
/// x = n log 2 + r with |r| <= log(2) / 2; adding 1.5 * 2^23 rounds x / log 2 to the integer n and leaves it in the low
/// bits. The polynomial 1 + r + r^2 P(r) is a weighted minimax fit of e^r (relative error 3.1e-9 before rounding).
inline typename Simd::Vec exponential(typename Simd::Vec x) {
    constexpr float least = -87.33654F;
    x = Simd::min(Simd::set1(88.0F), x);
    const auto shifted = Simd::fma(x, Simd::set1(1.44269502F), Simd::set1(12582912.0F));
    const auto n = Simd::sub(shifted, Simd::set1(12582912.0F));
    auto r = Simd::fma(n, Simd::set1(-0.693147182F), x);  // log 2 in two parts: the first product is exact
    r = Simd::fma(n, Simd::set1(1.90465421e-9F), r);
    auto p = Simd::set1(1.38145395e-3F);
    p = Simd::fma(p, r, Simd::set1(8.36874545e-3F));
    p = Simd::fma(p, r, Simd::set1(4.16683890e-2F));
    p = Simd::fma(p, r, Simd::set1(1.66665211e-1F));
    p = Simd::fma(p, r, Simd::set1(4.99999940e-1F));
    p = Simd::fma(p, r, Simd::set1(1.0F));
    p = Simd::fma(p, r, Simd::set1(1.0F));
    return Simd::if_less(x, Simd::set1(least), Simd::zero(), Simd::times_power_of_two(p, shifted));
}

/// tanh x with a relative error below 2.7 * 2^-24 (measured over every float): an odd polynomial near 0, elsewhere (1 -
/// e) / (1 + e) with e = e^(-2|x|).
inline typename Simd::Vec hyperbolic_tangent(typename Simd::Vec x) {
    const auto size = Simd::abs(x);
    const auto square = Simd::mul(x, x);
    auto p = Simd::set1(-5.70498686e-3F);
    p = Simd::fma(p, square, Simd::set1(2.06390861e-2F));
    p = Simd::fma(p, square, Simd::set1(-5.37397154e-2F));
    p = Simd::fma(p, square, Simd::set1(1.33314416e-1F));
    p = Simd::fma(p, square, Simd::set1(-3.33332807e-1F));
    const auto near_zero = Simd::fma(Simd::mul(p, square), x, x);
    const auto one = Simd::set1(1.0F);
    const auto e = exponential(Simd::mul(size, Simd::set1(-2.0F)));
    const auto elsewhere = Simd::copy_sign(Simd::div(Simd::sub(one, e), Simd::add(one, e)), x);
    return Simd::if_less(size, Simd::set1(0.625F), near_zero, elsewhere);
}

/// items[i] = function(items[i])
template <class Function>
void transform(float* items, std::size_t n, const Function& function) {
    std::size_t i = 0;
    for (; i + Simd::lanes <= n; i += Simd::lanes) Simd::store(function(Simd::load(items + i)), items + i);
    if (i < n) Simd::store_n(function(Simd::load_n(items + i, n - i)), items + i, n - i);
}

inline void softcap(float* scores, std::size_t n, float cap) {
    const auto factor = Simd::set1(cap);
    transform(scores, n, [=](typename Simd::Vec score) {
        return Simd::mul(factor, hyperbolic_tangent(Simd::div(score, factor)));
    });
}

/// The greatest of n scores (a multiple of 16) and the sum of e^(score - greatest). NaN is no greatest, but makes the
/// sum NaN; of nothing but -infinity, the sum is 0.
inline SoftmaxPart softmax_part(const float* scores, std::size_t n) {
    constexpr std::size_t n_vectors = kSumLanes / Simd::lanes;
    typename Simd::Vec vectors[n_vectors];
    float lanes[kSumLanes];
    for (std::size_t v = 0; v < n_vectors; ++v) vectors[v] = Simd::set1(minus_infinity());
    for (std::size_t i = 0; i < n; i += kSumLanes) {
        for (std::size_t v = 0; v < n_vectors; ++v) {
            vectors[v] = Simd::max(Simd::load(scores + i + v * Simd::lanes), vectors[v]);
        }
    }
    for (std::size_t v = 0; v < n_vectors; ++v) Simd::store(vectors[v], lanes + v * Simd::lanes);
    float greatest = lanes[0];
    for (std::size_t lane = 1; lane < kSumLanes; ++lane) greatest = lanes[lane] > greatest ? lanes[lane] : greatest;

    const auto base = Simd::set1(greatest == minus_infinity() ? 0.0F : greatest);
    for (std::size_t v = 0; v < n_vectors; ++v) vectors[v] = Simd::zero();
    for (std::size_t i = 0; i < n; i += kSumLanes) {
        for (std::size_t v = 0; v < n_vectors; ++v) {
            const auto score = Simd::load(scores + i + v * Simd::lanes);
            vectors[v] = Simd::add(vectors[v], exponential(Simd::sub(score, base)));
        }
    }
    for (std::size_t v = 0; v < n_vectors; ++v) Simd::store(vectors[v], lanes + v * Simd::lanes);
    for (std::size_t half = kSumLanes / 2; half > 0; half /= 2) {
        for (std::size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    return {greatest, lanes[0]};
}

/// scores[i] becomes e^(scores[i] - greatest) / sum.
inline void row_weights(float* scores, std::size_t n, SoftmaxPart whole) {
    const auto base = Simd::set1(whole.greatest);
    const auto sum = Simd::set1(whole.sum);
    transform(scores, n, [=](typename Simd::Vec score) { return Simd::div(exponential(Simd::sub(score, base)), sum); });
}

/// scores[i] becomes e^(scores[i] - greatest[i]) / sums[i]: each item belongs to another row.
inline void column_weights(float* scores, std::size_t n, const float* greatest, const float* sums) {
    std::size_t i = 0;
    for (; i + Simd::lanes <= n; i += Simd::lanes) {
        const auto powers = exponential(Simd::sub(Simd::load(scores + i), Simd::load(greatest + i)));
        Simd::store(Simd::div(powers, Simd::load(sums + i)), scores + i);
    }
    if (i < n) {
        const auto powers = exponential(Simd::sub(Simd::load_n(scores + i, n - i), Simd::load_n(greatest + i, n - i)));
        Simd::store_n(Simd::div(powers, Simd::load_n(sums + i, n - i)), scores + i, n - i);
    }
}

}  // namespace
}  // namespace attncache::ATTNCACHE_LEVEL
