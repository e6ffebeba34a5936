// Row sums: a blocked pass over queries and keys that keeps nothing but a greatest score and a sum for each block.
#include "row_sums.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include "../../system/parallel.hpp"
#include "attncache/watcher.hpp"

namespace attncache {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// The blocks of keys that some line may see.
Range blocks_of(const FactoredView& view, std::int64_t batch, std::span<const ScoredLine> lines) {
    Range keys{std::numeric_limits<std::int64_t>::max(), 0};
    for (const ScoredLine& line : lines) {
        const Range visible = visible_to(view, Direction::from, batch, line);
        if (visible.begin == visible.end) continue;
        keys = {std::min(keys.begin, visible.begin), std::max(keys.end, visible.end)};
    }
    if (keys.begin >= keys.end) return {0, 0};
    return {keys.begin / kBlock, (keys.end + kBlock - 1) / kBlock};
}

std::int64_t process_id() {
#if defined(__unix__) || defined(__APPLE__)
    return getpid();
#else
    return 1;  // no fork, so one number serves
#endif
}

/// How many passes over all rows this thread is in: amid one, a signal handler may ask for sums again.
thread_local int passes_of_this_thread = 0;

/// One of them, made for all threads if `summing_process` is given, which is free again afterwards.
class Pass {
public:
    explicit Pass(std::atomic<std::int64_t>* summing_process) : summing_process_(summing_process) {
        ++passes_of_this_thread;
    }
    ~Pass() {
        --passes_of_this_thread;
        if (summing_process_ != nullptr) summing_process_->store(0);
    }
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;

private:
    std::atomic<std::int64_t>* summing_process_;
};

/// Ends when work of another thread has stood still for a while.
class Patience {
public:
    bool is_over(std::int64_t done) {
        const auto now = std::chrono::steady_clock::now();
        if (done != done_) {
            done_ = done;
            since_ = now;
        }
        return now - since_ > std::chrono::seconds(2);
    }

private:
    std::int64_t done_ = -1;
    std::chrono::steady_clock::time_point since_;
};

}  // namespace

bool has_nan(const std::vector<float>& sums) {
    return std::any_of(sums.begin(), sums.end(), [](float sum) { return std::isnan(sum); });
}

std::int64_t work_of_score(const FactoredView& view) {
    constexpr std::int64_t kFlopsPerByte = 8;  // 250 GFLOP/s and 28 GB/s on one AVX-512 core of 2025
    return view.head_dim() * 2 / kFlopsPerByte + 4;
}

SoftmaxPart whole_row(const SoftmaxPart* parts, std::size_t n_parts, const float* sink, const KernelTable& kernels,
                      std::vector<float>& scratch) {
    float greatest = sink == nullptr ? -kInfinity : *sink;
    for (std::size_t i = 0; i < n_parts; ++i) greatest = std::max(greatest, parts[i].greatest);
    const float base = greatest == -kInfinity ? 0.0F : greatest;
    scratch.clear();
    for (std::size_t i = 0; i < n_parts; ++i) scratch.push_back(parts[i].greatest);
    if (sink != nullptr) scratch.push_back(*sink);
    kernels.row_weights(scratch.data(), scratch.size(), {base, 1.0F});
    float sum = 0;
    for (std::size_t i = 0; i < n_parts; ++i) sum += parts[i].sum * scratch[i];
    if (sink != nullptr) sum += scratch[n_parts];
    return greatest == -kInfinity && sum == 0 ? SoftmaxPart{0.0F, kInfinity} : SoftmaxPart{base, sum};
}

void sum_rows(const FactoredView& view, std::int64_t batch, std::span<const ScoredLine> lines,
              const KernelTable& kernels, SoftmaxPart* out) {
    const Range blocks = blocks_of(view, batch, lines);
    const auto n_blocks = static_cast<std::size_t>(blocks.end - blocks.begin);
    const std::int64_t seq_k = view.shape().seq_k;
    std::vector<SoftmaxPart> parts(lines.size() * n_blocks);
    BlockScores scores(view, Direction::from, kernels);
    scores.take(batch, lines);
    for (std::size_t b = 0; b < n_blocks; ++b) {
        const std::int64_t begin = (blocks.begin + static_cast<std::int64_t>(b)) * kBlock;
        const std::int64_t n = std::min(kBlock, seq_k - begin);
        scores.compute(begin, n, {});
        for (std::size_t i = 0; i < lines.size(); ++i) {
            parts[i * n_blocks + b] =
                scores.sees_any(i) ? kernels.softmax_part(scores.line(i), static_cast<std::size_t>(n + 15) / 16 * 16)
                                   : SoftmaxPart{-kInfinity, 0.0F};
        }
    }
    std::vector<float> scratch;
    for (std::size_t i = 0; i < lines.size(); ++i) {
        out[i] = whole_row(parts.data() + i * n_blocks, n_blocks, sink_of(view, lines[i].head), kernels, scratch);
    }
}

