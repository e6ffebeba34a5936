// The number of threads: asked for, or what the system grants this process.
#include "attncache/threads.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace attncache {
namespace {

int from_environment() {
    const char* text = std::getenv("ATTNCACHE_NUM_THREADS");
    if (text == nullptr) return 0;
    char* end = nullptr;
    const long n = std::strtol(text, &end, 10);
    if (end == text || *end != '\0' || n < 1 || n > 1'000'000) {
        throw std::invalid_argument(std::string("ATTNCACHE_NUM_THREADS must be a whole number of at least 1, got ") +
                                    text);
    }
    return static_cast<int>(n);
}

int from_affinity() {
#if defined(__linux__)
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) return std::max(1, CPU_COUNT(&cpus));
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

/// The CPU quota of the container, rounded up: "max 100000" or "150000 100000" in cgroup v2.
int from_cgroup(int otherwise) {
    std::ifstream file("/sys/fs/cgroup/cpu.max");
    double quota = 0, period = 0;
    if (file >> quota >> period && quota > 0 && period > 0) {
        return std::max(1, static_cast<int>(std::ceil(quota / period)));
    }
    return otherwise;
}

int default_threads() {
    if (const int asked = from_environment()) return asked;
    const int cpus = from_affinity();
    return std::min(cpus, from_cgroup(cpus));
}

std::atomic<int>& thread_count() {
    static std::atomic<int> count{default_threads()};
    return count;
}

}  // namespace

int num_threads() { return thread_count().load(std::memory_order_relaxed); }

void set_num_threads(int n) {
    if (n < 1) throw std::invalid_argument("n must be at least 1, got " + std::to_string(n));
    thread_count().store(n, std::memory_order_relaxed);
}

}  // namespace attncache
