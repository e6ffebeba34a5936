// Factored layers: every SIMD level and thread count gives the same bits, whichever query asks; exp and tanh keep the
// bounds written beside them. The core alone, without Python, for sanitizers and emulators. Prints one hash of all
// results, which must be the same on every machine. Exits 1 at the first difference.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "attncache/factored.hpp"
#include "attncache/queries.hpp"
#include "attncache/simd.hpp"
#include "attncache/threads.hpp"

#include "../../cpp/src/system/active_kernels.hpp"

namespace {

using namespace attncache;

/// A small generator with the same numbers everywhere.
struct Numbers {
    std::uint64_t state = 7;
    std::uint32_t next() {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        return static_cast<std::uint32_t>(state >> 33);
    }
    /// In (-2, 2), exact in every storage type that matters here.
    float number() { return static_cast<float>(static_cast<int>(next() % 4096) - 2048) / 1024.0F; }
};

struct Results {
    std::uint64_t hash = 1469598103934665603ULL;  // FNV-1a
    void add(const void* data, std::size_t n_bytes) {
        const auto* bytes = static_cast<const unsigned char*>(data);
        for (std::size_t i = 0; i < n_bytes; ++i) hash = (hash ^ bytes[i]) * 1099511628211ULL;
    }
    template <class T>
    void add(const std::vector<T>& values) {
        add(values.data(), values.size() * sizeof(T));
    }
};

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

std::vector<std::int64_t> all(std::int64_t n) {
    std::vector<std::int64_t> numbers(size(n));
    std::iota(numbers.begin(), numbers.end(), 0);
    return numbers;
}

/// Random queries or keys in a dtype.
Projection random_rows(const Shape& shape, DType dtype, Numbers& numbers) {
    std::vector<float> values(size(shape.batch_size * shape.n_heads * shape.seq_q * shape.seq_k));
    for (float& value : values) value = numbers.number();
    const PatternView view = contiguous_view(reinterpret_cast<const std::byte*>(values.data()), DType::float32, shape);
    const auto copy = copy_layer(
        {view.data, DType::float32, shape, {view.batch_stride, view.head_stride, view.query_stride, 4}}, dtype);
    return {copy->pattern(), copy->memory(), nullptr};
}

struct Case {
    std::int64_t seq_q, seq_k, head_dim;
    Scoring scoring;
    bool has_mask, has_sinks;
};

const Case kCases[] = {
    {5, 5, 8, {0.5F, 0, true, 0}, false, false},       {70, 70, 13, {0.3F, 0, true, 0}, true, false},
    {33, 300, 24, {0.4F, 3.0F, true, 0}, false, true}, {40, 600, 64, {0.125F, 0, false, 0}, true, true},
    {90, 90, 16, {1.0F, 0, true, 17}, false, false},   {50, 80, 5, {0.7F, 5.0F, false, 9}, true, false},
};

std::shared_ptr<const FactoredLayer> layer_of(const Case& c, DType dtype, Numbers& numbers) {
    Scoring scoring = c.scoring;
    if (c.has_mask) scoring.hidden_keys = {{{0, c.seq_k / 3}}, {{1, 2}, {c.seq_k / 2, c.seq_k / 2 + 2}}};
    if (c.has_sinks) scoring.sinks = {0.5F, -1.0F, 2.0F, 0.0F};
    Projection query = random_rows({2, 4, c.seq_q, c.head_dim}, dtype, numbers);
    Projection key = random_rows({2, 2, c.seq_k, c.head_dim}, dtype, numbers);
    return std::make_shared<const FactoredLayer>(std::move(query), std::move(key), std::move(scoring),
                                                 std::vector<float>{});
}

/// Every weight, asked for as rows, columns, edges and a dense layer, before and after the sums are known.
bool run_layer(const FactoredLayer& layer, Results& results) {
    const Shape shape = layer.view().shape();
    const Layer* const only = &layer;
    const auto both = all(2);
    const auto heads = all(4);
    const Selection selection{{&only, 1}, both, heads, Heads::each};
    std::vector<float> by_row(size(2 * 4 * shape.seq_q * shape.seq_k));
    rows(selection, all(shape.seq_q), by_row.data());
    std::vector<float> again(by_row.size());
    edges(selection, all(shape.seq_q), all(shape.seq_k), again.data());
    if (std::memcmp(again.data(), by_row.data(), by_row.size() * sizeof(float)) != 0) return false;
    std::vector<float> by_column(by_row.size());
    columns(selection, all(shape.seq_k), by_column.data());
    rows(selection, all(shape.seq_q), again.data());
    if (std::memcmp(again.data(), by_row.data(), by_row.size() * sizeof(float)) != 0) return false;
    for (std::int64_t plane = 0; plane < 8; ++plane) {
        for (std::int64_t q = 0; q < shape.seq_q; ++q) {
            for (std::int64_t k = 0; k < shape.seq_k; ++k) {
                const float row = by_row[size((plane * shape.seq_q + q) * shape.seq_k + k)];
                if (by_column[size((plane * shape.seq_k + k) * shape.seq_q + q)] != row) return false;
            }
        }
    }
    const auto dense = dense_layer(layer, DType::float32);
    if (std::memcmp(dense->pattern().data, by_row.data(), by_row.size() * sizeof(float)) != 0) return false;
    results.add(by_row);
    for (const Heads treat : {Heads::each, Heads::mean}) {
        const std::int64_t some[] = {3, 0, 1};
        const Selection asked{{&only, 1}, both, some, treat};
        for (const Direction direction : {Direction::from, Direction::to}) {
            const std::int64_t n_lines = direction == Direction::from ? shape.seq_q : shape.seq_k;
            std::vector<std::int64_t> positions(asked.n_planes() * size(n_lines * 3));
            std::vector<float> weights(positions.size());
            top_k(asked, all(n_lines), direction, 3, positions.data(), weights.data());
            results.add(positions);
            results.add(weights);
        }
    }
    std::vector<float> mean(size(shape.seq_q * shape.seq_k));
    head_mean(layer, 1, mean.data());
    results.add(mean);
    return true;
}

bool run_everything(Results& results) {
    Numbers numbers;
    for (const Case& c : kCases) {
        for (const DType dtype : {DType::float16, DType::bfloat16, DType::float32}) {
            if (!run_layer(*layer_of(c, dtype, numbers), results)) return false;
        }
    }
    return true;
}

/// A layer that grows while others read what it was.
bool grows_while_it_is_read() {
    Numbers numbers;
    const Case c{300, 300, 16, {0.25F, 0, true, 0}, false, false};
    const auto whole = layer_of(c, DType::float32, numbers);
    const auto part = [](const PatternView& view, std::int64_t first, std::int64_t n) {
        const Shape shape{view.shape.batch_size, view.shape.n_heads, n, view.shape.seq_k};
        return SourceArray{view.data + first * view.query_stride,
                           view.dtype,
                           shape,
                           {view.batch_stride, view.head_stride, view.query_stride, 4}};
    };
    const PatternView& query = whole->view().query;
    const PatternView& key = whole->view().key;
    const auto rows_of = [](const SourceArray& source) {
        const auto copy = copy_layer(source, source.dtype);
        return Projection{copy->pattern(), copy->memory(), nullptr};
    };
    auto layer = std::make_shared<const FactoredLayer>(rows_of(part(query, 0, 100)), rows_of(part(key, 0, 100)),
                                                       c.scoring, std::vector<float>{});
    const std::int64_t row_99[] = {99};
    const std::int64_t column_5[] = {5};
    std::vector<float> expected(300);
    mean_lines(*whole, 0, Direction::from, row_99, expected.data());
    std::vector<std::thread> readers;
    std::vector<char> agree(3, 1);
    for (char& agrees : agree) {
        readers.emplace_back([&, layer] {
            std::vector<float> row(100);
            for (int i = 0; i < 50; ++i) {
                mean_lines(*layer, 0, Direction::from, row_99, row.data());
                if (std::memcmp(row.data(), expected.data(), 100 * sizeof(float)) != 0) agrees = 0;
                mean_lines(*layer, 1, Direction::to, column_5, row.data());
            }
        });
    }
    auto grown = layer;
    for (std::int64_t position = 100; position < 300; ++position) {
        grown = grown->with_more(part(query, position, 1), part(key, position, 1), {});
    }
    for (std::thread& reader : readers) reader.join();
    const auto dense = dense_layer(*grown, DType::float32);
    const auto dense_whole = dense_layer(*whole, DType::float32);
    const bool same =
        std::memcmp(dense->pattern().data, dense_whole->pattern().data, size(dense->pattern().n_bytes())) == 0;
    return same && agree == std::vector<char>(3, 1);
}

/// The greatest error of `function` against `exact`, in units of 2^-24 of the result, over every 509th float up to
/// `last`.
template <class Function, class Exact>
double greatest_error(float last, const Function& function, const Exact& exact) {
    double greatest = 0;
    std::uint32_t last_bits;
    std::memcpy(&last_bits, &last, sizeof last_bits);
    std::vector<float> inputs(4096), outputs(4096);
    for (std::uint32_t bits = 0; bits < last_bits;) {
        std::size_t n = 0;
        for (; n < inputs.size() && bits < last_bits; bits += 509) std::memcpy(&inputs[n++], &bits, sizeof bits);
        std::copy_n(inputs.begin(), n, outputs.begin());
        function(outputs.data(), n);
        for (std::size_t i = 0; i < n; ++i) {
            const double wanted = exact(static_cast<double>(inputs[i]));
            const double error = std::fabs(outputs[i] - wanted) / wanted * 0x1p24;
            if (inputs[i] > 0 && error > greatest) greatest = error;
        }
    }
    return greatest;
}

bool functions_keep_their_bounds() {
    const KernelTable& kernels = active_kernels();
    const double power = greatest_error(
        87.336F,
        [&](float* x, std::size_t n) {
            for (std::size_t i = 0; i < n; ++i) x[i] = -x[i];
            kernels.row_weights(x, n, {0.0F, 1.0F});
        },
        [](double x) { return std::exp(-x); });
    const double tangent = greatest_error(
        20.0F, [&](float* x, std::size_t n) { kernels.softcap(x, n, 1.0F); }, [](double x) { return std::tanh(x); });
    float edges[] = {0.0F, -0.0F, -88.0F, -INFINITY};
    kernels.row_weights(edges, 4, {0.0F, 1.0F});
    const bool edges_hold = edges[0] == 1 && edges[1] == 1 && edges[2] == 0 && edges[3] == 0;
    std::printf("%s: exp within %.2f, tanh within %.2f units of 2^-24\n", kernels.level, power, tangent);
    return power < 1.3 && tangent < 2.7 && edges_hold;
}

}  // namespace

int main() {
    simd::use("scalar");
    set_num_threads(1);
    Results expected;
    if (!run_everything(expected)) {
        std::printf("FAILED: queries of one layer differ\n");
        return 1;
    }
    for (const std::string_view level : simd::available()) {
        simd::use(level);
        if (!functions_keep_their_bounds()) {
            std::printf("FAILED: %s: exp or tanh is off\n", std::string(level).c_str());
            return 1;
        }
        for (const int n_threads : {1, 2, 3}) {
            set_num_threads(n_threads);
            Results results;
            if (!run_everything(results) || results.hash != expected.hash) {
                std::printf("FAILED: %s with %d threads differs from scalar\n", std::string(level).c_str(), n_threads);
                return 1;
            }
        }
        std::printf("%s: same bits as scalar\n", std::string(level).c_str());
    }
    if (!grows_while_it_is_read()) {
        std::printf("FAILED: a layer that grew differs\n");
        return 1;
    }
    std::printf("hash %016llx\n", static_cast<unsigned long long>(expected.hash));
    return 0;
}
