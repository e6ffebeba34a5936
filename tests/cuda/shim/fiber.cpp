// Switching stacks: by hand on x86-64, with ucontext elsewhere. Address sanitizer is told which stack is in use.
#include "fiber.hpp"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace shim {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kStack = 256 * 1024;  // mapped where it is touched; sanitizers need some of it

}  // namespace

struct Fiber::Context {
    char* stack;
    void (*body)();
#if defined(__x86_64__)
    void* here = nullptr;     // the fiber's stack pointer while it pauses
    void* resumer = nullptr;  // the scheduler's while it runs
#else
    ucontext_t here;
    ucontext_t resumer;
#endif
    const void* resumer_stack = nullptr;
    std::size_t resumer_size = 0;
};

#if defined(__x86_64__)
extern "C" void shim_switch(void** save, void* load);
asm(R"(
    .text
    .globl shim_switch
    .hidden shim_switch
    .type shim_switch, @function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size shim_switch, .-shim_switch
)");
#endif

namespace {

/// Which fiber a fresh stack belongs to.
Fiber* starting = nullptr;
void (*starting_body)() = nullptr;
const void** starting_stack = nullptr;
std::size_t* starting_size = nullptr;

void finish_switch([[maybe_unused]] const void** stack, [[maybe_unused]] std::size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, stack, size);
#endif
}

void start_switch([[maybe_unused]] const void* stack, [[maybe_unused]] std::size_t size) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(nullptr, stack, size);
#endif
}

void trampoline() {
    finish_switch(starting_stack, starting_size);
    Fiber* const fiber = starting;
    starting_body();
    fiber->pause();
    std::fputs("shim: a finished thread was resumed\n", stderr);
    std::abort();
}

}  // namespace

Fiber::Fiber() : context_(new Context) {
    void* const memory =
        mmap(nullptr, kStack + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        std::fputs("shim: no memory for the stack of a thread\n", stderr);
        std::abort();
    }
    mprotect(memory, kPage, PROT_NONE);
    context_->stack = static_cast<char*>(memory) + kPage;
}

Fiber::~Fiber() {
    munmap(context_->stack - kPage, kStack + kPage);
    delete context_;
}

void Fiber::restart(void (*body)()) {
    context_->body = body;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(context_->stack, kStack);
#endif
#if defined(__x86_64__)
    auto* top = reinterpret_cast<std::uintptr_t*>(context_->stack + kStack);
    *--top = 0;  // what a call would have left: the address to return to, which also aligns the stack
    *--top = reinterpret_cast<std::uintptr_t>(&trampoline);
    for (int saved = 0; saved < 6; ++saved) *--top = 0;
    context_->here = top;
#else
    getcontext(&context_->here);
    context_->here.uc_stack.ss_sp = context_->stack;
    context_->here.uc_stack.ss_size = kStack;
    makecontext(&context_->here, trampoline, 0);
#endif
}

void Fiber::resume() {
    starting = this;
    starting_body = context_->body;
    starting_stack = &context_->resumer_stack;
    starting_size = &context_->resumer_size;
    start_switch(context_->stack, kStack);
#if defined(__x86_64__)
    shim_switch(&context_->resumer, context_->here);
#else
    swapcontext(&context_->resumer, &context_->here);
#endif
    const void* ignored_stack = nullptr;
    std::size_t ignored_size = 0;
    finish_switch(&ignored_stack, &ignored_size);
}

void Fiber::pause() {
    start_switch(context_->resumer_stack, context_->resumer_size);
#if defined(__x86_64__)
    shim_switch(&context_->here, context_->resumer);
#else
    swapcontext(&context_->here, &context_->resumer);
#endif
    finish_switch(&context_->resumer_stack, &context_->resumer_size);
}

}  // namespace shim
