// When a query builds an index, and who owns it.
#include <exception>

#include "arrays.hpp"
#include "store.hpp"

namespace attncache::python {
namespace {

void build(const std::shared_ptr<StoredLayer>& layer, std::int64_t batch, std::int64_t build_bytes) {
    const auto at = static_cast<std::size_t>(batch);
    layer->indexes[at].is_building = true;
    HeadMeanIndex index;
    try {
        const ReleaseGilForLargeWork release(build_bytes);
        index = build_index(layer->pattern(), batch);
    } catch (const py::error_already_set&) {  // Ctrl-C
        layer->indexes[at].is_building = false;
        throw;
    } catch (const std::exception&) {  // no memory, most likely, for what nobody asked for: go on without it
    }
    BatchIndex& place = layer->indexes[at];
    place.is_building = false;
    place.rule.reset();
    if (index.is_built()) set_index(place, std::move(index));
}

}  // namespace

void set_index(BatchIndex& place, HeadMeanIndex index) {
    place.owner = capsule_of(index.memory);
    place.index = std::move(index);
}

const BatchIndex* index_for_query(const Store& store, const std::shared_ptr<StoredLayer>& layer, std::int64_t batch,
                                  std::int64_t query_bytes) {
    BatchIndex& place = layer->indexes[static_cast<std::size_t>(batch)];
    if (place.index.is_built()) return &place;
    if (layer->is_factored()) return nullptr;           // an index would be the square that such a layer avoids
    const bool has_heads = layer->shape().n_heads > 0;  // the mean of none is NaN: nothing to keep
    if (store.policy == IndexPolicy::off || place.is_building || !has_heads) return nullptr;
    const std::int64_t build_bytes = index_costs(layer->pattern()).build;
    if (!place.rule.pays(query_bytes, build_bytes)) return nullptr;
    build(layer, batch, build_bytes);
    return place.index.is_built() ? &place : nullptr;
}

}  // namespace attncache::python
