// The GIL, while the core works.
#pragma once

#include <chrono>
#include <memory>

#include "attncache/watcher.hpp"
#include "numpy_api.hpp"

namespace attncache::python {

namespace py = pybind11;

/// While it lives, the core may release the GIL: as soon as it comes to work that is worth what it may cost to get the
/// GIL back. Ten times a second the work looks for signals, so that Ctrl-C ends it, and tells `progress(done, total)`
/// if that is a callable. Nothing of Python may be touched while it lives.
class CoreWork final : Watcher {
public:
    explicit CoreWork(py::handle progress = {}) : progress_(progress) {}
    ~CoreWork() override;
    CoreWork(const CoreWork&) = delete;
    CoreWork& operator=(const CoreWork&) = delete;

private:
    void begin(std::int64_t bytes) override;
    void look(std::int64_t done, std::int64_t total) override;

    py::handle progress_;
    PyThreadState* state_ = nullptr;  // of this thread, while the GIL is released
    Watcher* watcher_before_ = std::exchange(watcher_of_this_thread(), static_cast<Watcher*>(this));
    std::chrono::steady_clock::time_point last_look_;
};

/// Keeps a Python object alive from C++, whatever thread lets go of it last.
std::shared_ptr<const void> keep_alive(const py::object& object);

/// Lets go of a reference, from any thread.
void release_reference(void* object);

}  // namespace attncache::python
