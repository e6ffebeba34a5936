"""The loops whose instructions are counted. Run under valgrind by ``benchmarks.instructions``.

Callgrind starts a new part of its count before each ``getppid``, which is the marker because the C library exports it
by name and nothing else calls it. Each call has three markers: before a loop of n calls, before one of 2n, after it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

from attncache import AttentionCache
from benchmarks.core.timing import sweep_of

HEADS, SEQ, LAYERS = 12, 128, 2
EMPTY = "an empty loop"
CALLS = {
    "len(cache)": "len(cache)",
    "get_layer": "cache.get_layer(layer)",
    "get_layer, absent": "cache.get_layer(1000000)",
    "cache[i]": "cache[layer]",
    "attention_from_position, indexed": "indexed.attention_from_position(layer, position)",
    "attention_to_position, indexed": "indexed.attention_to_position(layer, position)",
    "top_attended_positions, k=10, indexed": "indexed.top_attended_positions(layer, position, 10)",
    "attention_from_position, direct": "cache.attention_from_position(layer, position)",
    "attention_to_position, direct": "cache.attention_to_position(layer, position)",
}
YARDSTICKS = {
    "NumPy: mean[position]": "means[layer][position]",
    "NumPy: mean[:, position]": "means[layer][:, position]",
}
LOOPS = {EMPTY: "pass", **CALLS, **YARDSTICKS}


def names() -> dict[str, Any]:
    """Two caches of the same seeded float16 layers, without and with the index, and the means of these."""
    rng = np.random.default_rng(20251)
    patterns = rng.random((LAYERS, 1, HEADS, SEQ, SEQ), np.float32).astype(np.float16)
    cache, indexed = AttentionCache(index="off"), AttentionCache(index="eager")
    for pattern in patterns:
        cache.push(pattern)
        indexed.push(pattern)
    return {"cache": cache, "indexed": indexed, "means": [indexed.head_mean(layer) for layer in range(LAYERS)]}


def main(count: int) -> None:
    """Run every loop count times, then twice as often, on the same arguments."""
    namespace = names()
    once = [(i % LAYERS, i * 37 % SEQ) for i in range(count)]
    twice = once + once
    for code in LOOPS.values():
        sweep = sweep_of(code, ("layer", "position"), namespace)
        sweep(once)  # caches of the interpreter fill here
        os.getppid()
        sweep(once)
        os.getppid()
        sweep(twice)
        os.getppid()


if __name__ == "__main__":
    main(int(sys.argv[1]))
