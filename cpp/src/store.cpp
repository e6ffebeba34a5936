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
    return at >= 0 && at < peek_n_layers() ? layers_[static_cast<std::size_t>(at)] : nullptr;
}

std::vector<Store::LayerPointer> Store::layers() const {
    const std::lock_guard<std::mutex> lock(mutex_of(this));
    return layers_;
}

void Store::push(LayerPointer layer) {
    const std::lock_guard<std::mutex> lock(mutex_of(this));
    layers_.push_back(std::move(layer));
}

bool Store::put(std::int64_t at, LayerPointer layer) {
    const std::lock_guard<std::mutex> lock(mutex_of(this));  // released before `layer`, now the one that stood there
    if (at < 0 || at > peek_n_layers()) return false;
    if (at == peek_n_layers()) {
        layers_.push_back(std::move(layer));
    } else {
        layers_[static_cast<std::size_t>(at)].swap(layer);
    }
    return true;
}

bool Store::replace(const Layer* before, LayerPointer after) {
    const std::lock_guard<std::mutex> lock(mutex_of(this));
    for (LayerPointer& layer : layers_) {
        if (layer.get() == before) {
            layer.swap(after);
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
    std::vector<LayerPointer> cleared;
    const std::lock_guard<std::mutex> lock(mutex_of(this));
    layers_.swap(cleared);
}

}  // namespace attncache
