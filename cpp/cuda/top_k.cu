// Top-k: the heaviest items of lines, by a tournament within a warp. Long lines and large k go to top_k_radix.cu.
//
// Floor: a line is read once, item * length bytes / bandwidth, and k results of 12 bytes are written. Of the line only
// the groups that have won are read again, an item or two of each lane.
//
// Shape: a warp for each line and no barrier of a block; four lines a block. Every lane has 64 bytes or more in flight
// while the line is read.
//
// How: weights become keys, unsigned numbers in the order in which they are ranked. Groups are 8 neighbours, more in
// lines beyond 8192 items, so that a warp's shared memory holds the greatest key of each; lane l owns the groups l,
// l + 32, ... and knows the best of them. Then k times: the best of the lanes names the group that holds the next item;
// the lanes read it again, find the item, and what the group is worth without it and all before it; and the lane that
// owns the group compares its groups anew. What has been taken is known without a mark: items have one order, by key
// and by position, and it is what does not come after the last one. So equal weights come by position, and nothing
// depends on an order of lanes.
#include "top_k.cuh"

#include "block.cuh"

namespace attncache::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kLanes;
constexpr int kBlocksPerMultiprocessor = 7;  // at least, so at most 72 registers: 28 warps with 2 KB in flight each
constexpr int kItems = 8;                    // of a piece, which a lane reads at once; groups are 1 to kLanes pieces
constexpr int kAhead = 4;                    // pieces of a lane in flight
constexpr int kRows = 32;                    // groups that a lane owns, at most
constexpr std::int64_t kLongest = kItems * kLanes * kLanes * kRows - kItems;  // a line may begin within a piece
constexpr std::int64_t kMostTaken = 512;  // each costs about as much as 100 of a line's items: beyond, radix wins

/// The greatest key of each group, by row and owner; padded, so that neither a row nor a column meets in a bank.
using Groups = unsigned[kRows][kLanes + 1];

__device__ inline unsigned& key_at(Groups& groups, unsigned group) { return groups[group / kLanes][group % kLanes]; }

/// How a line lies: pieces begin at multiples of 16 bytes, so the first and the last may be in the line in part.
struct Pieces {
    int length;  // of the line
    int skew;    // items of the first piece before the line
    int n;
    int shift;        // a group is 2^shift pieces
    unsigned n_rows;  // of groups

    __device__ int first_of(int piece) const { return piece * kItems - skew; }
};

template <class Item>
__device__ inline Pieces pieces_of(const Item* line, int length) {
    const auto skew = static_cast<int>(reinterpret_cast<std::uintptr_t>(line) % 16 / sizeof(Item));
    Pieces pieces{length, skew, (length + skew + kItems - 1) / kItems, 0, 0};
    while ((pieces.n - 1) >> pieces.shift >= kLanes * kRows) ++pieces.shift;
    pieces.n_rows = (static_cast<unsigned>(pieces.n - 1) >> pieces.shift) / kLanes + 1;
    return pieces;
}

/// The greatest weight of a whole piece; NaN only of nothing else.
template <class Item>
__device__ inline float greatest_of_piece(const Item* items) {
    float greatest = __uint_as_float(0x7fffffff);
#pragma unroll
    for (int i = 0; i < kItems; i += kWide<Item>) {
        float weights[kWide<Item>];
        read(items + i, weights);
#pragma unroll
        for (const float weight : weights) greatest = fmaxf(greatest, weight);
    }
    return greatest;
}

/// The greatest keys of the first and the last piece, of what of them is in the line.
struct Edges {
    unsigned first, last;
};

template <class Item>
__device__ inline Edges edges_of(const Item* line, const Pieces& pieces) {
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    const bool is_first = lane < kItems;
    const int i = pieces.first_of(is_first ? 0 : pieces.n - 1) + lane % kItems;
    const bool is_item = lane < 2 * kItems && i >= 0 && i < pieces.length;
    const unsigned key = is_item ? key_of(weight_at(line, i)) : 0;
    return {greatest_of_lanes(is_first ? key : 0), greatest_of_lanes(is_first ? 0 : key)};
}

