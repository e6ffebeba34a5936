// Lets the caller of long work be told how far it is, and stop it.
#pragma once

#include <cstdint>
#include <utility>

namespace attncache {

/// Looks after the long work of one thread. Whatever it throws ends that work, as if the work itself had thrown it.
class Watcher {
public:
    virtual ~Watcher() = default;

    /// Called by the thread that asked for the work before each part of it, of about that many bytes (or of what takes
    /// as long).
    virtual void begin(std::int64_t bytes) = 0;

    /// Called now and then by the thread that asked for the work: `done` of `total` pieces have been begun.
    virtual void look(std::int64_t done, std::int64_t total) = 0;
};

/// The watcher of this thread's work, or nullptr. Set by whoever asks for work, for as long as it takes.
Watcher*& watcher_of_this_thread();

/// Tells this thread's watcher of work that comes.
inline void announce(std::int64_t bytes) {
    if (Watcher* const watcher = watcher_of_this_thread()) watcher->begin(bytes);
}

/// While it lives, nobody watches this thread: for code of others that runs amid the watched work and may ask for work
/// of its own.
class Unwatched {
public:
    Unwatched() : watcher_(std::exchange(watcher_of_this_thread(), nullptr)) {}
    ~Unwatched() { watcher_of_this_thread() = watcher_; }
    Unwatched(const Unwatched&) = delete;
    Unwatched& operator=(const Unwatched&) = delete;

private:
    Watcher* watcher_;
};

}  // namespace attncache
