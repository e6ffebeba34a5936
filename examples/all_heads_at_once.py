"""Which heads look at the previous token, and which continue a repeated phrase? Every layer and head in two calls.

The patterns are the packaged sample: SmolLM2-135M on a text that says "old lighthouse keeper climbed the spiral" twice.

Run it: python examples/all_heads_at_once.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from attncache import AttentionCache
from attncache.files import read_patterns, sample_path

SHOWN = 5


def scores(cache: AttentionCache, queries: Sequence[int], keys: Sequence[int]) -> npt.NDArray[Any]:
    """The mean weight of the edges queries[i] -> keys[i], for every [layer, head]."""
    weights = cache.edges(queries, keys)  # [layer, head, from, to]
    means: npt.NDArray[Any] = np.diagonal(weights, axis1=-2, axis2=-1).mean(axis=-1)
    return means


def continuations(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Where two tokens in a row occurred before: (the second one now, what followed it then)."""
    return [
        (query, before + 1)
        for query in range(1, len(tokens))
        for before in range(1, query - 1)
        if tokens[before - 1 : before + 1] == tokens[query - 1 : query + 1]
    ]


def show(title: str, values: npt.NDArray[Any]) -> None:
    """Print the strongest heads."""
    print(title)
    for index in np.argsort(-values, axis=None, kind="stable")[:SHOWN]:
        layer, head = np.unravel_index(index, values.shape)
        print(f"  layer {layer:2}, head {head}: {values[layer, head]:.2f}")


def main() -> None:
    """Score every head, print the strongest."""
    file = read_patterns(sample_path())
    tokens = file.tokens or ()
    cache = AttentionCache()
    for pattern in file.patterns:
        cache.push(pattern)

    last = len(tokens) - 1
    previous = scores(cache, range(1, last + 1), range(last))
    show("previous token: mean weight from each token to the one before it", previous)

    queries, keys = zip(*continuations(tokens), strict=True)
    pairs = ", ".join(f"{query}{tokens[query]} ->{tokens[key]} {key}" for query, key in zip(queries, keys, strict=True))
    show(f"\ninduction: mean weight of {pairs}", scores(cache, queries, keys))


if __name__ == "__main__":
    main()
