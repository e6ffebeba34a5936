// Queries or keys with room for the positions that a generating model adds.
#pragma once

#include "attncache/factored.hpp"

namespace attncache {

/// Memory [batch, head, capacity, item]. Positions that are in use never change; new ones are written behind them.
class GrowingRows {
public:
    /// `rows` and `more` behind them: in the same memory if it has room and nobody else has used that, otherwise in a
    /// new one, half as large again. Throws std::length_error or std::bad_alloc, and leaves `rows` as they were.
    static Projection append(const Projection& rows, const SourceArray& more);

private:
    GrowingRows(std::shared_ptr<std::byte> memory, std::int64_t capacity, std::int64_t n_used)
        : memory_(std::move(memory)), capacity_(capacity), n_used_(n_used) {}

    std::shared_ptr<std::byte> memory_;
    std::int64_t capacity_;
    std::atomic<std::int64_t> n_used_;
};

}  // namespace attncache
