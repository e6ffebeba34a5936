// The race detector. g++ with -fsanitize=thread puts a call before each access to memory (`__tsan_read4` and so on);
// these functions are defined here, libtsan is not linked, and the kernels' sources stay as they are.
//
// Of each byte of device and shared memory it remembers who wrote it last and who read it, and when. Rules:
//   - Two threads of a block that touch a byte, one of them to write, race unless a __syncthreads lies between, or, for
//     lanes of one warp, a __syncwarp that both are in. Votes and shuffles order no memory, as CUDA's manual has it.
//   - Two blocks of a launch that touch a byte, one of them to write, race: nothing orders blocks.
//   - Two atomic operations never race; an atomic one and a plain one do as two plain ones.
//   - A byte that a launch reads through __ldg is written by nothing in that launch.
//   - A byte that is read was written: device memory by a copy or a kernel, shared memory by this block.
//   - Accesses lie on a multiple of their size, within one allocation or one __shared__ variable.
// Orders are judged, not met by chance: a race is seen whichever thread had its turn first (though a reader that comes
// before the first writer reads what nobody wrote). Of readers the latest is
// kept, with the latest of another lane, of another warp, and the first of the launch, which is of the first block; a
// race with yet another reader can be missed where partial masks order some lanes and not others.
//
// Tests talk to it through plain C:
//   shim_shared(offset, n)   a __shared__ variable, by its bytes in all of them; untold, all are one variable
//   shim_barriers()          the barriers at which threads met since the last call, a line each: file:line
//   shim_ignore(place)       from here on, that barrier orders nothing, though threads meet there; "" for none
#include "races.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <set>
#include <vector>

#include "memory.hpp"

