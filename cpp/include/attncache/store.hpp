// The layers of one cache, in push order.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "attncache/head_mean.hpp"

namespace attncache {

/// Layers and the rule by which their head means are built. Any number of threads may use it; a push becomes visible
/// whole or not at all, and whoever has taken a layer out keeps it whatever happens to the store. A child of fork finds
/// it usable. What a call lets go of it releases last, when it holds nothing: that may run code of a binding.
class Store {
public:
    using LayerPointer = std::shared_ptr<const Layer>;
    /// Whatever a binding says of where a layer comes from; nullptr if it says nothing.
    using Source = std::shared_ptr<const void>;
    struct Sourced {
        LayerPointer layer;
        Source source;
    };

    std::int64_t n_layers() const;
    /// The layer at a place, or nullptr if there is none. A negative place counts from the end, as it is now.
    LayerPointer layer(std::int64_t at) const;
    /// The same without sharing it: for a caller that keeps others from changing the store for as long as it looks.
    const Layer* peek(std::int64_t at) const {
        const std::int64_t place = at < 0 ? at + peek_n_layers() : at;
        return place >= 0 && place < peek_n_layers() ? layers_[static_cast<std::size_t>(place)].layer.get() : nullptr;
    }
    std::int64_t peek_n_layers() const { return static_cast<std::int64_t>(layers_.size()); }
    /// All of them as they are now.
    std::vector<LayerPointer> layers() const;
    /// The same, each with its source.
    std::vector<Sourced> sourced() const;

    /// Appends a layer. Throws std::bad_alloc, and then nothing has changed.
    void push(LayerPointer layer, Source source = nullptr);
    /// Puts a layer at a place that exists, or behind the last; false, and nothing has changed, if there is no such.
    bool put(std::int64_t at, LayerPointer layer, Source source = nullptr);
    /// Puts `after` where `before` stands, with the same source; false if it stands nowhere.
    bool replace(const Layer* before, LayerPointer after);
    /// Room for so many layers. Throws std::bad_alloc.
    void reserve(std::int64_t n_layers);
    void clear();

    IndexPolicy policy() const { return policy_.load(std::memory_order_relaxed); }
    void set_policy(IndexPolicy policy) { policy_.store(policy, std::memory_order_relaxed); }

private:
    std::vector<Sourced> layers_;  // guarded by mutex_of(this)
    std::atomic<IndexPolicy> policy_{IndexPolicy::automatic};
};

}  // namespace attncache
