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

#include "attncache/head_mean.hpp"
#include "attncache/queries.hpp"
#include "attncache/simd.hpp"
#include "attncache/dense.hpp"
#include "attncache/threads.hpp"

#include "../../cpp/src/system/parallel.hpp"

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
    bool copies_agree = true;
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
    const Shape& shape = selection.shape();
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

/// Every query of one layer; means over all heads by that rule.
void run_layer(const Layer& layer, Heads treat, IndexPolicy policy, Results& results) {
    const Layer* const only = &layer;
    const auto batches = all(layer.shape().batch_size);
    const auto heads = all(layer.shape().n_heads);
    run_selection({{&only, 1}, batches, heads, treat, policy}, results);
}

void run_queries(const Layer& layer, Results& results) {
    const Shape& shape = layer.shape();
    for (const Heads treat : {Heads::each, Heads::mean}) run_layer(layer, treat, IndexPolicy::off, results);
    std::vector<float> row(size(shape.seq_k)), column(size(shape.seq_q));
    const std::int64_t last[] = {shape.seq_q - 1, shape.seq_k - 1};
    mean_lines(layer, 0, Direction::from, {last, 1}, row.data());
    mean_lines(layer, 0, Direction::to, {last + 1, 1}, column.data());
    results.add(row);
    results.add(column);
}

/// Whether the mean over all heads has the same bits with head means as without: of a layer that has them.
bool index_agrees(const Layer& plain, const Layer& indexed) {
    Results direct, from_index, partly;
    run_layer(plain, Heads::mean, IndexPolicy::off, direct);
    run_layer(indexed, Heads::mean, IndexPolicy::off, from_index);
    indexed.slot(Derivation::head_mean, 0).drop();
    run_layer(indexed, Heads::mean, IndexPolicy::off, partly);
    return from_index.bits == direct.bits && partly.bits == direct.bits;
}

/// A layer with head means that were built with its copy, and after it: the same pattern, the same answers, and lines
/// that are read one by one are those of the queries.
bool copies_agree(const SourceArray& source, DType dtype, const DenseLayer& plain) {
    const auto with_copy = copy_layer(source, dtype, true);
    const auto later = borrow_layer(plain.pattern().data, dtype, plain.shape(), plain.memory(), true);
    const auto again = dense_layer(plain, dtype);
    const auto n_bytes = size(plain.n_bytes());
    if (std::memcmp(with_copy->pattern().data, plain.pattern().data, n_bytes) != 0) return false;
    if (std::memcmp(again->pattern().data, plain.pattern().data, n_bytes) != 0) return false;
    return index_agrees(plain, *later) && index_agrees(plain, *with_copy);
}

/// Whether a layer reads the lines that queries give, those at listed keys among them.
bool lines_agree(const Layer& layer) {
    const Shape& shape = layer.shape();
    const std::int64_t heads[] = {1, 0};
    const std::int64_t batch[] = {1};
    const Layer* const only = &layer;
    const Selection selection{{&only, 1}, batch, heads, Heads::each};
    for (const Direction direction : {Direction::from, Direction::to}) {
        const bool from = direction == Direction::from;
        const std::int64_t length = from ? shape.seq_k : shape.seq_q;
        const auto positions = all(from ? shape.seq_q : shape.seq_k);
        std::vector<float> asked(size(2 * shape.seq_q * shape.seq_k)), read(asked.size());
        from ? rows(selection, positions, asked.data()) : columns(selection, positions, asked.data());
        layer.read_lines({direction, 1, heads, positions}, {read.data(), shape.seq_q * shape.seq_k, length});
        if (std::memcmp(asked.data(), read.data(), asked.size() * sizeof(float)) != 0) return false;
    }
    const auto queries = all(shape.seq_q);
    const std::int64_t keys[] = {shape.seq_k - 1, 0};
    std::vector<float> asked(size(4 * shape.seq_q)), read(asked.size());
    edges(selection, queries, keys, asked.data());
    layer.read_lines({Direction::from, 1, heads, queries, keys}, {read.data(), 2 * shape.seq_q, 2});
    return std::memcmp(asked.data(), read.data(), asked.size() * sizeof(float)) == 0;
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
            run_queries(*layer, results);
            results.copies_agree = results.copies_agree && lines_agree(*layer) && copies_agree(source, dtype, *layer);
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
    head_mean(*layer, 0, expected.data());
    const auto n_bytes = expected.size() * sizeof(float);
    std::vector<std::vector<float>> results(4, std::vector<float>(256 * 256));
    std::vector<std::thread> threads;
    for (auto& result : results) {
        threads.emplace_back([&] {
            for (int i = 0; i < 10; ++i) {
                head_mean(*layer, 0, result.data());
                const auto mean = build_head_mean(layer->pattern(), 0);
                if (std::memcmp(mean->by_query, result.data(), n_bytes) != 0) return result.clear();
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
            if (!results.copies_agree) {
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
