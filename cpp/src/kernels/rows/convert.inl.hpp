// Contiguous items from one storage type to another. Exact: one rounding to nearest even where the type narrows.
namespace attncache::ATTNCACHE_LEVEL {
namespace {

template <class From, class To>
void convert_items(const From* from, std::size_t n, To* to) {
    std::size_t i = 0;
    for (; i + Simd::lanes <= n; i += Simd::lanes) Simd::store(Simd::load(from + i), to + i);
    if (i < n) Simd::store_n(Simd::load_n(from + i, n - i), to + i, n - i);
}

template <class From, class To>
void convert(const std::byte* source, std::size_t n, std::byte* destination) {
    convert_items(reinterpret_cast<const From*>(source), n, reinterpret_cast<To*>(destination));
}

/// double -> a 16-bit type: rounding to float first must not round a second time.
template <class To>
void convert_double(const std::byte* source, std::size_t n, std::byte* destination) {
    const auto* from = reinterpret_cast<const double*>(source);
    auto* to = reinterpret_cast<To*>(destination);
    constexpr std::size_t block = 64;
    float odd[block];
    for (std::size_t begin = 0; begin < n; begin += block) {
        const std::size_t length = n - begin < block ? n - begin : block;
        for (std::size_t i = 0; i < length; ++i) odd[i] = round_to_odd(from[begin + i]);
        convert_items(odd, length, to + begin);
    }
}

template <class T>
void widen(const std::byte* row, std::size_t n, float* out) {
    convert_items(reinterpret_cast<const T*>(row), n, out);
}

}  // namespace
}  // namespace attncache::ATTNCACHE_LEVEL
