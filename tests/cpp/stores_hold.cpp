// The store and what is derived from its layers, without Python: pushes, clears, queries and builds of head means at
// once, in threads (what a race detector should see); a fork amid them; failures that leave everything as it was.
// Exits 1 at the first thing that does not hold.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <new>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

// Sanitizers have locks of their own (of their allocators), which a fork amid threads leaves locked in the child.
#if (defined(__unix__) || defined(__APPLE__)) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define ATTNCACHE_TEST_FORKS
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "attncache/dense.hpp"
#include "attncache/queries.hpp"
#include "attncache/store.hpp"
#include "attncache/threads.hpp"
#include "attncache/watcher.hpp"

namespace {

using namespace attncache;

constexpr Shape kShape{2, 4, 64, 64};
constexpr std::int64_t kItems = 2 * 4 * 64 * 64;

/// A layer whose weights are all `number`.
std::shared_ptr<const DenseLayer> layer_of(float number) {
    const std::vector<float> weights(kItems, number);
    constexpr std::int64_t item = sizeof(float);
    return copy_layer({reinterpret_cast<const std::byte*>(weights.data()),
                       DType::float32,
                       kShape,
                       {4 * 64 * 64 * item, 64 * 64 * item, 64 * item, item}},
                      DType::float32);
}

std::vector<std::int64_t> all(std::int64_t n) {
    std::vector<std::int64_t> numbers(static_cast<std::size_t>(n));
    std::iota(numbers.begin(), numbers.end(), 0);
    return numbers;
}

/// Whether the mean row of a layer, with an index if that pays, is its first weight everywhere.
bool answers_whole(const Layer& layer) {
    const Layer* const only = &layer;
    const auto batches = all(2);
    const auto heads = all(4);
    const std::int64_t query[] = {5};
    std::vector<float> row(2 * 64);
    rows({{&only, 1}, batches, heads, Heads::mean, IndexPolicy::automatic}, query, row.data());
    float first;
    std::memcpy(&first, layer.stored()->data, sizeof first);
    return row == std::vector<float>(row.size(), first);
}

/// Whether a layer stands with the source that it was pushed with, or is the one that takes the place of others.
bool has_its_source(const Store::Sourced& one) {
    float weight;
    std::memcpy(&weight, one.layer->stored()->data, sizeof weight);
    return weight == *static_cast<const float*>(one.source.get()) || weight == -1.0F;
}

/// Counts what a binding would keep.
std::atomic<int> owners{0};

bool many_threads_share_one_store() {
    Store store;
    std::atomic<bool> holds{true};
    std::atomic<bool> done{false};
    std::vector<std::thread> threads;
    for (int reader = 0; reader < 3; ++reader) {
        threads.emplace_back([&] {
            while (!done) {
                for (const auto& layer : store.layers()) {
                    if (!answers_whole(*layer)) holds = false;
                    int* const owner = new int(++owners);
                    if (!layer->owner.keep(owner)) Face::release(owner);
                }
                for (const auto& one : store.sourced()) {
                    if (!has_its_source(one)) holds = false;
                }
                const auto last = store.layer(-1);
                if (last != nullptr && last->derived_bytes() % (2 * 64 * 64 * 4) != 0) holds = false;
            }
        });
    }
    threads.emplace_back([&] {
        while (!done) {
            for (const auto& layer : store.layers()) layer->drop_derived();
        }
    });
    for (int i = 0; i < 200; ++i) {
        store.push(layer_of(static_cast<float>(i)), std::make_shared<const float>(i));
        if (i % 7 == 6) {
            const auto first = store.layer(0);
            if (!store.replace(first.get(), layer_of(-1.0F)) || store.replace(first.get(), first)) holds = false;
        }
        if (i % 20 == 19) store.clear();
    }
    done = true;
    for (std::thread& thread : threads) thread.join();
    return holds && store.n_layers() == 0 && owners == 0;
}

/// Builds are counted: however many threads ask, one at a time builds, and nobody waits for it.
bool one_head_mean_is_built() {
    const auto layer = layer_of(0.5F);
    std::vector<std::thread> threads;
    std::atomic<int> answered{0};
    for (int i = 0; i < 8; ++i) {
        threads.emplace_back([&] {
            for (int k = 0; k < 50; ++k) answered += answers_whole(*layer) ? 1 : 0;
        });
    }
    for (std::thread& thread : threads) thread.join();
    const auto kept = peek_head_mean(*layer, 1);
    const bool is_one = kept != nullptr && layer->derived_bytes() == 2 * kept->n_bytes;
    const auto shared = layer->slot(Derivation::head_mean, 1).get();
    layer->drop_derived();
    return answered == 400 && is_one && layer->derived_bytes() == 0 &&
           static_cast<const HeadMean&>(*shared).by_query[7] == 0.5F;
}

/// Ends the work that it watches.
struct Interrupt final : Watcher {
    void begin(std::int64_t) override {}
    void look(std::int64_t, std::int64_t) override { throw std::runtime_error("interrupted"); }
};

bool failures_leave_everything_as_it_was() {
    Store store;
    store.push(layer_of(1.0F));
    try {
        store.reserve(INT64_MAX);
        return false;
    } catch (const std::bad_alloc&) {
    }
    const auto layer = store.layer(0);
    Interrupt interrupt;
    watcher_of_this_thread() = &interrupt;
    bool came_through = false;
    try {
        head_mean_for(*layer, 0, IndexPolicy::eager, Costs::kNever);
    } catch (const std::runtime_error&) {
        came_through = true;
    }
    watcher_of_this_thread() = nullptr;
    const bool is_unbuilt = peek_head_mean(*layer, 0) == nullptr;
    const bool builds_now = head_mean_for(*layer, 0, IndexPolicy::eager, Costs::kNever) != nullptr;
    const bool there = !store.put(2, layer) && store.put(1, layer) && store.n_layers() == 2 &&
                       store.layer(-2) == store.layer(0) && store.layer(-3) == nullptr && store.layer(2) == nullptr;
    return came_through && is_unbuilt && builds_now && there;
}

bool a_child_can_go_on() {
#ifdef ATTNCACHE_TEST_FORKS
    Store store;
    store.push(layer_of(1.0F));
    std::atomic<bool> done{false};
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
        threads.emplace_back([&] {
            while (!done) {
                store.push(layer_of(2.0F));
                store.layer(0)->drop_derived();
                answers_whole(*store.layer(0));
                if (store.n_layers() > 8) store.put(0, layer_of(1.0F));
            }
        });
    }
    bool all_went_on = true;
    for (int i = 0; i < 30; ++i) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(60);
            store.push(layer_of(3.0F));
            store.layer(0)->drop_derived();
            _exit(answers_whole(*store.layer(0)) && answers_whole(*store.layer(store.n_layers() - 1)) ? 0 : 1);
        }
        int status = 1;
        waitpid(child, &status, 0);
        all_went_on = all_went_on && status == 0;
    }
    done = true;
    for (std::thread& thread : threads) thread.join();
    return all_went_on;
#else
    return true;
#endif
}

bool holds(const char* what, bool (*test)()) {
    const bool it_does = test();
    if (!it_does) std::printf("FAILED: %s\n", what);
    return it_does;
}

}  // namespace

int main() {
    set_num_threads(2);
    Face::release = [](void* object) {
        delete static_cast<int*>(object);
        --owners;
    };
    const bool all_hold = holds("many threads share one store", many_threads_share_one_store) &&
                          holds("one head mean is built", one_head_mean_is_built) &&
                          holds("failures leave everything as it was", failures_leave_everything_as_it_was) &&
                          holds("a child of fork can go on", a_child_can_go_on);
    if (all_hold) std::printf("stores hold\n");
    return all_hold ? 0 : 1;
}
