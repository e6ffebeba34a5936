// Which keys a query may see by their positions alone: the one place for the core and for the kernels of devices.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ATTNCACHE_ON_DEVICES __host__ __device__
#else
#define ATTNCACHE_ON_DEVICES
#endif

namespace attncache {

/// Positions begin..end-1.
struct Range {
    std::int64_t begin;
    std::int64_t end;
};

/// How far queries see: the last query is aligned with the last key.
struct Sight {
    std::int64_t seq_q;
    std::int64_t seq_k;
    bool causal;
    std::int64_t window;  // 0: none; causal: the last `window` keys up to one's own, otherwise keys up to `window` away

    /// More than any distance of a query and a key, if there is no window.
    ATTNCACHE_ON_DEVICES constexpr std::int64_t reach() const { return window == 0 ? seq_k + seq_q : window; }

    /// The keys in sight of a query; may begin before the first and end behind the last.
    ATTNCACHE_ON_DEVICES constexpr Range keys_of(std::int64_t query) const {
        const std::int64_t here = query + seq_k - seq_q;
        return causal ? Range{here - reach() + 1, here + 1} : Range{here - reach(), here + reach() + 1};
    }

    /// The queries that have a key in sight; may begin before the first and end behind the last.
    ATTNCACHE_ON_DEVICES constexpr Range queries_of(std::int64_t key) const {
        const std::int64_t here = key - seq_k + seq_q;
        return causal ? Range{here, here + reach()} : Range{here - reach(), here + reach() + 1};
    }
};

}  // namespace attncache
