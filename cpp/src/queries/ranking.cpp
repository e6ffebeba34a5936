// Threshold, collect, sort.
#include "ranking.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <utility>

namespace attncache {
namespace {

/// Up to here, counting how many keys are greater (n * n / lanes compares without a branch) beats a radix sort.
constexpr std::size_t kCounting = 128;

/// From here on, wider digits pay: fewer passes over the keys, longer ones over the counts.
constexpr std::size_t kManyKeys = 1024;

int lowest_bit(std::uint32_t bits) { return std::countr_zero(bits); }
int n_bits_up_to_highest(std::uint32_t bits) { return 32 - std::countl_zero(bits); }

/// Sorts by rank, greatest first; keys of one rank keep their order, which is that of their positions.
/// Only the bits in which the ranks differ are looked at: those of the k heaviest of many lie close together, and
/// widened 16-bit weights have zeros at the end.
void radix_sort(std::vector<std::uint64_t>& keys, std::vector<std::uint64_t>& scratch, std::size_t n) {
    constexpr int kWidest = 11;
    const auto rank = [](std::uint64_t key) { return static_cast<std::uint32_t>(key >> 32); };
    std::uint32_t differing = 0;
    for (std::size_t i = 1; i < n; ++i) differing |= rank(keys[i]) ^ rank(keys[0]);
    if (differing == 0) return;
    const int digit_bits = n < kManyKeys ? 8 : kWidest;
    const std::size_t n_digits = std::size_t{1} << digit_bits;
    for (int shift = lowest_bit(differing); shift < n_bits_up_to_highest(differing); shift += digit_bits) {
        const auto digit = [&](std::uint64_t key) { return (~rank(key) >> shift) & (n_digits - 1); };
        std::uint32_t counts[std::size_t{1} << kWidest];
        std::fill_n(counts, n_digits, 0);
        for (std::size_t i = 0; i < n; ++i) ++counts[digit(keys[i])];
        std::uint32_t begin = 0;
        for (std::size_t d = 0; d < n_digits; ++d) begin += std::exchange(counts[d], begin);
        for (std::size_t i = 0; i < n; ++i) scratch[counts[digit(keys[i])]++] = keys[i];
        keys.swap(scratch);
    }
}

}  // namespace

std::uint64_t Ranking::least_of_greatest(std::size_t n_keys) {
    std::copy(keys_.begin(), at(n_keys), sorted_.begin());
    const auto last = sorted_.begin() + static_cast<std::ptrdiff_t>(k_ - 1);
    std::nth_element(sorted_.begin(), last, sorted_.begin() + static_cast<std::ptrdiff_t>(n_keys), std::greater<>());
    return *last;
}

std::size_t Ranking::collect(const RowKernels& kernels, const std::byte* row, std::size_t n, std::uint32_t least_rank) {
    std::size_t n_keys = 0;
    for (std::size_t begin = 0; begin < n;) {
        const Collected collected =
            kernels.collect(row, begin, n, least_rank, keys_.data() + n_keys, keys_.size() - n_keys);
        begin = collected.end;
        n_keys += collected.n_keys;
        if (begin == n) break;
        const std::uint64_t least = least_of_greatest(n_keys);
        n_keys = static_cast<std::size_t>(
            std::remove_if(keys_.begin(), at(n_keys), [=](std::uint64_t key) { return key < least; }) - keys_.begin());
        least_rank = static_cast<std::uint32_t>(least >> 32) + 1;
    }
    return n_keys;
}

const std::uint64_t* Ranking::sorted(std::size_t n_keys) {
    if (n_keys <= kCounting) {
        kernels_.order(keys_.data(), n_keys, k_, sorted_.data());
        return sorted_.data();
    }
    radix_sort(keys_, sorted_, n_keys);
    return keys_.data();
}

void Ranking::rank(DType dtype, const std::byte* row, std::size_t n, std::int64_t* positions, const std::byte* ahead) {
    if (k_ == 0) return;
    const RowKernels& kernels = kernels_.of(dtype);
    std::size_t n_keys = collect(kernels, row, n, 2 * k_ > n ? 0 : kernels.threshold(row, n, k_, ahead));
    if (n_keys < k_) n_keys = collect(kernels, row, n, 0);  // some of the k are NaN
    const std::uint64_t* const keys = sorted(n_keys);
    for (std::size_t i = 0; i < k_; ++i) {
        positions[i] = static_cast<std::int64_t>(~static_cast<std::uint32_t>(keys[i]));
    }
}

}  // namespace attncache
