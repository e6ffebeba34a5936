// A look at a few rows of what is pushed, so that what is no pattern is noticed; the cost is bounded.
#pragma once

#include "attncache/dense.hpp"

namespace attncache {

/// What some rows of a source look like; rows that hold NaN or infinities are left out.
struct RowSample {
    std::int64_t n_rows = 0;
    double least_weight = 0;
    double least_sum = 0;
    double greatest_sum = 0;
};

/// Reads at most 16 rows, spread over batch, heads and queries, and of these at most 16384 weights in all: of longer
/// rows the first ones, whose sum is a lower bound where no weight is negative. A few microseconds.
RowSample sample_rows(const SourceArray& source);

}  // namespace attncache
