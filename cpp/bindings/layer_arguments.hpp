// What layers are made of, as Python hands it over: for layers in CPU memory and on devices alike.
#pragma once

#include <pybind11/stl.h>

#include <tuple>
#include <utility>
#include <vector>

#include "arrays.hpp"

namespace attncache::python {

/// A layer as Python holds it: nothing of it changes, but pybind11 has no const objects.
using Held = std::shared_ptr<Layer>;

using Runs = std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>>;
/// scale, softcap, causal, window, hidden keys by batch item, sinks
using ScoringTuple = std::tuple<float, float, bool, std::int64_t, Runs, std::vector<float>>;

inline std::vector<std::vector<Range>> ranges_of(const Runs& runs) {
    std::vector<std::vector<Range>> ranges;
    for (const auto& of_batch : runs) {
        auto& of_result = ranges.emplace_back();
        for (const auto& [begin, end] : of_batch) of_result.push_back({begin, end});
    }
    return ranges;
}

inline Scoring scoring_of(const ScoringTuple& tuple) {
    const auto& [scale, softcap, causal, window, hidden, sinks] = tuple;
    return {scale, softcap, causal, window, ranges_of(hidden), sinks};
}

/// The normalisers of all rows of those queries; empty if they are None.
inline std::vector<float> lse_from(const py::object& lse, const Shape& queries) {
    if (lse.is_none()) return {};
    const npy_intp dims[] = {queries.batch_size, queries.n_heads, queries.seq_q};
    const float* const items = floats_in(lse, "lse", dims);
    return {items, items + dims[0] * dims[1] * dims[2]};
}

}  // namespace attncache::python
