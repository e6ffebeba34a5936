// What is derived from a layer and kept with it: a slot for each kind and batch item, filled at most once at a time,
// counted, and emptied at will.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "attncache/face.hpp"

namespace attncache {

/// The kinds of what is derived. A new one is added here, beside its cost in `Costs`, and to the schema of files.
enum class Derivation : std::uint8_t { head_mean };
constexpr std::size_t kDerivations = 1;

/// Something derived from one batch item of a layer. Never changes once made.
struct Derived {
    std::int64_t n_bytes = 0;
    std::shared_ptr<const void> memory;
    Face owner;  // what a binding keeps as the owner of views of `memory`

    virtual ~Derived() = default;
};

/// When to build what nobody asked for.
///
/// Every query that it could answer adds what it costs without it; it is built as soon as this sum, with the query at
/// hand, reaches the cost of building. This is the ski-rental rule. Let B be the cost of building and D that of all
/// queries answered directly. In hindsight the better choice costs min(D, B) (answers from what was built count as
/// free). While D < B nothing is built and the rule costs D, the optimum. Otherwise it has spent less than B on direct
/// answers, then B: less than twice the optimum, however the queries come. Costs are bytes moved, as all of them are
/// bound by memory; a stray item costs its cache line.
class BuildRule {
public:
    /// Counts a query; true if it is time to build before it.
    bool pays(std::int64_t query_bytes, std::int64_t build_bytes) {
        spent_ = query_bytes > kMost - spent_ ? kMost : spent_ + query_bytes;
        return spent_ >= build_bytes;
    }
    /// Starts counting afresh.
    void reset() { spent_ = 0; }

private:
    static constexpr std::int64_t kMost = INT64_MAX;
    std::int64_t spent_ = 0;
};

/// The place of one derived thing. Any number of threads may use it.
class Slot {
public:
    /// What is kept, or nullptr. Valid until it is dropped: for a caller that keeps others from dropping it.
    const Derived* peek() const { return peeked_.load(std::memory_order_acquire); }
    /// The same, shared.
    std::shared_ptr<const Derived> get() const;

    /// Counts a query that costs `query_bytes` without what is kept here. True if the caller is to build it now, and
    /// then to `put` it; false if that does not pay yet, or if another thread is about it.
    bool begin_building(std::int64_t query_bytes, std::int64_t build_bytes);
    /// Ends building: keeps what was built, or nothing if it is nullptr.
    void put(std::shared_ptr<const Derived> built);
    /// Lets go of what is kept, and starts counting afresh.
    void drop();

private:
    std::atomic<const Derived*> peeked_{nullptr};
    std::shared_ptr<const Derived> kept_;  // it and what follows: guarded by mutex_of(this)
    BuildRule rule_;
    bool is_building_ = false;
};

}  // namespace attncache
