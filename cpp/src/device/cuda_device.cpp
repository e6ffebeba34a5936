// The queries of layers on a CUDA device. Everything is enqueued on one stream, which waits for the streams of the
// layers, and they for it; only answers in CPU memory are waited for.
#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "attncache/cuda_device.hpp"
#include "attncache/watcher.hpp"
#include "cuda_library.hpp"

namespace attncache {
namespace {

using Indices = std::span<const std::int64_t>;

const CudaLayer& cuda(const Layer* layer) { return *static_cast<const CudaLayer*>(layer); }
bool is_dense(const Layer* layer) { return layer->kind() == Kind::dense; }
std::int64_t n_of(Indices indices) { return static_cast<std::int64_t>(indices.size()); }

/// A device keeps the host waiting for as long as its work takes, however small the answer is.
const CudaDevice& announced(const CudaDevice& device) {
    announce(INT64_MAX);
    return device;
}

/// One question while its work is enqueued.
class Question {
public:
    /// On the stream of an answer on the device, or on that of the first layer.
    Question(const CudaDevice& device, const Selection& selection, const Out& out)
        : device_(announced(device)),
          on_(device.library(), device.number()),
          selection_(selection),
          stream_(out.is_on_device ? out.stream : cuda(selection.layers.front()).stream()) {
        for (const Layer* const layer : selection.layers) {
            void* const other = cuda(layer).stream();
            if (other == stream_ || std::find(others_.begin(), others_.end(), other) != others_.end()) continue;
            others_.push_back(other);
            device.wait(stream_, other);
        }
    }
    ~Question() {
        if (!is_done_) {
            for (const Layer* const layer : selection_.layers) cuda(layer).mark_in_use();
        }
        for (void* const other : others_) device_.library().stream_wait.pointer(other, stream_);
    }
    Question(const Question&) = delete;
    Question& operator=(const Question&) = delete;

    /// Enqueues something.
    template <class Function, class... Arguments>
    void call(const Function& function, Arguments... arguments) const {
        device_.library().call(function, arguments..., stream_);
    }
    const CudaLibrary& library() const { return device_.library(); }
    CudaMemory memory(std::size_t n_items, std::size_t item) const { return {device_, n_items * item, stream_}; }
    /// Waits for a part of the answer; the last part ends the question.
    template <class Item>
    void hand_over(Item* to, const CudaMemory& memory, std::size_t n_items) {
        device_.copy_to_host(to, memory.as<void>(), n_items * sizeof(Item), stream_);
        is_done_ = true;
    }

private:
    const CudaDevice& device_;
    OnDevice on_;
    const Selection& selection_;
    void* stream_;
    std::vector<void*> others_;
    bool is_done_ = false;
};

/// Dense layers, as a device is told of what is picked of them.
class Picked {
public:
    explicit Picked(const Selection& selection) {
        for (const Layer* const layer : selection.layers) patterns_.push_back(*cuda(layer).pattern());
        told_ = {patterns_.data(),
                 n_of_layers(),
                 selection.batches.data(),
                 n_of(selection.batches),
                 selection.heads.data(),
                 n_of(selection.heads),
                 selection.treat_heads == Heads::mean};
    }
    const attncache_cuda_selection* told() const { return &told_; }

private:
    std::vector<attncache_cuda_pattern> patterns_;
    attncache_cuda_selection told_{};

