// When the GIL is released and taken.
#include "gil.hpp"

#include <optional>
#include <thread>

namespace attncache::python {
namespace {

/// About 50 us of reading: releasing costs 50 ns alone, but much more if another thread then holds the GIL.
constexpr std::int64_t kWorthIt = 512 * 1024;

void take_gil(PyThreadState* state) {
    try {
        PyEval_RestoreThread(state);
    } catch (...) {
        // The interpreter is ending: before 3.14 it ends a thread that asks for the GIL by unwinding it, which would
        // run destructors without the GIL and call std::terminate. Wait here for the end of the process instead.
        while (true) std::this_thread::sleep_for(std::chrono::hours(1));
    }
}

}  // namespace

CoreWork::~CoreWork() {
    if (state_ != nullptr) take_gil(state_);
    watcher_of_this_thread() = watcher_before_;
}

void CoreWork::begin(std::int64_t bytes) {
    if (state_ != nullptr || bytes < kWorthIt) return;
    last_look_ = std::chrono::steady_clock::now();
    state_ = PyEval_SaveThread();
}

void CoreWork::look(std::int64_t done, std::int64_t total) {
    constexpr auto kBetweenLooks = std::chrono::milliseconds(100);
    if (state_ == nullptr) return;
    const auto now = std::chrono::steady_clock::now();
    if (now - last_look_ < kBetweenLooks) return;
    take_gil(state_);
    std::optional<py::error_already_set> error;
    try {
        // Handlers, finalisers and progress may ask for work: who holds the GIL for it must not be made to wait for it.
        const Unwatched unwatched;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        if (progress_ && !progress_.is_none()) progress_(done, total);
    } catch (const py::error_already_set& raised) {
        error.emplace(raised);
    }
    last_look_ = std::chrono::steady_clock::now();
    state_ = PyEval_SaveThread();
    if (error) throw py::error_already_set(*error);
}

void release_reference(void* object) {
    if (!Py_IsInitialized()) return;
    const py::gil_scoped_acquire gil;
    const Unwatched unwatched;  // a finaliser may ask for work
    Py_DECREF(static_cast<PyObject*>(object));
}

std::shared_ptr<const void> keep_alive(const py::object& object) { return {object.inc_ref().ptr(), release_reference}; }

}  // namespace attncache::python
