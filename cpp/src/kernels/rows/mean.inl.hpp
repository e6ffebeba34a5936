// The mean of several rows or columns. Exact: each output is summed in float from +0, in the order of the rows, then
// divided by their number. Lanes never meet, so the width of a level cannot change a bit.
namespace attncache::ATTNCACHE_LEVEL {
namespace {

/// Sums stay in the first cache level (4 KiB) while each row is read as one long stream.
constexpr std::size_t kMeanBlock = 1024;

/// sums[i] += rows[0][begin + i], then rows[1][begin + i], ...: `kRows` rows for one load and store of the sum.
template <class T, std::size_t kRows>
void add_rows(const std::byte* const* rows, std::size_t begin, std::size_t n, float* sums) {
    const auto from = [&](std::size_t row) { return reinterpret_cast<const T*>(rows[row]) + begin; };
    std::size_t i = 0;
    for (; i + Simd::lanes <= n; i += Simd::lanes) {
        auto sum = Simd::load(sums + i);
        for (std::size_t row = 0; row < kRows; ++row) sum = Simd::add(sum, Simd::load(from(row) + i));
        Simd::store(sum, sums + i);
    }
    if (i < n) {
        auto sum = Simd::load_n(sums + i, n - i);
        for (std::size_t row = 0; row < kRows; ++row) sum = Simd::add(sum, Simd::load_n(from(row) + i, n - i));
        Simd::store_n(sum, sums + i, n - i);
    }
}

/// The hardware's own prefetching begins anew with each row, after a few misses: these lines spare it the wait.
inline void prefetch_start(const void* row) {
    constexpr std::size_t line = 64;
    for (std::size_t i = 0; i < 4; ++i) Simd::prefetch(static_cast<const std::byte*>(row) + i * line);
}

inline void divide(float* sums, std::size_t n, std::size_t count) {
    const auto divisor = Simd::set1(static_cast<float>(count));
    std::size_t i = 0;
    for (; i + Simd::lanes <= n; i += Simd::lanes) Simd::store(Simd::div(Simd::load(sums + i), divisor), sums + i);
    if (i < n) Simd::store_n(Simd::div(Simd::load_n(sums + i, n - i), divisor), sums + i, n - i);
}

template <class T>
void mean(const std::byte* const* rows, std::size_t n_rows, std::size_t n, float* out) {
    for (std::size_t begin = 0; begin < n; begin += kMeanBlock) {
        const std::size_t length = n - begin < kMeanBlock ? n - begin : kMeanBlock;
        float* sums = out + begin;
        std::memset(sums, 0, length * sizeof(float));
        std::size_t row = 0;
        for (; row + 4 <= n_rows; row += 4) {
            for (std::size_t next = row + 4; next < row + 8 && next < n_rows; ++next) {
                prefetch_start(reinterpret_cast<const T*>(rows[next]) + begin);
            }
            add_rows<T, 4>(rows + row, begin, length, sums);
        }
        for (; row < n_rows; ++row) add_rows<T, 1>(rows + row, begin, length, sums);
        divide(sums, length, n_rows);
    }
}

template <class T>
void mean_column(const std::byte* const* firsts, std::size_t n_columns, std::int64_t stride, std::size_t n,
                 float* out) {
    float items[kGatherBlock];
    const std::byte* const rows[1] = {reinterpret_cast<const std::byte*>(items)};
    for (std::size_t begin = 0; begin < n; begin += kGatherBlock) {
        const std::size_t length = n - begin < kGatherBlock ? n - begin : kGatherBlock;
        float* sums = out + begin;
        std::memset(sums, 0, length * sizeof(float));
        for (std::size_t c = 0; c < n_columns; ++c) {
            column<T>(firsts[c] + static_cast<std::int64_t>(begin) * stride, stride, length, items);
            add_rows<float, 1>(rows, 0, length, sums);
        }
        divide(sums, length, n_columns);
    }
}

}  // namespace
}  // namespace attncache::ATTNCACHE_LEVEL