const RowSums& FactoredLayer::row_sums() const {
    const std::int64_t this_process = process_id();
    Patience patience;
    while (known_row_sums() == nullptr) {
        std::int64_t summing = 0;
        const bool is_mine = summing_process_.compare_exchange_strong(summing, this_process);
        if (!is_mine && summing != this_process) {  // before a fork: that thread does not exist in this process
            summing_process_.compare_exchange_strong(summing, 0);
            continue;
        }
        // Amid a pass nobody waits: its end may be what the other waits for. Nor for one that a signal handler holds
        // up.
        if (is_mine || passes_of_this_thread > 0 || patience.is_over(rows_passed_.load(std::memory_order_relaxed))) {
            const Pass pass(is_mine ? &summing_process_ : nullptr);
            if (known_row_sums() == nullptr) adopt_row_sums(compute_row_sums());
            continue;
        }
        announce(INT64_MAX);  // the other may need what this thread holds
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        if (Watcher* const watcher = watcher_of_this_thread()) watcher->look(0, 1);
    }
    return *known_row_sums();
}

void FactoredLayer::adopt_row_sums(RowSums rows) const {
    rows.has_nan = has_nan(rows.sums);
    auto adopted = std::make_unique<const RowSums>(std::move(rows));
    const RowSums* none = nullptr;
    if (row_sums_.compare_exchange_strong(none, adopted.get(), std::memory_order_acq_rel)) adopted.release();
}

RowSums FactoredLayer::compute_row_sums() const {
    const Shape shape = view_.shape();
    const std::int64_t n_rows = shape.batch_size * shape.n_heads * shape.seq_q;
    RowSums computed;
    computed.greatest.resize(static_cast<std::size_t>(n_rows));
    computed.sums.resize(static_cast<std::size_t>(n_rows));
    const KernelTable& kernels = active_kernels();
    const std::int64_t n_key_heads = view_.key.shape.n_heads;
    const std::int64_t heads_together = shape.n_heads / n_key_heads;
    const std::int64_t queries_together =
        std::max<std::int64_t>(1, static_cast<std::int64_t>(kLinesTogether) / heads_together);
    const std::int64_t n_chunks = (shape.seq_q + queries_together - 1) / queries_together;
    const std::int64_t seen = view_.scoring.causal ? (shape.seq_k + 1) / 2 : shape.seq_k;
    const std::int64_t work = queries_together * heads_together * seen * work_of_score(view_);
    parallel_for(shape.batch_size * n_key_heads * n_chunks, work, [&](std::int64_t begin, std::int64_t end) {
        std::vector<ScoredLine> lines;
        std::vector<SoftmaxPart> whole;
        for (std::int64_t piece = begin; piece < end; ++piece) {
            const std::int64_t batch = piece % (shape.batch_size * n_key_heads) / n_key_heads;
            const std::int64_t first_head = piece % n_key_heads * heads_together;
            // The last queries see the most keys and come first, so that no thread is left with them at the end.
            const std::int64_t chunk = n_chunks - 1 - piece / (shape.batch_size * n_key_heads);
            lines.clear();
            for (std::int64_t q = chunk * queries_together; q < std::min((chunk + 1) * queries_together, shape.seq_q);
                 ++q) {
                for (std::int64_t head = 0; head < heads_together; ++head) lines.push_back({first_head + head, q});
            }
            whole.resize(lines.size());
            sum_rows(view_, batch, lines, kernels, whole.data());
            rows_passed_.fetch_add(static_cast<std::int64_t>(lines.size()), std::memory_order_relaxed);
            for (std::size_t i = 0; i < lines.size(); ++i) {
                const auto at =
                    static_cast<std::size_t>((batch * shape.n_heads + lines[i].head) * shape.seq_q + lines[i].position);
                computed.greatest[at] = whole[i].greatest;
                computed.sums[at] = whole[i].sum;
            }
        }
    });
    return computed;
}

bool FactoredLayer::row_sums_pay(std::int64_t n_rows) const {
    const Shape shape = view_.shape();
    const std::int64_t summed = rows_summed_.fetch_add(n_rows, std::memory_order_relaxed) + n_rows;
    return summed >= shape.batch_size * shape.n_heads * shape.seq_q;
}

std::vector<float> log_sums(const FactoredLayer& layer) {
    const RowSums& rows = layer.row_sums();
    std::vector<float> result(rows.sums.size());
    for (std::size_t i = 0; i < result.size(); ++i) {
        const double sum = rows.sums[i];
        result[i] = sum == kInfinity ? -kInfinity : static_cast<float>(rows.greatest[i] + std::log(sum));
    }
    return result;
}

}  // namespace attncache
