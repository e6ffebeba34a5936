// Every SIMD level and thread count gives the same bits: the core alone, without Python, for sanitizers and emulators.
// So does the index, however it was built. Prints one hash of all results, which must be the same on every machine.
// Exits 1 at the first difference.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "attncache/index.hpp"
#include "attncache/queries.hpp"
#include "attncache/simd.hpp"
#include "attncache/store.hpp"
#include "attncache/threads.hpp"

#include "../../cpp/src/parallel.hpp"

namespace {

using namespace attncache;

/// A small generator with the same numbers everywhere (PCG-like multiplicative step).
struct Numbers {
    std::uint64_t state = 42;
    std::uint32_t next() {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        return static_cast<std::uint32_t>(state >> 33);
    }
    /// Mostly weights in [0, 1), some of them equal, tiny, zero, negative zero or infinite.
    float weight() {
        switch (next() % 16) {
            case 0: return 0.0F;
            case 1: return -0.0F;
            case 2: return 0.25F;
            case 3: return static_cast<float>(next() % 1024) * 0x1p-26F;
            case 4: return next() % 64 == 0 ? 1e30F : 0.5F;
            default: return static_cast<float>(next() % (1 << 24)) * 0x1p-24F;
        }
    }
};

struct Results {
    std::vector<std::uint32_t> bits;
    bool indexes_agree = true;
    void add(const std::vector<float>& values) {
        for (const float value : values) {
            std::uint32_t word;
            std::memcpy(&word, &value, sizeof word);
            bits.push_back(word);
        }
    }
    void add(const std::vector<std::int64_t>& values) {
        for (const std::int64_t value : values) bits.push_back(static_cast<std::uint32_t>(value));
    }
    std::uint64_t hash() const {
        std::uint64_t h = 1469598103934665603ULL;  // FNV-1a
        for (const std::uint32_t word : bits) h = (h ^ word) * 1099511628211ULL;
        return h;
    }
};

std::vector<std::int64_t> all(std::int64_t n) {
    std::vector<std::int64_t> indices;
    for (std::int64_t i = 0; i < n; ++i) indices.push_back(i);
    return indices;
}

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

void run_selection(const Selection& selection, Results& results) {
    const Shape& shape = selection.layers.front().shape;
    const auto planes = static_cast<std::int64_t>(selection.n_planes());
    std::vector<float> matrix(size(planes * shape.seq_q * shape.seq_k));
    rows(selection, all(shape.seq_q), matrix.data());
    results.add(matrix);
    columns(selection, all(shape.seq_k), matrix.data());
    results.add(matrix);
    edges(selection, all(shape.seq_q), all(shape.seq_k), matrix.data());
    results.add(matrix);
    for (const Direction direction : {Direction::from, Direction::to}) {
        const bool from = direction == Direction::from;
        const std::int64_t lines = from ? shape.seq_q : shape.seq_k;
        const std::int64_t length = from ? shape.seq_k : shape.seq_q;
        for (const std::int64_t k : {std::int64_t{1}, length / 2, length}) {
            std::vector<std::int64_t> positions(size(planes * lines * k));
            std::vector<float> weights(positions.size());
            top_k(selection, all(lines), direction, k, positions.data(), weights.data());
            results.add(positions);
            results.add(weights);
        }
    }
}

void run_queries(const PatternView& pattern, Results& results) {
    const Shape& shape = pattern.shape;
    for (const Heads treat : {Heads::each, Heads::mean}) {
        run_selection({{pattern}, all(shape.batch_size), all(shape.n_heads), treat, {}, {}}, results);
    }
    std::vector<float> row(size(shape.seq_k)), column(size(shape.seq_q));
    mean_row(pattern, 0, shape.seq_q - 1, row.data());
    mean_column(pattern, 0, shape.seq_k - 1, column.data());
    results.add(row);
    results.add(column);
}

/// Whether the mean over all heads has the same bits with these indexes, one for each batch item, as without.
bool indexes_agree(const PatternView& pattern, const std::vector<HeadMeanIndex>& indexes) {
    Selection selection{{pattern}, all(pattern.shape.batch_size), all(pattern.shape.n_heads), Heads::mean, {}, {}};
    Results direct, indexed, partly;
    run_selection(selection, direct);
    for (const HeadMeanIndex& index : indexes) selection.means.push_back({index.by_query, index.by_key});
    run_selection(selection, indexed);
    selection.means.front() = {};
    run_selection(selection, partly);
    return indexed.bits == direct.bits && partly.bits == direct.bits;
}

/// A layer and its indexes, built with the copy and after it: the same pattern, the same answers.
bool copy_and_index_agree(const SourceArray& source, DType dtype, const PatternView& plain) {
    std::vector<HeadMeanIndex> built_later;
    for (std::int64_t batch = 0; batch < plain.shape.batch_size; ++batch) {
        built_later.push_back(build_index(plain, batch));
    }
    const auto [layer, built_with_copy] = copy_and_index_layer(source, dtype);
    const bool same_pattern = std::memcmp(layer->pattern.data, plain.data, size(plain.n_bytes())) == 0;
    return same_pattern && indexes_agree(plain, built_later) && indexes_agree(layer->pattern, built_with_copy);
}

Results run_everything() {
    Results results;
    Numbers numbers;
    for (const std::int64_t seq_k : {1, 3, 8, 15, 16, 17, 33, 100, 257}) {
        const Shape shape{2, 5, 7 + seq_k % 3, seq_k};
        std::vector<float> weights(static_cast<std::size_t>(2 * 5 * shape.seq_q * seq_k));
        for (float& weight : weights) weight = numbers.weight();
        const auto item = static_cast<std::int64_t>(sizeof(float));
        const SourceArray source{reinterpret_cast<const std::byte*>(weights.data()),
                                 DType::float32,
                                 shape,
                                 {5 * shape.seq_q * seq_k * item, shape.seq_q * seq_k * item, seq_k * item, item}};
        for (const DType dtype : {DType::float16, DType::bfloat16, DType::float32}) {
            const auto layer = copy_layer(source, dtype);
            run_queries(layer->pattern, results);
            results.indexes_agree = results.indexes_agree && copy_and_index_agree(source, dtype, layer->pattern);
        }
    }
    return results;
}

/// Several threads query one large layer at once: what a race detector should see.
bool threads_agree() {
    const Shape shape{1, 4, 256, 256};
    std::vector<float> weights(4 * 256 * 256);
    Numbers numbers;
    for (float& weight : weights) weight = numbers.weight();
    const auto layer = borrow_layer(reinterpret_cast<const std::byte*>(weights.data()), DType::float32, shape, nullptr);
    std::vector<float> expected(256 * 256);
    head_mean(layer->pattern, 0, expected.data());
    const auto n_bytes = expected.size() * sizeof(float);
    std::vector<std::vector<float>> results(4, std::vector<float>(256 * 256));
    std::vector<std::thread> threads;
    for (auto& result : results) {
        threads.emplace_back([&] {
            for (int i = 0; i < 10; ++i) {
                head_mean(layer->pattern, 0, result.data());
                const HeadMeanIndex index = build_index(layer->pattern, 0);
                if (std::memcmp(index.by_query, result.data(), n_bytes) != 0) return result.clear();
            }
        });
    }
    for (auto& thread : threads) thread.join();
    for (const auto& result : results) {
        if (result != expected) return false;
    }
    return true;
}

/// What a piece of work throws on any thread comes back to the caller, once, and the pool goes on working.
bool exceptions_come_back() {
    set_num_threads(3);
    for (int round = 0; round < 20; ++round) {
        bool came_back = false;
        try {
            parallel_for(1000, 1 << 20, [](std::int64_t begin, std::int64_t end) {
                if (begin <= 500 && 500 < end) throw std::runtime_error("planted");
            });
        } catch (const std::runtime_error& error) {
            came_back = std::string(error.what()) == "planted";
        }
        std::vector<int> visits(1000);
        parallel_for(1000, 1 << 20, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
        });
        if (!came_back || visits != std::vector<int>(1000, 1)) return false;
    }
    return true;
}

}  // namespace

int main() {
    simd::use("scalar");
    set_num_threads(1);
    const Results expected = run_everything();
    for (const std::string_view level : simd::available()) {
        for (const int n_threads : {1, 2, 3}) {
            simd::use(level);
            set_num_threads(n_threads);
            const Results results = run_everything();
            if (results.bits != expected.bits) {
                std::printf("FAILED: %s with %d threads differs from scalar\n", std::string(level).c_str(), n_threads);
                return 1;
            }
            if (!results.indexes_agree) {
                std::printf("FAILED: %s with %d threads: an index differs\n", std::string(level).c_str(), n_threads);
                return 1;
            }
        }
        std::printf("%s: same bits as scalar\n", std::string(level).c_str());
    }
    if (!threads_agree()) {
        std::printf("FAILED: concurrent queries differ\n");
        return 1;
    }
    if (!exceptions_come_back()) {
        std::printf("FAILED: an exception was lost, or work was left out after one\n");
        return 1;
    }
    std::printf("hash %016llx\n", static_cast<unsigned long long>(expected.hash()));
    return 0;
}
