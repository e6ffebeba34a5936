// Lets the caller of long work be told how far it is, and stop it.
#pragma once

#include <cstdint>
#include <utility>

namespace attncache {

/// Looks after the long work of one thread. Whatever it throws ends that work, as if the work itself had thrown it.
class Watcher {
public:
    virtual ~Watcher() = default;

    /// Called now and then by the thread that asked for the work: `done` of `total` pieces have been begun.
    virtual void look(std::int64_t done, std::int64_t total) = 0;
};

/// The watcher of this thread's work, or nullptr. Set by whoever asks for work, for as long as it takes.
Watcher*& watcher_of_this_thread();

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
