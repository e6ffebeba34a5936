// edges: the weights of (query, key) pairs. Each is a cache miss of its own, so addresses are listed first and read in
// one go: many misses are under way at once.
#include "attncache/device.hpp"
#include "lines.hpp"

namespace attncache {
namespace {

constexpr std::size_t kListed = 256;  // addresses in one go: 2 KiB

/// Reads the weights of one plane after another, in the order in which they are added; the last ones when it ends.
class EdgeReader {
public:
    EdgeReader() = default;
    ~EdgeReader() { flush(); }
    EdgeReader(const EdgeReader&) = delete;
    EdgeReader& operator=(const EdgeReader&) = delete;

    /// Where the weights that are added next go, unless some were added before: those are followed by them.
    void begin_at(float* out) {
        if (out_ == nullptr) out_ = out;
    }

    void add(const Plane& plane, std::int64_t query, std::int64_t key) {
        if (&plane.kernels() != kernels_ || !plane.is_stored() || n_ == kListed) flush();
        kernels_ = &plane.kernels();
        if (plane.is_stored()) {
            addresses_[n_++] = plane.address(0, query, key);
        } else {
            add_mean(plane, query, key);
        }
    }

private:
    void flush() {
        if (n_ > 0) kernels_->gather(addresses_, n_, out_);
        out_ += n_;
        n_ = 0;
    }

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
    float* out_ = nullptr;
    const std::byte* addresses_[kListed];
    float weights_[kListed];
};

/// The weights of pairs in layers in memory.
void read_edges(const Selection& selection, std::span<const std::int64_t> from_positions,
                std::span<const std::int64_t> to_positions, float* out) {
    const auto n_to = static_cast<std::int64_t>(to_positions.size());
    const auto n_pairs = static_cast<std::int64_t>(from_positions.size()) * n_to;
    for_each_plane(selection, n_pairs, bytes_of_line(selection, 1, kCacheLine), [&] {
        return [&, reader = EdgeReader()](const Plane& plane, std::int64_t number, std::int64_t begin,
                                          std::int64_t end) mutable {
            reader.begin_at(out + number * n_pairs + begin);
            // Counted along: a division for each pair would cost more than reading it.
            auto from = static_cast<std::size_t>(begin / n_to);
            auto to = static_cast<std::size_t>(begin % n_to);
            for (std::int64_t pair = begin; pair < end; ++pair) {
                reader.add(plane, from_positions[from], to_positions[to]);
                if (++to == to_positions.size()) {
                    to = 0;
                    ++from;
                }
            }
        };
    });
}

}  // namespace

void edges(const Selection& asked, std::span<const std::int64_t> from_positions,
           std::span<const std::int64_t> to_positions, const Out& out) {
    if (const Device* const device = asked.device()) return device->edges(asked, from_positions, to_positions, out);
    if (asked.n_planes() == 0 || from_positions.empty() || to_positions.empty()) return;
    const AskedLines lines{Direction::from, from_positions, to_positions};
    const IndexedSelection selection(asked, lines);
    const auto n_to = static_cast<std::int64_t>(to_positions.size());
    for_each_part(
        *selection, lines.n(),
        [&](const Selection& part, std::int64_t first) {
            read_edges(part, from_positions, to_positions, out.data + first * n_to);
        },
        [&](const Selection& part, std::int64_t first) { write_computed(part, lines, out.data + first * n_to); });
}

}  // namespace attncache
