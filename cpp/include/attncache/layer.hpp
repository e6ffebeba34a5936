// A layer: the attention pattern [batch, head, query, key] of one layer of a model, however it is kept.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "attncache/derived.hpp"
#include "attncache/pattern_view.hpp"

namespace attncache {

class Device;

/// How a layer comes by its weights: it stores them, or it computes them from queries and keys.
enum class Kind : std::uint8_t { dense, factored };
const char* name(Kind kind);

/// Which lines of a pattern: the rows of queries, or the columns of keys.
enum class Direction : std::uint8_t { from, to };

/// Lines that are asked of one batch item.
struct LineRequest {
    Direction direction;
    std::int64_t batch;
    std::span<const std::int64_t> heads;
    std::span<const std::int64_t> positions;    // queries (from) or keys (to)
    std::span<const std::int64_t> listed = {};  // keys: rows at those alone; empty: whole lines
};

/// Where they go: the line of the i-th head at the j-th position begins `i * head_stride + j * line_stride` floats
/// after `out`.
struct LinesOut {
    float* out;
    std::int64_t head_stride;
    std::int64_t line_stride;
};

/// What it costs to ask about the mean of all heads of one batch item, in bytes moved (or in bytes that take as long).
struct Costs {
    std::int64_t row;        // one query
    std::int64_t column;     // one key
    std::int64_t edge;       // one weight
    std::int64_t layer;      // all queries
    std::int64_t head_mean;  // to build what Derivation::head_mean keeps; kNever if it must not be kept
    static constexpr std::int64_t kNever = INT64_MAX;
};

/// One layer. Never changes once made, but for what is derived from it and kept; any number of threads may ask it.
class Layer : public std::enable_shared_from_this<Layer> {
public:
    virtual ~Layer() = default;
    Layer(const Layer&) = delete;
    Layer& operator=(const Layer&) = delete;

    const Shape& shape() const { return shape_; }
    /// Of what is stored: weights, or queries and keys.
    DType dtype() const { return dtype_; }
    Kind kind() const { return kind_; }
    /// The device in whose memory it lies, or nullptr: it lies in CPU memory.
    const Device* device() const { return device_; }
    /// The pattern if its weights lie in CPU memory as they are, otherwise nullptr.
    const PatternView* stored() const { return stored_; }

    /// The bytes of what it stores, without what is derived from it.
    virtual std::int64_t n_bytes() const = 0;
    virtual Costs costs() const = 0;
    /// Writes lines as floats, in parallel over heads and lines. Throws std::bad_alloc, and what a Watcher throws.
    virtual void read_lines(const LineRequest& request, const LinesOut& out) const = 0;

    /// The place of what is derived from one batch item. Does not change the layer that others see.
    Slot& slot(Derivation what, std::int64_t batch) const {
        return slots_[static_cast<std::size_t>(batch) * kDerivations + static_cast<std::size_t>(what)];
    }
    /// The bytes of all that is derived from it and kept.
    std::int64_t derived_bytes() const;
    /// Lets go of it.
    void drop_derived() const;

    Face owner;  // what a binding keeps as the owner of views of the layer's memory

protected:
    Layer(Kind kind, const Shape& shape, DType dtype, const Device* device = nullptr);

    const PatternView* stored_ = nullptr;  // set by a kind that has it

private:
    Shape shape_;
    DType dtype_;
    Kind kind_;
    const Device* device_;
    mutable std::vector<Slot> slots_;  // [batch, derivation]
};

}  // namespace attncache
