// Layers behind a mutex.
#include "attncache/store.hpp"

#include <mutex>
#include <utility>

#include "system/mutexes.hpp"

namespace attncache {

std::int64_t Store::n_layers() const {
    const std::lock_guard<std::mutex> lock(mutex_of(this));
    return peek_n_layers();
}

Store::LayerPointer Store::layer(std::int64_t at) const {
    const std::lock_guard<std::mutex> lock(mutex_of(this));
    const std::int64_t place = at < 0 ? at + peek_n_layers() : at;
    return place >= 0 && place < peek_n_layers() ? layers_[static_cast<std::size_t>(place)].layer : nullptr;
}

std::vector<Store::LayerPointer> Store::layers() const {
    std::vector<LayerPointer> layers;
    const std::lock_guard<std::mutex> lock(mutex_of(this));
    layers.reserve(layers_.size());
    for (const Sourced& one : layers_) layers.push_back(one.layer);
    return layers;
}

std::vector<Store::Sourced> Store::sourced() const {
    const std::lock_guard<std::mutex> lock(mutex_of(this));
    return layers_;
}

void Store::push(LayerPointer layer, Source source) {
    Sourced pushed{std::move(layer), std::move(source)};
    const std::lock_guard<std::mutex> lock(mutex_of(this));  // released before `pushed`
    layers_.push_back(std::move(pushed));
}

bool Store::put(std::int64_t at, LayerPointer layer, Source source) {
    Sourced put{std::move(layer), std::move(source)};
    const std::lock_guard<std::mutex> lock(mutex_of(this));  // released before `put`, now what stood there
    if (at < 0 || at > peek_n_layers()) return false;
    if (at == peek_n_layers()) {
        layers_.push_back(std::move(put));
    } else {
        std::swap(layers_[static_cast<std::size_t>(at)], put);
    }
    return true;
}

bool Store::replace(const Layer* before, LayerPointer after) {
    const std::lock_guard<std::mutex> lock(mutex_of(this));
    for (Sourced& one : layers_) {
        if (one.layer.get() == before) {
            one.layer.swap(after);
            return true;
        }
    }
    return false;
}

void Store::reserve(std::int64_t n_layers) {
    const std::lock_guard<std::mutex> lock(mutex_of(this));
    const auto n = static_cast<std::size_t>(n_layers);
    if (n > layers_.max_size()) throw std::bad_alloc();
    layers_.reserve(n);
}

void Store::clear() {
    std::vector<Sourced> cleared;
    const std::lock_guard<std::mutex> lock(mutex_of(this));
    layers_.swap(cleared);
}

}  // namespace attncache
