// The pool: created on first need, never destroyed (threads blocked at exit would race with static destructors), and
// rebuilt after fork, whose child inherits the memory of a pool but none of its threads.
#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "attncache/threads.hpp"
#include "attncache/watcher.hpp"

namespace attncache {
namespace {

/// Waking a thread costs some 5 to 50 us; below this share of work per thread it does not pay (512 KiB is about
/// 35 us of reading at one core's bandwidth).
constexpr std::int64_t kBytesPerThread = 512 * 1024;

/// Ranges per thread: enough that a thread that was descheduled does not make the others wait long.
constexpr std::int64_t kRangesPerThread = 8;

/// The most that one range may take, so that work can be stopped soon: some 10 ms.
constexpr std::int64_t kBytesPerRange = 256 * 1024 * 1024;

/// One parallel_for: ranges are handed out by a counter until none are left or one has thrown.
struct Job {
    const std::function<void(std::int64_t, std::int64_t)>& work;
    std::int64_t n;
    std::int64_t range;
    std::atomic<std::int64_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error{};

    /// Works until nothing is left; `watcher`, if there is one, looks on between ranges.
    void run(Watcher* watcher) {
        while (!failed.load(std::memory_order_relaxed)) {
            const std::int64_t begin = next.fetch_add(range, std::memory_order_relaxed);
            if (begin >= n) return;
            try {
                if (watcher != nullptr) watcher->look(begin, n);
                work(begin, std::min(begin + range, n));
            } catch (...) {
                if (!failed.exchange(true)) error = std::current_exception();
            }
        }
    }
};

class Pool {
public:
    /// Runs the job on the caller and `n_helpers` threads; false, having done nothing, if the pool is in use.
    bool try_run(Job& job, int n_helpers) {
        if (in_use_.exchange(true, std::memory_order_acquire)) return false;  // by this thread, it may be: no mutex
        const struct Release {
            std::atomic<bool>& in_use;
            ~Release() { in_use.store(false, std::memory_order_release); }
        } release{in_use_};
        start_threads(n_helpers);
        n_helpers = std::min(n_helpers, static_cast<int>(threads_.size()));
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            job_ = &job;
            wanted_ = n_helpers;
            running_ = n_helpers;
        }
        wake_.notify_all();
        job.run(watcher_of_this_thread());
        if (is_of_parent())
            throw std::runtime_error("a process that forks amid a call cannot go on with it in the child");
        std::unique_lock<std::mutex> lock(mutex_);
        running_ -= wanted_;  // those that have not begun by now find nothing to do
        wanted_ = 0;
        done_.wait(lock, [&] { return running_ == 0; });
        job_ = nullptr;
        return true;
    }

private:
    void start_threads(int n) {
        while (static_cast<int>(threads_.size()) < n) {
            try {
                threads_.emplace_back([this] { serve(); });
            } catch (const std::exception&) {
                return;  // the system has no more threads or memory to give: go on with those there are
            }
            threads_.back().detach();
        }
    }

    [[noreturn]] void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            wake_.wait(lock, [&] { return wanted_ > 0; });
            --wanted_;
            Job& job = *job_;
            lock.unlock();
            job.run(nullptr);
            lock.lock();
            if (--running_ == 0) done_.notify_one();
        }
    }

    bool is_of_parent() const;

    std::atomic<bool> in_use_{false};
    std::mutex mutex_;  // guards what follows
    std::condition_variable wake_;
    std::condition_variable done_;
    Job* job_ = nullptr;
    int wanted_ = 0;   // helpers still to begin the job
    int running_ = 0;  // helpers that have not finished it
    std::vector<std::thread> threads_;
};

std::atomic<Pool*> the_pool{nullptr};

void forget_pool_in_child() { the_pool.store(nullptr); }

bool Pool::is_of_parent() const { return the_pool.load() != this; }

Pool& pool() {
    Pool* existing = the_pool.load(std::memory_order_acquire);
    if (existing != nullptr) return *existing;
#if defined(__unix__) || defined(__APPLE__)
    [[maybe_unused]] static const int registered = pthread_atfork(nullptr, nullptr, forget_pool_in_child);
#endif
    auto* fresh = new Pool;
    if (the_pool.compare_exchange_strong(existing, fresh)) return *fresh;
    delete fresh;
    return *existing;
}

thread_local Watcher* this_threads_watcher = nullptr;

}  // namespace

Watcher*& watcher_of_this_thread() { return this_threads_watcher; }

void parallel_for(std::int64_t n, std::int64_t bytes_each,
                  const std::function<void(std::int64_t, std::int64_t)>& work) {
    if (n <= 0) return;
    const std::int64_t bytes = bytes_each > INT64_MAX / n ? INT64_MAX : n * bytes_each;
    announce(bytes);
    const std::int64_t paying = std::min({static_cast<std::int64_t>(num_threads()), bytes / kBytesPerThread, n});
    const std::int64_t share = paying > 1 ? n / (paying * kRangesPerThread) : n;
    const std::int64_t short_enough = kBytesPerRange / std::max<std::int64_t>(1, bytes_each);
    Job job{work, n, std::max<std::int64_t>(1, std::min(share, short_enough))};
    if (paying <= 1 || !pool().try_run(job, static_cast<int>(paying) - 1)) job.run(watcher_of_this_thread());
    if (job.error) std::rethrow_exception(job.error);
}

}  // namespace attncache
