// What a thread of rows.cu and columns.cu does: the mean over the heads of a line at several places, with the reads of
// several heads under way before the first is added.
#pragma once

#include "items.cuh"
#include "selection.cuh"

namespace attncache::cuda {

/// kCount neighbouring items of head 0 that a thread owns.
template <class Item, int kCount>
struct Place {
    const Item* items;
    bool is_inside;  // otherwise nothing is read there
};

/// Means over the heads of a line. kHeadsAhead: of which the items are read before they are added; 1: there is one.
template <int kHeadsAhead, class Item, int kCount, int kPlaces>
__device__ inline void read_means(const Selection& selection, const Line& line,
                                  const Place<Item, kCount> (&places)[kPlaces], float (&means)[kPlaces][kCount]) {
    const std::int64_t n_heads = kHeadsAhead == 1 ? 1 : line.n_heads;
    const std::int64_t head_stride = line.layer->head_stride;
#pragma unroll
    for (int p = 0; p < kPlaces; ++p) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) means[p][i] = selection.empty_sum;
    }
#pragma unroll 1
    for (std::int64_t first = 0; first < n_heads; first += kHeadsAhead) {
        std::int64_t offsets[kHeadsAhead];
#pragma unroll
        for (int h = 0; h < kHeadsAhead; ++h)
            offsets[h] = first + h < n_heads ? line.heads[first + h] * head_stride : 0;
        Stored<Item, kCount> stored[kHeadsAhead][kPlaces];
#pragma unroll
        for (int h = 0; h < kHeadsAhead; ++h) {
#pragma unroll
            for (int p = 0; p < kPlaces; ++p) {
                stored[h][p] = Stored<Item, kCount>::nothing();
                if (first + h >= n_heads || !places[p].is_inside) continue;
                const auto* const head = reinterpret_cast<const std::byte*>(places[p].items) + offsets[h];
                stored[h][p] = stored_at<kCount>(reinterpret_cast<const Item*>(head));
            }
        }
#pragma unroll
        for (int h = 0; h < kHeadsAhead; ++h) {
#pragma unroll
            for (int p = 0; p < kPlaces; ++p) {
                float weights[kCount];
                widen(stored[h][p], weights);
#pragma unroll
                for (int i = 0; i < kCount; ++i) means[p][i] = with_head(means[p][i], weights[i]);
            }
        }
    }
    if constexpr (kHeadsAhead > 1) {  // x / 1 is x
#pragma unroll
        for (int p = 0; p < kPlaces; ++p) {
#pragma unroll
            for (int i = 0; i < kCount; ++i) means[p][i] = mean_of(means[p][i], line.n_heads);
        }
    }
}

}  // namespace attncache::cuda
