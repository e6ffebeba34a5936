// A fiber: a stack of its own and a place to go on. Switching saves the registers that a call may not change, nothing
// else, so that thousands of threads may meet at thousands of barriers in no time.
#pragma once

#include <cstddef>

namespace shim {

class Fiber {
public:
    Fiber();
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    /// Will call `body` from the beginning when it is resumed next.
    void restart(void (*body)());
    /// Runs the fiber until it pauses. Called by the thread that schedules.
    void resume();
    /// Goes back to whoever resumed this fiber. Called by the fiber itself.
    void pause();

private:
    struct Context;
    Context* context_;
};

}  // namespace shim
