// A place where a binding keeps an object of its own for something of the core.
#pragma once

#include <atomic>

namespace attncache {

/// Keeps one object of the binding, such as the Python object that owns a layer's memory for NumPy, and releases it
/// with what it belongs to. Any number of threads may use it.
class Face {
public:
    Face() = default;
    ~Face() {
        if (void* const object = get()) release(object);
    }
    Face(const Face&) = delete;
    Face& operator=(const Face&) = delete;

    /// The object kept, or nullptr.
    void* get() const { return object_.load(std::memory_order_acquire); }
    /// Keeps an object if there is none yet; false, and the object stays the caller's, if there is.
    bool keep(void* object) const {
        void* none = nullptr;
        return object_.compare_exchange_strong(none, object, std::memory_order_acq_rel);
    }

    /// How the binding releases its objects, from any thread. Set once, before the first is kept.
    static inline void (*release)(void* object) = nullptr;

private:
    mutable std::atomic<void*> object_{nullptr};
};

}  // namespace attncache
