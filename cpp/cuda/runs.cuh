// Runs of layers: rows.cu and columns.cu launch kernels that know the dtype of their items, so one launch for each
// run of neighbouring layers that are stored alike.
#pragma once

#include "items.cuh"
#include "selection.cuh"

namespace attncache::cuda {

/// Neighbouring layers of one dtype, all or none of which can be read 16 bytes at a time.
struct Run {
    std::int64_t first, n_layers;
    bool is_wide;
};

/// Calls work(Item{}, run) for each run of a selection's layers, in their order.
template <class Work>
void for_each_run(const attncache_cuda_selection& selection, const Work& work) {
    for (std::int64_t begin = 0, end = 0; begin < selection.n_layers; begin = end) {
        const Layer first = layer_of(selection.layers[begin]);
        const auto is_alike = [&](const Layer& layer) {
            return layer.dtype == first.dtype && layer.is_wide == first.is_wide;
        };
        while (end < selection.n_layers && is_alike(layer_of(selection.layers[end]))) ++end;
        const Run run{begin, end - begin, first.is_wide};
        switch (first.dtype) {
            case DType::float16: work(half{}, run); break;
            case DType::bfloat16: work(bfloat16{}, run); break;
            default: work(0.0F, run);
        }
    }
}

/// The part of a selection that a run is.
inline Selection part_of(Selection selection, const Run& run) {
    selection.layers += run.first;
    return selection;
}

}  // namespace attncache::cuda
