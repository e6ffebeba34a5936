// Rows of a matrix turned into a panel of columns, widened to float: what `scores` multiplies. Exact.
//
// Eight 16-bit items of a row are one 128-bit block of a register, whose other blocks hold rows further on; three
// rounds of interleaving turn eight such registers into eight items of all those rows: 0.1 shuffles for each item on
// AVX-512.
namespace attncache::ATTNCACHE_LEVEL {
namespace {

/// out[item * kPanelRows + row] for 8 items of S::bits_lanes rows.
template <class S, class T>
void turn_16bit(const std::byte* rows, std::int64_t stride, float* out) {
    const auto row = [=](std::int64_t r) { return S::load_blocks(rows + r * stride, 8 * stride); };
    const auto r0 = row(0), r1 = row(1), r2 = row(2), r3 = row(3), r4 = row(4), r5 = row(5), r6 = row(6), r7 = row(7);
    const auto a0 = S::interleave_lower16(r0, r1), a1 = S::interleave_lower16(r2, r3);
    const auto a2 = S::interleave_lower16(r4, r5), a3 = S::interleave_lower16(r6, r7);
    const auto b0 = S::interleave_upper16(r0, r1), b1 = S::interleave_upper16(r2, r3);
    const auto b2 = S::interleave_upper16(r4, r5), b3 = S::interleave_upper16(r6, r7);
    const auto c0 = S::interleave_lower32(a0, a1), c1 = S::interleave_lower32(a2, a3);
    const auto d0 = S::interleave_upper32(a0, a1), d1 = S::interleave_upper32(a2, a3);
    const auto e0 = S::interleave_lower32(b0, b1), e1 = S::interleave_lower32(b2, b3);
    const auto f0 = S::interleave_upper32(b0, b1), f1 = S::interleave_upper32(b2, b3);
    S::store_widened(S::interleave_lower64(c0, c1), T{}, out);
    S::store_widened(S::interleave_upper64(c0, c1), T{}, out + kPanelRows);
    S::store_widened(S::interleave_lower64(d0, d1), T{}, out + 2 * kPanelRows);
    S::store_widened(S::interleave_upper64(d0, d1), T{}, out + 3 * kPanelRows);
    S::store_widened(S::interleave_lower64(e0, e1), T{}, out + 4 * kPanelRows);
    S::store_widened(S::interleave_upper64(e0, e1), T{}, out + 5 * kPanelRows);
    S::store_widened(S::interleave_lower64(f0, f1), T{}, out + 6 * kPanelRows);
    S::store_widened(S::interleave_upper64(f0, f1), T{}, out + 7 * kPanelRows);
}

/// out[item * kPanelRows + row] for 4 items of S::lanes rows.
template <class S>
void turn_32bit(const std::byte* rows, std::int64_t stride, float* out) {
    const auto row = [=](std::int64_t r) { return S::load_blocks(rows + r * stride, 4 * stride); };
    const auto r0 = row(0), r1 = row(1), r2 = row(2), r3 = row(3);
    const auto a0 = S::interleave_lower32(r0, r1), a1 = S::interleave_lower32(r2, r3);
    const auto b0 = S::interleave_upper32(r0, r1), b1 = S::interleave_upper32(r2, r3);
    S::store_widened(S::interleave_lower64(a0, a1), float{}, out);
    S::store_widened(S::interleave_upper64(a0, a1), float{}, out + kPanelRows);
    S::store_widened(S::interleave_lower64(b0, b1), float{}, out + 2 * kPanelRows);
    S::store_widened(S::interleave_upper64(b0, b1), float{}, out + 3 * kPanelRows);
}

/// Rows are read a few bytes each, in turn, which the hardware takes for no stream: the panel after this one is asked
/// for in the order in which it lies in memory, a share of it with every 8 items.
template <class S>
void prefetch_share(const std::byte* rows, std::int64_t stride, std::size_t item, std::size_t n_items) {
    constexpr std::size_t line = 64;
    const std::size_t n_bytes = kPanelRows * static_cast<std::size_t>(stride);
    const std::byte* const next = rows + n_bytes;
    const std::size_t share = n_bytes / n_items;
    for (std::size_t byte = share * item; byte < share * (item + 8); byte += line) S::prefetch(next + byte);
}

template <class S, class T>
void turn(const std::byte* rows, std::int64_t stride, std::size_t n_items, float* out) {
    if constexpr (S::lanes == 1) {
        for (std::size_t row = 0; row < kPanelRows; ++row, rows += stride) {
            const auto* items = reinterpret_cast<const T*>(rows);
            for (std::size_t i = 0; i < n_items; ++i) out[i * kPanelRows + row] = widen_item(items[i]);
        }
    } else if constexpr (sizeof(T) == 2) {
        for (std::size_t i = 0; i < n_items; i += 8) {
            prefetch_share<S>(rows, stride, i, n_items);
            for (std::size_t row = 0; row < kPanelRows; row += S::bits_lanes) {
                const auto* const from = rows + static_cast<std::int64_t>(row) * stride + i * sizeof(T);
                turn_16bit<S, T>(from, stride, out + i * kPanelRows + row);
            }
        }
    } else {
        for (std::size_t i = 0; i < n_items; i += 4) {
            if (i % 8 == 0) prefetch_share<S>(rows, stride, i, n_items);
            for (std::size_t row = 0; row < kPanelRows; row += S::lanes) {
                const auto* const from = rows + static_cast<std::int64_t>(row) * stride + i * sizeof(T);
                turn_32bit<S>(from, stride, out + i * kPanelRows + row);
            }
        }
    }
}

template <class T>
void panel(const std::byte* rows, std::int64_t stride, std::size_t n_items, float* out) {
    turn<Simd, T>(rows, stride, n_items, out);
}

}  // namespace
}  // namespace attncache::ATTNCACHE_LEVEL