/// Reads a line and leaves the key of every group, and 0 up to the end of the last row.
template <class Item>
__device__ inline void read_groups(const Item* line, const Pieces& pieces, Groups& groups) {
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    const int n_slots = static_cast<int>(pieces.n_rows) * kLanes;
    const int whole_begin = pieces.skew == 0 ? 0 : 1;
    const int whole_end = (pieces.length + pieces.skew) / kItems;
    Edges edges{0, 0};
    if (whole_begin > 0 || whole_end < pieces.n) edges = edges_of(line, pieces);
#pragma unroll 1
    for (int begin = 0; begin >> pieces.shift < n_slots; begin += kAhead * kLanes) {
        float greatest[kAhead];
        if (whole_begin < whole_end) {
#pragma unroll
            for (int a = 0; a < kAhead; ++a) {  // reads nothing but whole pieces and has no branch: all are in flight
                const int piece = begin + a * kLanes + lane;
                const int whole = piece < whole_begin ? whole_begin : piece < whole_end ? piece : whole_end - 1;
                greatest[a] = greatest_of_piece(line + pieces.first_of(whole));
            }
        }
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
            const int piece = begin + a * kLanes + lane;
            const bool is_whole = piece >= whole_begin && piece < whole_end;
            unsigned key = is_whole ? key_of(greatest[a]) : piece == 0 ? edges.first : 0;
            if (!is_whole && piece == pieces.n - 1) key = edges.last;
            for (int lanes = 1; lanes < 1 << pieces.shift; lanes *= 2) {
                const unsigned other = __shfl_xor_sync(kAllLanes, key, lanes);
                key = other > key ? other : key;
            }
            const int slot = piece >> pieces.shift;
            if (slot << pieces.shift == piece && slot < n_slots) key_at(groups, static_cast<unsigned>(slot)) = key;
        }
    }
}

/// The group with the greatest key: of equal ones the first.
struct Best {
    unsigned key;
    unsigned group;
};

__device__ inline Best best_of_lane(const Groups& groups, unsigned n_rows) {
    const unsigned lane = threadIdx.x % kLanes;
    Best best{0, 0};
#pragma unroll 4
    for (unsigned row = 0; row < n_rows; ++row) {
        const unsigned key = groups[row][lane];
        if (key > best.key) best = {key, row * kLanes + lane};
    }
    return best;
}

__device__ inline Best best_of_lanes(const Best& mine) {
    const unsigned key = greatest_of_lanes(mine.key);
    return {key, least_of_lanes(mine.key == key ? mine.group : ~0U)};
}

/// The best group of one lane, found by all.
__device__ inline Best best_of_column(const Groups& groups, unsigned n_rows, unsigned column) {
    const unsigned row = threadIdx.x % kLanes;
    const unsigned key = row < n_rows ? groups[row][column] : 0;
    return best_of_lanes({key, row * kLanes + column});
}

/// An item's place in the order: after greater keys, and after equal ones at lower positions.
struct Place {
    unsigned key, position;
};

__device__ inline bool is_after(const Place& place, const Place& other) {
    return place.key < other.key || (place.key == other.key && place.position > other.position);
}

/// Writes the first item after `last` of a group whose greatest key after `last` is `key`. Returns where it lies, and
/// the key that the group has without it.
template <class Item>
__device__ inline Place take(const Item* line, const Pieces& pieces, const Best& best, const Place& last,
                             std::int64_t* position /* [1] */, float* weight /* [1] */) {
    constexpr unsigned kNone = ~0U;
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    const int first = pieces.first_of(static_cast<int>(best.group << pieces.shift));
    const int behind = first + (kItems << pieces.shift);
    const int end = behind < pieces.length ? behind : pieces.length;
    unsigned found = kNone;
    unsigned rest = 0;
    float found_weight = 0;
#pragma unroll 1
    for (int i = first + lane; i < end; i += kLanes) {
        if (i < 0) continue;
        const float read = weight_at(line, i);
        const Place place{key_of(read), static_cast<unsigned>(i)};
        if (!is_after(place, last)) continue;
        if (place.key == best.key && found == kNone) {
            found = place.position;
            found_weight = read;
        } else if (place.key > rest) {
            rest = place.key;
        }
    }
    const unsigned taken = least_of_lanes(found);
    if (found == taken) {
        *position = taken;
        *weight = found_weight;
    } else if (found != kNone) {
        rest = best.key;
    }
    return {greatest_of_lanes(rest), taken};
}

