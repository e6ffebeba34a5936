"""What a reader finds in a cache, as a value that is equal only if every bit is."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import TypeAlias

import numpy as np

from attncache import AttentionCache

State: TypeAlias = Hashable  # None where nothing is


def contents(cache: AttentionCache) -> State:
    """All bits of all layers, with tokens and metadata."""
    return layer_states(cache), cache.tokens, json.dumps(dict(cache.metadata), sort_keys=True)


def layer_states(cache: AttentionCache) -> tuple[State, ...]:
    """All bits of each layer."""
    return tuple(_layer(cache, number) for number in range(cache.n_layers))


def _layer(cache: AttentionCache, number: int) -> State:
    kind, shape, dtype = cache.kinds[number], cache.shapes[number], cache.dtypes[number]
    weights = np.asarray(cache.rows(number, None)).tobytes()  # of a factored layer: its mask, window and cap as well
    if kind == "dense":
        return kind, shape, dtype, weights, cache[number].tobytes()
    factors = cache.get_queries(number).tobytes(), cache.get_keys(number).tobytes()
    return kind, shape, dtype, weights, factors, cache.lse(number).tobytes()


def read(path: Path) -> State:
    """What is at a path: the contents of the cache there, seen alike by every way of opening it; None if there is none.

    Raises:
        AssertionError: two ways of opening it disagree.
    """
    try:
        mapped = contents(AttentionCache.load(path, verify=True))
    except FileNotFoundError:
        return None
    if contents(AttentionCache.load(path, mmap=False)) != mapped:
        raise AssertionError(f"{path.name} reads differently into memory and mapped")
    return mapped