    std::int64_t n_of_layers() const { return static_cast<std::int64_t>(patterns_.size()); }
};

/// Calls work(run) for the neighbouring layers of one kind.
template <class Work>
void for_each_kind(Selection selection, const Work& work) {
    auto layers = selection.layers;
    while (!layers.empty()) {
        const auto begin = layers.begin();
        const auto end =
            std::find_if(begin, layers.end(), [&](const Layer* l) { return is_dense(l) != is_dense(*begin); });
        const auto n = static_cast<std::size_t>(end - begin);
        selection.layers = layers.first(n);
        work(selection);
        layers = layers.subspan(n);
    }
}

/// Calls work(part, positions) for pieces whose lines take no more than a scratch may, in the order of their answers.
template <class Work>
void in_parts(Selection part, Indices positions, std::int64_t line_bytes, std::int64_t scratch_bytes,
              const Work& work) {
    const auto n_lines = static_cast<std::int64_t>(part.n_planes()) * n_of(positions);
    const auto halve = [&](auto& axis) {
        if (axis.size() < 2) return false;
        const auto whole = axis;
        const std::size_t middle = (whole.size() + 1) / 2;
        axis = whole.first(middle);
        in_parts(part, positions, line_bytes, scratch_bytes, work);
        axis = whole.subspan(middle);
        in_parts(part, positions, line_bytes, scratch_bytes, work);
        return true;
    };
    if (n_lines <= scratch_bytes / std::max<std::int64_t>(1, line_bytes)) return work(part, positions);
    if (halve(part.layers) || halve(part.batches)) return;
    if (part.treat_heads == Heads::each && halve(part.heads)) return;
    if (!halve(positions)) work(part, positions);
}

std::int64_t float_bytes(std::int64_t n) { return n * static_cast<std::int64_t>(sizeof(float)); }

/// Writes [layer, batch, head, position, key].
void fill_rows(const Question& question, const Selection& selection, Indices positions, float* out) {
    const CudaLibrary& library = question.library();
    for_each_kind(selection, [&](const Selection& run) {
        const std::int64_t n_floats = static_cast<std::int64_t>(run.n_planes()) * n_of(positions) * run.shape().seq_k;
        if (is_dense(run.layers.front())) {
            question.call(library.rows, Picked(run).told(), positions.data(), n_of(positions), out);
            out += n_floats;
            return;
        }
        for (const Layer* const layer : run.layers) {
            question.call(library.factored_rows, cuda(layer).factored(), run.batches.data(), n_of(run.batches),
                          run.heads.data(), n_of(run.heads), run.treat_heads == Heads::mean, positions.data(),
                          n_of(positions), out);
            out += n_floats / static_cast<std::int64_t>(run.layers.size());
        }
    });
}

/// Writes [layer, batch, head, position, query].
void fill_columns(const Question& question, const Selection& selection, Indices positions, float* out) {
    if (!std::all_of(selection.layers.begin(), selection.layers.end(), is_dense)) {
        throw std::invalid_argument(
            "layers must be dense for columns on a device, got a factored one: cache.cpu() answers for that, and so "
            "does a layer of its pattern");
    }
    question.call(question.library().columns, Picked(selection).told(), positions.data(), n_of(positions), out);
}

/// Writes [layer, batch, head, from, to] of factored layers: of their rows, which are a pattern [1, plane, from, key].
void fill_edges_of_rows(const Question& question, const Selection& selection, Indices from_positions,
                        Indices to_positions, float* out) {
    const auto n_planes = static_cast<std::int64_t>(selection.n_planes());
    const std::int64_t seq_k = selection.shape().seq_k;
    const std::int64_t plane = float_bytes(n_of(from_positions) * seq_k);
    const CudaMemory rows = question.memory(static_cast<std::size_t>(n_planes), static_cast<std::size_t>(plane));
    fill_rows(question, selection, from_positions, rows.as<float>());
    const attncache_cuda_pattern pattern{
        rows.as<void>(), ATTNCACHE_CUDA_FLOAT32, 1, n_planes, n_of(from_positions), seq_k, 0,
        plane,           float_bytes(seq_k)};
    std::vector<std::int64_t> all(static_cast<std::size_t>(std::max(n_planes, n_of(from_positions))));
    std::iota(all.begin(), all.end(), 0);
    const attncache_cuda_selection each{&pattern, 1, all.data(), 1, all.data(), n_planes, false};
    question.call(question.library().edges, &each, all.data(), n_of(from_positions), to_positions.data(),
                  n_of(to_positions), out);
}

/// Writes [layer, batch, head, from, to].
void fill_edges(const Question& question, const Selection& selection, Indices from_positions, Indices to_positions,
                float* out) {
    const CudaLibrary& library = question.library();
    for_each_kind(selection, [&](const Selection& run) {
        if (is_dense(run.layers.front())) {
            question.call(library.edges, Picked(run).told(), from_positions.data(), n_of(from_positions),
                          to_positions.data(), n_of(to_positions), out);
            out += static_cast<std::int64_t>(run.n_planes()) * n_of(from_positions) * n_of(to_positions);
            return;
        }
        const auto work = [&](const Selection& part, Indices some) {
            fill_edges_of_rows(question, part, some, to_positions, out);
            out += static_cast<std::int64_t>(part.n_planes()) * n_of(some) * n_of(to_positions);
        };
        in_parts(run, from_positions, float_bytes(run.shape().seq_k), library.scratch_bytes.pointer(), work);
    });
}

/// Writes [layer, batch, head, position, k] twice, of lines that are computed part by part and ranked then.
void fill_top_k(const Question& question, const Selection& selection, Indices positions, Direction direction,
                std::int64_t k, std::int64_t* top_positions, float* top_weights) {
    const CudaLibrary& library = question.library();
    const bool is_from = direction == Direction::from;
    const std::int64_t length = is_from ? selection.shape().seq_k : selection.shape().seq_q;
    const auto work = [&](const Selection& part, Indices some) {
        const auto n_lines = static_cast<std::int64_t>(part.n_planes()) * n_of(some);
        const CudaMemory lines =
            question.memory(static_cast<std::size_t>(n_lines), static_cast<std::size_t>(float_bytes(length)));
        (is_from ? fill_rows : fill_columns)(question, part, some, lines.as<float>());
        question.call(library.top_k, lines.as<float>(), n_lines, length, k, top_positions, top_weights);
        top_positions += n_lines * k;
        top_weights += n_lines * k;
    };
    in_parts(selection, positions, float_bytes(length), library.scratch_bytes.pointer(), work);
}

}  // namespace

template <class Fill>
void CudaDevice::answer(const Selection& selection, std::size_t n_per_plane, const Out& out, const Fill& fill) const {
    const std::size_t n_floats = selection.n_planes() * n_per_plane;
    if (n_floats == 0) return;
    Question question(*this, selection, out);
    if (out.is_on_device) return fill(question, out.data);
    const CudaMemory result = question.memory(n_floats, sizeof(float));
    fill(question, result.as<float>());
    question.hand_over(out.data, result, n_floats);
}

void CudaDevice::rows(const Selection& selection, Indices positions, const Out& out) const {
    if (selection.layers.empty()) return;
    const std::size_t n = positions.size() * static_cast<std::size_t>(selection.shape().seq_k);
    answer(selection, n, out,
           [&](const Question& question, float* to) { fill_rows(question, selection, positions, to); });
}

void CudaDevice::columns(const Selection& selection, Indices positions, const Out& out) const {
    if (selection.layers.empty()) return;
    const std::size_t n = positions.size() * static_cast<std::size_t>(selection.shape().seq_q);
    answer(selection, n, out,
           [&](const Question& question, float* to) { fill_columns(question, selection, positions, to); });
}

void CudaDevice::edges(const Selection& selection, Indices from_positions, Indices to_positions, const Out& out) const {
    const std::size_t n = from_positions.size() * to_positions.size();
    answer(selection, n, out, [&](const Question& question, float* to) {
        fill_edges(question, selection, from_positions, to_positions, to);
    });
}

void CudaDevice::top_k(const Selection& selection, Indices positions, Direction direction, std::int64_t k,
                       std::int64_t* top_positions, float* top_weights) const {
    const std::size_t n = selection.n_planes() * positions.size() * static_cast<std::size_t>(k);
    if (n == 0) return;
    Question question(*this, selection, top_weights);
    const CudaMemory found = question.memory(n, sizeof(std::int64_t));
    const CudaMemory weights = question.memory(n, sizeof(float));
    const bool are_stored = direction == Direction::from && selection.treat_heads == Heads::each &&
                            std::all_of(selection.layers.begin(), selection.layers.end(), is_dense);
    if (are_stored) {
        question.call(library_.top_k_rows, Picked(selection).told(), positions.data(), n_of(positions), k,
                      found.as<std::int64_t>(), weights.as<float>());
    } else {
        fill_top_k(question, selection, positions, direction, k, found.as<std::int64_t>(), weights.as<float>());
    }
    question.hand_over(top_positions, found, n);
    question.hand_over(top_weights, weights, n);
}

}  // namespace attncache
