// Some mutexes for all objects, chosen by address.
#include "mutexes.hpp"

#include <cstdint>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace attncache {
namespace {

constexpr std::size_t kMutexes = 16;

struct Mutexes {
    std::mutex all[kMutexes];

    void lock() {
        for (std::mutex& one : all) one.lock();
    }
    void unlock() {
        for (std::mutex& one : all) one.unlock();
    }
};

/// Made on first need, never destroyed: a thread may use it while the process ends.
Mutexes& mutexes() {
    static auto* const made = [] {
#if defined(__unix__) || defined(__APPLE__)
        pthread_atfork([] { mutexes().lock(); }, [] { mutexes().unlock(); }, [] { mutexes().unlock(); });
#endif
        return new Mutexes;
    }();
    return *made;
}

}  // namespace

std::mutex& mutex_of(const void* object) {
    const auto address = reinterpret_cast<std::uintptr_t>(object);
    return mutexes().all[(address / 64) % kMutexes];
}

}  // namespace attncache
