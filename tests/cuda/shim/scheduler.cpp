// Runs the blocks of a launch one after another, in random order, each thread as a fiber. A thread runs until it waits,
// lanes and warps in random order, and some warps run ahead of the others as far as they can; so whatever one thread
// does without a barrier happens long before or long after what the others do, and code that depends on it goes wrong.
//
// A barrier opens when every thread of the block waits at the same line; a warp operation when every lane of its mask
// does. Anything else (other lines, threads that have ended) is reported with the lines, and ends the launch.
#include "scheduler.hpp"

#include <link.h>
#include <signal.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "fiber.hpp"
#include "races.hpp"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

static thread_local volatile int force_own_memory;  // which the loader makes for a thread that first asks for it

namespace shim {
namespace {

constexpr unsigned kLanes = 32;

enum class State { ready, at_barrier, in_warp, ended };

struct Thread {
    Fiber fiber;
    uint3 index;
    State state;
    Site site;
    const char* operation;
    unsigned mask;
    std::uint64_t value;
    std::uint64_t values[kLanes];        // of the warp operation whose lowest lane this is
    const std::uint64_t* values_of_all;  // those of the lowest lane; read before that one can wait again
};

std::vector<std::unique_ptr<Thread>> threads;  // of a block, kept for the next one
std::vector<std::size_t> turns;                // warps
std::size_t n_threads = 0;
std::size_t running = 0;
Work work;
std::mt19937 random_order(1);
std::string failure;

Thread& self() { return *threads[running]; }

void wait_as(State state, const char* operation, Site site) {
    self().state = state;
    self().operation = operation;
    self().site = site;
    self().fiber.pause();
}

void body() {
    work.call(work.kernel, work.arguments);
    self().state = State::ended;
}

std::string place(const Thread& thread) {
    char words[512];
    const char* const name = std::strrchr(thread.site.file, '/');
    std::snprintf(words, sizeof words, "thread (%u, %u, %u) of block (%u, %u, %u) %s %s, %s:%d", thread.index.x,
                  thread.index.y, thread.index.z, blockIdx.x, blockIdx.y, blockIdx.z,
                  thread.state == State::ready ? "after" : "at", thread.operation,
                  name == nullptr ? thread.site.file : name + 1, thread.site.line);
    return words;
}

bool same_site(const Thread& one, const Thread& other) {
    const auto same = [](const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; };
    return one.site.line == other.site.line && same(one.operation, other.operation) &&
           same(one.site.file, other.site.file);
}

/// Finds the thread's own memory in what the loader says of this library.
SharedMemory find_shared_memory() {
    SharedMemory found{nullptr, 0};
    const auto look = [](dl_phdr_info* info, std::size_t, void* to) {
        const auto here = reinterpret_cast<std::uintptr_t>(&shared_memory) - info->dlpi_addr;
        const ElfW(Phdr)* const end = info->dlpi_phdr + info->dlpi_phnum;
        const auto holds = [&](const auto& part) {
            return part.p_type == PT_LOAD && here - part.p_vaddr < part.p_memsz;
        };
        const auto is_own = [](const auto& part) { return part.p_type == PT_TLS; };
        const auto* const own = std::find_if(info->dlpi_phdr, end, is_own);
        if (std::none_of(info->dlpi_phdr, end, holds)) return 0;
        if (own != end) *static_cast<SharedMemory*>(to) = {static_cast<char*>(info->dlpi_tls_data), own->p_memsz};
        return 1;
    };
    dl_iterate_phdr(look, &found);
    return found;
}

void start_block(dim3 block) {
    if (shared_memory.begin != nullptr) std::memset(shared_memory.begin, 0xCD, shared_memory.n_bytes);
    while (threads.size() < n_threads) threads.push_back(std::make_unique<Thread>());
    for (std::size_t i = 0; i < n_threads; ++i) {
        const auto linear = static_cast<unsigned>(i);
        threads[i]->index = {linear % block.x, linear / block.x % block.y, linear / block.x / block.y};
        threads[i]->state = State::ready;
        threads[i]->operation = "its beginning";
        threads[i]->site = {"the kernel", 0};
        threads[i]->fiber.restart(body);
    }
}

/// Ends the warp operation that a thread waits in if all lanes of its mask wait in it.
bool open_operation(std::size_t i) {
    const std::size_t first = i / kLanes * kLanes;
    const unsigned mask = threads[i]->mask;
    if ((mask >> (i - first) & 1) == 0) return false;
    Thread& lowest = *threads[first + static_cast<std::size_t>(std::countr_zero(mask))];
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
        if ((mask >> lane & 1) == 0) continue;
        if (first + lane >= n_threads) return false;
        Thread& other = *threads[first + lane];
        if (other.state != State::in_warp || other.mask != mask || !same_site(other, *threads[i])) return false;
        lowest.values[lane] = other.value;
    }
    if (std::strcmp(threads[i]->operation, kSyncWarp) == 0)
        races::meet(static_cast<unsigned>(first), mask, threads[i]->site);
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
        if ((mask >> lane & 1) == 0) continue;
        threads[first + lane]->values_of_all = lowest.values;
        threads[first + lane]->state = State::ready;
    }
    return true;
}

/// Ends the warp operations of a warp for which all lanes are there; false if there was none.
bool open_operations(std::size_t warp) {
    bool did_open = false;
    for (std::size_t i = warp * kLanes; i < std::min(n_threads, (warp + 1) * kLanes); ++i) {
        if (threads[i]->state == State::in_warp) did_open |= open_operation(i);
    }
    return did_open;
}

