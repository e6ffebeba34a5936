// The slots of a layer.
#include "attncache/derived.hpp"

#include <utility>

#include "../system/mutexes.hpp"

namespace attncache {

std::shared_ptr<const Derived> Slot::get() const {
    const std::lock_guard<std::mutex> lock(mutex_of(this));
    return kept_;
}

bool Slot::begin_building(std::int64_t query_bytes, std::int64_t build_bytes) {
    const std::lock_guard<std::mutex> lock(mutex_of(this));
    if (kept_ != nullptr || is_building_ || !rule_.pays(query_bytes, build_bytes)) return false;
    return is_building_ = true;
}

void Slot::put(std::shared_ptr<const Derived> built) {
    const std::lock_guard<std::mutex> lock(mutex_of(this));
    is_building_ = false;
    rule_.reset();
    kept_.swap(built);  // what was there before is released after the lock is
    peeked_.store(kept_.get(), std::memory_order_release);
}

void Slot::drop() {
    std::shared_ptr<const Derived> dropped;
    const std::lock_guard<std::mutex> lock(mutex_of(this));
    rule_.reset();
    kept_.swap(dropped);
    peeked_.store(nullptr, std::memory_order_release);
}

}  // namespace attncache
