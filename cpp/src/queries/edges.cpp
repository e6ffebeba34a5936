// edges: the weights of (query, key) pairs. Each is a cache miss of its own, so addresses are listed first and read in
// one go: many misses are under way at once.
#include "../parallel.hpp"
#include "by_layer.hpp"
#include "plane.hpp"

namespace attncache {
namespace {

constexpr std::int64_t kCacheLine = 64;  // what reading one stray item costs in bytes
constexpr std::size_t kListed = 256;     // addresses in one go: 2 KiB

/// Reads the weights of one plane after another, in the order in which they are added.
class EdgeReader {
public:
    explicit EdgeReader(float* out) : out_(out) {}

    void add(const Plane& plane, std::int64_t query, std::int64_t key) {
        if (&plane.kernels() != kernels_ || !plane.is_stored() || n_ == kListed) flush();
        kernels_ = &plane.kernels();
        if (plane.is_stored()) {
            addresses_[n_++] = plane.address(0, query, key);
        } else {
            add_mean(plane, query, key);
        }
    }

    void flush() {
        if (n_ > 0) kernels_->gather(addresses_, n_, out_);
        out_ += n_;
        n_ = 0;
    }

private:
    /// The mean over heads, summed from +0 in their order.
    void add_mean(const Plane& plane, std::int64_t query, std::int64_t key) {
        float sum = 0;
        for (std::size_t head = 0; head < plane.n_addresses();) {
            const std::size_t n = std::min(kListed, plane.n_addresses() - head);
            for (std::size_t i = 0; i < n; ++i) addresses_[i] = plane.address(head + i, query, key);
            kernels_->gather(addresses_, n, weights_);
            for (std::size_t i = 0; i < n; ++i) sum += weights_[i];
            head += n;
        }
        *out_++ = sum / static_cast<float>(plane.n_addresses());
    }

    const RowKernels* kernels_ = nullptr;
    std::size_t n_ = 0;
    float* out_;
    const std::byte* addresses_[kListed];
    float weights_[kListed];
};

}  // namespace

void edges(const Selection& selection, std::span<const std::int64_t> from_positions,
           std::span<const std::int64_t> to_positions, float* out) {
    const auto n_to = static_cast<std::int64_t>(to_positions.size());
    const auto n_pairs = static_cast<std::int64_t>(from_positions.size()) * n_to;
    if (selection.n_planes() == 0 || n_pairs == 0) return;
    if (!selection.factored.empty()) {
        const std::int64_t stride = lines_per_layer(selection, from_positions.size()) * n_to;
        return for_each_layer(
            selection,
            [&](const FactoredSelection& one, std::int64_t i) {
                factored_edges(one, from_positions, to_positions, out + i * stride);
            },
            [&](const Selection& one, std::int64_t i) { edges(one, from_positions, to_positions, out + i * stride); });
    }
    const auto n_results = static_cast<std::int64_t>(selection.n_planes()) * n_pairs;
    parallel_for(n_results, bytes_per_line(selection, 1, kCacheLine), [&](std::int64_t begin, std::int64_t end) {
        EdgeReader reader(out + begin);
        for_each_plane(selection, begin, end, n_pairs, [&](const Plane& plane, std::int64_t first, std::int64_t last) {
            // Counted along: a division for each pair would cost more than reading it.
            auto from = static_cast<std::size_t>(first % n_pairs / n_to);
            auto to = static_cast<std::size_t>(first % n_to);
            for (std::int64_t r = first; r < last; ++r) {
                reader.add(plane, from_positions[from], to_positions[to]);
                if (++to == to_positions.size()) {
                    to = 0;
                    ++from;
                }
            }
        });
        reader.flush();
    });
}

}  // namespace attncache