/// Gives the ready lanes of a warp their turn, in random order; false if there was none.
bool run_lanes(std::size_t warp) {
    std::size_t lanes[kLanes];
    const std::size_t n_lanes = std::min<std::size_t>(kLanes, n_threads - warp * kLanes);
    std::iota(lanes, lanes + n_lanes, warp * kLanes);
    std::shuffle(lanes, lanes + n_lanes, random_order);
    bool did_run = false;
    for (std::size_t i = 0; i < n_lanes; ++i) {
        Thread& thread = *threads[lanes[i]];
        if (thread.state != State::ready) continue;
        running = lanes[i];
        threadIdx = thread.index;
        thread.fiber.resume();
        did_run = true;
    }
    return did_run;
}

/// Gives every warp its turn, in random order: up to its next warp operation, or, as often, up to the next barrier,
/// ahead of all others. False if no thread could run.
bool run_warps() {
    std::shuffle(turns.begin(), turns.end(), random_order);
    bool did_run = false;
    for (const std::size_t warp : turns) {
        const bool runs_ahead = random_order() % 2 == 0;
        do {
            did_run |= run_lanes(warp);
        } while (open_operations(warp) && runs_ahead && failure.empty());
    }
    return did_run;
}

/// Opens the barrier if all threads wait at it.
bool open_barrier() {
    for (std::size_t i = 0; i < n_threads; ++i) {
        if (threads[i]->state != State::at_barrier || !same_site(*threads[i], *threads[0])) return false;
    }
    for (std::size_t i = 0; i < n_threads; ++i) threads[i]->state = State::ready;
    races::meet(threads[0]->site);
    return true;
}

bool all_ended() {
    return std::all_of(threads.begin(), threads.begin() + static_cast<std::ptrdiff_t>(n_threads),
                       [](const auto& thread) { return thread->state == State::ended; });
}

void report_divergence() {
    const auto last = threads.begin() + static_cast<std::ptrdiff_t>(n_threads);
    const auto waits = [](const auto& thread) { return thread->state != State::ended; };
    const auto one = std::find_if(threads.begin(), last, waits);
    const auto other =
        std::find_if(threads.begin(), last, [&](const auto& t) { return waits(t) && !same_site(*t, **one); });
    const auto ended = std::find_if_not(threads.begin(), last, waits);
    failure = "diverged: " + place(**one);
    if (other != last) failure += ", but " + place(**other);
    if (ended != last) failure += "; thread " + std::to_string(ended - threads.begin()) + " has ended";
}

void run_block(dim3 block) {
    start_block(block);
    while (failure.empty()) {
        if (run_warps()) continue;
        if (all_ended()) return;
        if (!open_barrier()) report_divergence();
    }
}

}  // namespace

SharedMemory shared_memory{nullptr, 0};

void seed(unsigned value) { random_order.seed(value); }

void fail(const std::string& words) {
    if (failure.empty()) failure = words + ": " + place(self());
    self().state = State::ended;
    self().fiber.pause();
}

namespace {

/// While it lives, an access to no memory at all, as through a garbage pointer, ends the launch as other faults do.
class FaultsEndTheLaunch {
public:
    FaultsEndTheLaunch() {
        struct sigaction ours{};
        ours.sa_handler = [](int) { fail("an access outside of all memory"); };
        ours.sa_flags = SA_NODEFER;  // the handler does not return: the thread that runs has ended
        for (std::size_t i = 0; i < std::size(kFaults); ++i) sigaction(kFaults[i], &ours, &before_[i]);
    }
    ~FaultsEndTheLaunch() {
        for (std::size_t i = 0; i < std::size(kFaults); ++i) sigaction(kFaults[i], &before_[i], nullptr);
    }
    FaultsEndTheLaunch(const FaultsEndTheLaunch&) = delete;
    FaultsEndTheLaunch& operator=(const FaultsEndTheLaunch&) = delete;

private:
    static constexpr int kFaults[] = {SIGSEGV, SIGBUS};  // the second for addresses that x86-64 cannot have
    struct sigaction before_[std::size(kFaults)] = {};
};

}  // namespace

std::string run_grid(const Work& what, dim3 grid, dim3 block) {
    const FaultsEndTheLaunch faults;
    work = what;
    failure.clear();
    force_own_memory = 1;
    shared_memory = find_shared_memory();
    races::begin_launch();
    gridDim = grid;
    blockDim = block;
    n_threads = std::size_t{block.x} * block.y * block.z;
    turns.resize((n_threads + kLanes - 1) / kLanes);
    std::iota(turns.begin(), turns.end(), 0);
    std::vector<unsigned> blocks(std::size_t{grid.x} * grid.y * grid.z);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), random_order);
    for (const unsigned i : blocks) {
        blockIdx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
        races::begin_block(i);
        run_block(block);
        if (!failure.empty()) break;
    }
    return failure;
}

unsigned lane() { return static_cast<unsigned>(running % kLanes); }

void barrier(Site site) { wait_as(State::at_barrier, "__syncthreads", site); }

const std::uint64_t* exchange(unsigned mask, std::uint64_t value, const char* operation, Site site) {
    self().mask = mask;
    self().value = value;
    if ((mask >> lane() & 1) == 0) fail(std::string(operation) + " by a lane outside its mask");
    wait_as(State::in_warp, operation, site);
    return self().values_of_all;
}

}  // namespace shim
