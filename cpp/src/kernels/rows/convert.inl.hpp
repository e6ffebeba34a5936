// Contiguous items from one storage type to another. Exact: one rounding to nearest even where the type narrows, and
// the same bytes where it stays.
namespace attncache::ATTNCACHE_LEVEL {
namespace {

template <class From, class To>
void convert_items(const From* from, std::size_t n, To* to) {
    std::size_t i = 0;
    for (; i + Simd::lanes <= n; i += Simd::lanes) Simd::store(Simd::load(from + i), to + i);
    if (i < n) Simd::store_n(Simd::load_n(from + i, n - i), to + i, n - i);
}

/// double -> a 16-bit type: rounding to float first must not round a second time.
template <class To>
void convert_items(const double* from, std::size_t n, To* to) {
    constexpr std::size_t block = 64;
    float odd[block];
    for (std::size_t begin = 0; begin < n; begin += block) {
        const std::size_t length = n - begin < block ? n - begin : block;
        for (std::size_t i = 0; i < length; ++i) odd[i] = round_to_odd(from[begin + i]);
        convert_items(odd, length, to + begin);
    }
}

inline void convert_items(const double* from, std::size_t n, float* to) {
    std::size_t i = 0;
    for (; i + Simd::lanes <= n; i += Simd::lanes) Simd::store(Simd::load(from + i), to + i);
    if (i < n) Simd::store_n(Simd::load_n(from + i, n - i), to + i, n - i);
}

template <class From, class To>
void convert(const std::byte* source, std::size_t n, std::byte* destination) {
    convert_items(reinterpret_cast<const From*>(source), n, reinterpret_cast<To*>(destination));
}

template <class T>
void copy(const std::byte* source, std::size_t n, std::byte* destination) {
    if (n > 0) std::memcpy(destination, source, n * sizeof(T));  // of nothing, source may be null
}

/// The same, past the caches: `convert_block` makes cache-sized pieces, which are then written in whole cache lines
/// that are not read first. The pieces begin where the destination is aligned.
template <class To, class ConvertBlock>
void stream_blocks(const ConvertBlock& convert_block, std::size_t n, To* to) {
    constexpr std::size_t line = 64;
    constexpr std::size_t block = 1024;
    alignas(line) To items[block];
    const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(to) % line / sizeof(To);
    std::size_t begin = misaligned == 0 ? 0 : line / sizeof(To) - misaligned;
    if (begin > n) begin = n;
    convert_block(0, begin, to);
    for (; begin + block <= n; begin += block) {
        convert_block(begin, block, items);
        for (std::size_t byte = 0; byte < sizeof items; byte += line) {
            Simd::stream_line(reinterpret_cast<const std::byte*>(items) + byte,
                              reinterpret_cast<std::byte*>(to + begin) + byte);
        }
    }
    convert_block(begin, n - begin, to + begin);
    Simd::finish_streams();
}

template <class From, class To>
void convert_streamed(const std::byte* source, std::size_t n, std::byte* destination) {
    const auto* from = reinterpret_cast<const From*>(source);
    stream_blocks([&](std::size_t begin, std::size_t length, To* to) { convert_items(from + begin, length, to); }, n,
                  reinterpret_cast<To*>(destination));
}

template <class T>
void copy_streamed(const std::byte* source, std::size_t n, std::byte* destination) {
    const auto* from = reinterpret_cast<const T*>(source);
    stream_blocks(
        [&](std::size_t begin, std::size_t length, T* to) { std::memcpy(to, from + begin, length * sizeof(T)); }, n,
        reinterpret_cast<T*>(destination));
}

template <class T>
void widen(const std::byte* row, std::size_t n, float* out) {
    convert_items(reinterpret_cast<const T*>(row), n, out);
}

}  // namespace
}  // namespace attncache::ATTNCACHE_LEVEL