namespace shim::races {
namespace {

constexpr unsigned kLanes = 32;
constexpr unsigned kMostThreads = 1024;
constexpr std::uint32_t kByHost = 1;

enum class Kind { read, write, atomic };

/// An access. Epochs number the blocks of all launches and, within a block, what lies between its barriers; a clock
/// numbers what lies between the barriers of a thread's warp.
struct Touch {
    std::uint32_t epoch, clock;
    std::uint16_t thread;
    bool is_atomic;
};

struct Byte {
    Touch written, read, read_of_other_lane, read_of_other_warp, first_read;
    std::uint32_t constant;  // the epoch of the last read through __ldg
};

struct Memory {
    std::size_t n_bytes;
    Byte* bytes;
};

struct Block {
    std::uint32_t first_epoch;
    unsigned number;
};

bool is_on = false;
std::uint32_t epoch = kByHost;
std::uint32_t launch_begin = 0;
std::uint32_t block_begin = 0;
std::vector<Block> blocks;                     // of this launch
std::uint32_t clocks[kMostThreads];            // of each thread
std::uint32_t seen[kMostThreads][kLanes];      // by a thread: clocks of its warp's lanes before which all is ordered
std::map<const char*, Memory> memories;        // device memory, by its first byte
std::vector<Byte> shared_bytes;                // of all __shared__ variables
std::map<std::size_t, std::size_t> variables;  // in shared memory: first byte and size
std::set<std::string> sites;
std::string ignored;

unsigned thread() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }

std::string place_of(Site site) {
    const char* const name = std::strrchr(site.file, '/');
    return std::string(name == nullptr ? site.file : name + 1) + ":" + std::to_string(site.line);
}

bool is_ignored(Site site) {
    const std::string place = place_of(site);
    sites.insert(place);
    return place == ignored;
}

bool is_in_warp(const Touch& touch, unsigned me) {
    return touch.epoch >= block_begin && touch.thread / kLanes == me / kLanes;
}

/// Whether an earlier access is ordered before what the thread that runs does now. A block's shared memory is its own.
bool is_before(const Touch& touch, unsigned me, bool is_shared) {
    if (touch.epoch < (is_shared ? block_begin : launch_begin)) return true;
    if (touch.epoch < block_begin) return false;
    if (touch.epoch < epoch || touch.thread == me) return true;
    return is_in_warp(touch, me) && touch.clock < seen[me][touch.thread % kLanes];
}

std::string thread_of(const Touch& touch) {
    unsigned number = 0;
    for (const Block& block : blocks) {
        if (block.first_epoch <= touch.epoch) number = block.number;
    }
    return "thread " + std::to_string(touch.thread) + " of block " + std::to_string(number);
}

const char* name_of(Kind kind) {
    return kind == Kind::read ? "a read" : kind == Kind::write ? "a write" : "an atomic operation";
}

void fail_race(Kind kind, Kind before, const Touch& touch, bool is_shared) {
    fail(std::string("race in ") + (is_shared ? "shared" : "device") + " memory: " + name_of(kind) + " after " +
         name_of(before) + " by " + thread_of(touch) + ", which nothing orders");
}

void note_read(Byte& byte, const Touch& now) {
    if (byte.first_read.epoch < launch_begin) byte.first_read = now;
    if (!is_in_warp(byte.read, now.thread)) {
        byte.read_of_other_warp = byte.read;
    } else if (byte.read.thread != now.thread) {
        byte.read_of_other_lane = byte.read;
    }
    byte.read = now;
}

void touch_byte(Byte& byte, Kind kind, const Touch& now, bool is_shared) {
    const bool is_written = byte.written.epoch >= (is_shared ? block_begin : kByHost);
    if (kind != Kind::write && !is_written) fail("a read of what nobody wrote");
    if (!(kind == Kind::atomic && byte.written.is_atomic) && !is_before(byte.written, now.thread, is_shared)) {
        fail_race(kind, byte.written.is_atomic ? Kind::atomic : Kind::write, byte.written, is_shared);
    }
    if (kind == Kind::read) return note_read(byte, now);
    for (const Touch* read : {&byte.read, &byte.read_of_other_lane, &byte.read_of_other_warp, &byte.first_read}) {
        if (!is_before(*read, now.thread, is_shared)) fail_race(kind, Kind::read, *read, is_shared);
    }
    if (byte.constant >= launch_begin) fail("a write to what this launch reads through __ldg");
    byte.written = now;
}

/// The bytes of device memory that an access touches, or nullptr.
Byte* device_bytes(const char* address, std::size_t n_bytes) {
    auto after = memories.upper_bound(address);
    if (after == memories.begin()) return nullptr;
    const auto& [begin, memory] = *--after;
    const auto offset = static_cast<std::size_t>(address - begin);
    return offset + n_bytes <= memory.n_bytes ? memory.bytes + offset : nullptr;
}

Byte* bytes_of_shared(const char* address, std::size_t n_bytes) {
    const auto offset = static_cast<std::size_t>(address - shared_memory.begin);
    shared_bytes.resize(shared_memory.n_bytes);
    if (variables.empty()) variables[0] = shared_bytes.size();
    const auto after = variables.upper_bound(offset);
    if (after == variables.begin()) return nullptr;
    const auto& [begin, size] = *std::prev(after);
    return offset + n_bytes <= begin + size ? shared_bytes.data() + offset : nullptr;
}

void touch(const void* at, std::size_t n_bytes, Kind kind, std::size_t alignment) {
    const auto* const address = static_cast<const char*>(at);
    const bool is_shared = address >= shared_memory.begin && address < shared_memory.begin + shared_memory.n_bytes;
    if (!is_shared && !is_device_address(at)) return;
    const auto sized = [&] { return std::string(name_of(kind)) + " of " + std::to_string(n_bytes) + " bytes"; };
    if (reinterpret_cast<std::uintptr_t>(at) % alignment != 0) fail("misaligned: " + sized());
    Byte* const bytes = is_shared ? bytes_of_shared(address, n_bytes) : device_bytes(address, n_bytes);
    if (bytes == nullptr) fail(sized() + " outside of every " + (is_shared ? "__shared__ variable" : "allocation"));
    const unsigned me = thread();
    const Touch now{epoch, clocks[me], static_cast<std::uint16_t>(me), kind == Kind::atomic};
    for (std::size_t i = 0; i < n_bytes; ++i) touch_byte(bytes[i], kind, now, is_shared);
}

}  // namespace

void begin_launch() {
    launch_begin = ++epoch;
    blocks.clear();
}

void begin_block(unsigned block) {
    block_begin = ++epoch;
    if (is_on) blocks.push_back({epoch, block});
}

void meet(Site site) {
    if (is_on && !is_ignored(site)) ++epoch;
}