template <class Item>
__device__ inline void rank(const Item* line, int length, int k, Groups& groups, std::int64_t* positions /* [k] */,
                            float* weights /* [k] */) {
    const unsigned lane = threadIdx.x % kLanes;
    const Pieces pieces = pieces_of(line, length);
    __syncwarp();  // before this line's groups overwrite those of the last one
    read_groups(line, pieces, groups);
    __syncwarp();
    Best mine = best_of_lane(groups, pieces.n_rows);
    Place last{~0U, 0};  // before all
#pragma unroll 1
    for (int i = 0; i < k; ++i) {
        const Best best = best_of_lanes(mine);
        const auto [key, position] = take(line, pieces, best, last, positions + i, weights + i);
        last = {best.key, position};
        __syncwarp();  // before a group is overwritten that other lanes have compared
        if (lane == 0) key_at(groups, best.group) = key;
        __syncwarp();
        const Best next = best_of_column(groups, pieces.n_rows, best.group % kLanes);
        if (best.group % kLanes == lane) mine = next;
    }
}

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    tournament_kernel(RankedLines lines, std::int64_t n_units, int k, std::int64_t* positions /* [line, k] */,
                      float* weights /* [line, k] */) {
    __shared__ Groups groups_of_warps[kWarps];
    const int warp = static_cast<int>(threadIdx.x) / kLanes;
    Groups& groups = groups_of_warps[warp];
    for_each_unit(n_units, [&](std::int64_t unit) {
        const std::int64_t index = unit * kWarps + warp;
        if (index >= lines.n) return;
        with_line(lines, index, [&](const auto* line) {
            rank(line, static_cast<int>(lines.length), k, groups, positions + index * k, weights + index * k);
        });
    });
}

void top_k(const RankedLines& lines, std::int64_t k, std::int64_t* device_positions, float* device_weights,
           cudaStream_t stream) {
    if (lines.length > kLongest || k > kMostTaken) {
        top_k_by_radix(lines, k, device_positions, device_weights, stream);
        return;
    }
    const std::int64_t n_units = quotient_up(lines.n, kWarps);
    launch(tournament_kernel, n_units, dim3(kThreads), stream, lines, n_units, static_cast<int>(k), device_positions,
           device_weights);
}

/// Whether there is anything to write; throws if it cannot be.
bool writes_any(std::int64_t n_lines, std::int64_t length, std::int64_t k, const std::int64_t* device_positions,
                const float* device_weights) {
    require(n_lines >= 0 && length >= 0 && k >= 0 && k <= length);
    static_cast<void>(product(n_lines, length, sizeof(float)));
    if (product(n_lines, k, sizeof(std::int64_t)) == 0) return false;
    require(device_positions != nullptr && device_weights != nullptr);
    if (length > std::numeric_limits<std::int32_t>::max()) throw Failure{ATTNCACHE_CUDA_TOO_LARGE};
    return true;
}

}  // namespace
}  // namespace attncache::cuda

int attncache_cuda_top_k(const float* device_lines, std::int64_t n_lines, std::int64_t length, std::int64_t k,
                         std::int64_t* device_positions, float* device_weights, void* stream) {
    return attncache::cuda::status_of([=] {
        using namespace attncache::cuda;
        if (!writes_any(n_lines, length, k, device_positions, device_weights)) return;
        require(device_lines != nullptr);
        top_k({device_lines, {}, n_lines, length}, k, device_positions, device_weights,
              static_cast<cudaStream_t>(stream));
    });
}

int attncache_cuda_top_k_rows(const attncache_cuda_selection* selection, const std::int64_t* positions,
                              std::int64_t n_positions, std::int64_t k, std::int64_t* device_positions,
                              float* device_weights, void* stream) {
    return attncache::cuda::status_of([=] {
        using namespace attncache::cuda;
        require(selection != nullptr && selection->mean_heads == 0);
        const attncache_cuda_pattern& pattern = checked(*selection);
        require_inside(positions, n_positions, selection->n_layers == 0 ? 0 : pattern.seq_q);
        const std::int64_t n_lines = lines_of(*selection, n_positions);
        if (n_lines == 0 || !writes_any(n_lines, pattern.seq_k, k, device_positions, device_weights)) return;
        const auto enqueued_on = static_cast<cudaStream_t>(stream);
        const SelectionOnDevice lists = on_device(*selection, positions, n_positions, enqueued_on);
        top_k({nullptr, lists.selection, n_lines, pattern.seq_k}, k, device_positions, device_weights, enqueued_on);
    });
}