void meet(unsigned first_thread, unsigned mask, Site site) {
    if (!is_on || is_ignored(site)) return;
    std::uint32_t joined[kLanes] = {};
    for (unsigned lane = 0; lane < kLanes; ++lane) {
        if ((mask >> lane & 1) == 0) continue;
        const unsigned one = first_thread + lane;
        seen[one][lane] = ++clocks[one];
        for (unsigned other = 0; other < kLanes; ++other) joined[other] = std::max(joined[other], seen[one][other]);
    }
    for (unsigned lane = 0; lane < kLanes; ++lane) {
        if ((mask >> lane & 1) != 0) std::memcpy(seen[first_thread + lane], joined, sizeof joined);
    }
}

void read_constant(const void* address, std::size_t n_bytes) {
    if (!is_on) return;
    touch(address, n_bytes, Kind::read, n_bytes);
    Byte* const bytes = device_bytes(static_cast<const char*>(address), n_bytes);
    for (std::size_t i = 0; i < n_bytes; ++i) {
        if (bytes[i].written.epoch >= launch_begin) fail("a read through __ldg of what this launch writes");
        bytes[i].constant = epoch;
    }
}

void write_whole(const void* address, std::size_t n_bytes) {
    if (is_on) touch(address, n_bytes, Kind::write, n_bytes);
}

void allocated(const void* memory, std::size_t n_bytes) {
    if (!is_on) return;
    auto* const bytes = static_cast<Byte*>(std::calloc(n_bytes + 1, sizeof(Byte)));
    if (bytes == nullptr) std::abort();
    memories[static_cast<const char*>(memory)] = {n_bytes, bytes};
}

void released(const void* memory) {
    const auto found = memories.find(static_cast<const char*>(memory));
    if (found == memories.end()) return;
    std::free(found->second.bytes);
    memories.erase(found);
}

void copied_to(const void* memory, std::size_t n_bytes) {
    Byte* const bytes = device_bytes(static_cast<const char*>(memory), n_bytes);
    for (std::size_t i = 0; bytes != nullptr && i < n_bytes; ++i) bytes[i].written = {kByHost, 0, 0, false};
}

std::string unwritten(const void* memory, std::size_t n_bytes) {
    const Byte* const bytes = device_bytes(static_cast<const char*>(memory), n_bytes);
    for (std::size_t i = 0; bytes != nullptr && i < n_bytes; ++i) {
        if (bytes[i].written.epoch == 0) return "a copy whose byte " + std::to_string(i) + " nobody wrote";
    }
    return "";
}

}  // namespace shim::races

using namespace shim::races;

#define SHIM_API extern "C" __attribute__((visibility("default")))

SHIM_API void shim_shared(std::size_t offset, std::size_t n_bytes) { variables[offset] = n_bytes; }

SHIM_API const char* shim_barriers() {
    static std::string lines;
    lines.clear();
    for (const std::string& site : sites) lines += site + "\n";
    sites.clear();
    return lines.c_str();
}

SHIM_API void shim_ignore(const char* place) { ignored = place; }

// What g++ calls.
extern "C" {
void __tsan_init() { is_on = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
char __tsan_atomic8_load(const char* at, int) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }  // of the host
void __tsan_read_range(const void* at, std::size_t n_bytes) { touch(at, n_bytes, Kind::read, 1); }
void __tsan_write_range(const void* at, std::size_t n_bytes) { touch(at, n_bytes, Kind::write, 1); }
int __tsan_atomic32_fetch_add(int* at, int value, int) {
    touch(at, sizeof *at, Kind::atomic, sizeof *at);
    const int before = *at;
    *at = before + value;
    return before;
}
#define SHIM_ACCESS(n)                                                             \
    void __tsan_read##n(const void* at) { touch(at, n, Kind::read, n); }           \
    void __tsan_write##n(const void* at) { touch(at, n, Kind::write, n); }         \
    void __tsan_unaligned_read##n(const void* at) { touch(at, n, Kind::read, 1); } \
    void __tsan_unaligned_write##n(const void* at) { touch(at, n, Kind::write, 1); }
SHIM_ACCESS(1)
SHIM_ACCESS(2)
SHIM_ACCESS(4)
SHIM_ACCESS(8)
SHIM_ACCESS(16)
}
