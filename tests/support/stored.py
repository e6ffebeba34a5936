"""Caches that have everything a file can hold, and the comparison of all they hold; for the tests of caches on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from attncache import AttentionCache, LayerSource
from tests.support.patterns import DTYPES, KINDS, rng

SHAPES = ((1, 1, 1, 1), (2, 3, 5, 7), (1, 9, 33, 64), (2, 2, 0, 3), (0, 2, 3, 4), (1, 0, 2, 2))


def push_dense(
    cache: AttentionCache, dtype: str, shape: tuple[int, int, int, int] = SHAPES[1], source: LayerSource | None = None
) -> None:
    """A layer of softmax rows with NaN, infinities and ties among them."""
    random = rng("stored", dtype, shape, cache.n_layers)
    pattern = KINDS["infinities"](random, shape).astype(DTYPES[dtype])
    cache.push(pattern, copy=True, source=source)


def push_factored(cache: AttentionCache, **options: Any) -> None:
    """Grouped heads, two texts, more keys than queries."""
    random = rng("stored", sorted(options), cache.n_layers)
    query, key = random.normal(size=(2, 4, 5, 8)), random.normal(size=(2, 2, 7, 8))
    cache.push_qk(query.astype(np.float32), key.astype(np.float32), **options)


def factored_options() -> Sequence[dict[str, Any]]:
    """Every option of a factored layer."""
    random = rng("options")
    mask = np.ones((2, 7), bool)
    mask[0, :2] = mask[1, 4] = False
    return (
        {},
        {"scale": 0.3, "causal": False},
        {"window": 3, "softcap": 20.0, "key_mask": mask},
        {"sinks": random.normal(size=4).astype(np.float32)},
        {"lse": random.normal(size=(2, 4, 5)).astype(np.float32)},
    )


def everything() -> AttentionCache:
    """Dense layers of every dtype, factored layers of every option, metadata."""
    cache = AttentionCache()
    for dtype in DTYPES:
        push_dense(cache, dtype)
    for options in factored_options():
        push_factored(cache, **options)
    cache.metadata = {"model": "none", "prompt": {"text": "Größe\n\ud800", "ids": [1, 2.5, None, True]}}
    return cache


def tokened() -> AttentionCache:
    """A cache small enough to damage at every bit, with tokens, metadata and a factored layer."""
    cache = AttentionCache()
    push_dense(cache, "float16", (1, 2, 2, 3))
    random = rng("tokened")
    cache.push_qk(*(random.normal(size=(1, 1, n, 2)).astype(np.float16) for n in (2, 3)), key_mask=[[0, 1, 1]])
    cache.tokens = ["the", " cat", "\N{SNOWMAN}"]
    cache.metadata = {"n": 1}
    return cache


def of_a_model() -> AttentionCache:
    """Layers that say where they come from, of one text that asks another, one with sums that were kept from a longer text."""
    cache = AttentionCache()
    push_dense(
        cache, "float16", (2, 4, 5, 7), source=LayerSource("decoder.layers.0", 0, (0, 2, 3, 9), "self", "decoder")
    )
    push_dense(cache, "float32", (2, 4, 5, 7))
    push_factored(cache, source=LayerSource("decoder.layers.1.cross", 1, kind="cross", stack="decoder", call=2))
    longer = AttentionCache()
    push_factored(longer, sinks=np.arange(4, dtype=np.float32), window=4, source=LayerSource(layer=7))
    part = longer.part(positions=slice(3, None))
    cache._take(part._layer(0), part.sources[0], 3)
    cache._query_tokens = (("a", "b", "c", "d", "e"),) * 2  # which fit some of the layers
    return cache


def replace(cache: AttentionCache, number: int, layer: AttentionCache) -> None:
    """Put the only layer of one cache in the place of a layer of another."""
    cache._take(layer._layer(0), layer.sources[0], range(cache.n_layers)[number])


def state(cache: AttentionCache) -> Any:
    """All bytes and numbers of a cache, comparable by ==."""
    layers = []
    for layer, (kind, shape, dtype) in enumerate(zip(cache.kinds, cache.shapes, cache.dtypes, strict=True)):
        memory = [(rows.shape, rows.tobytes()) for rows in cache._layer(layer).memory]
        options: Any = None
        if kind == "factored":
            options = (*cache._layer(layer).scoring, cache._layer(layer).has_given_lse)
            if options[-1]:
                sums = cache._layer(layer).row_sums
                assert sums is not None
                options = (*options, cache.lse(layer).tobytes(), *(each.tobytes() for each in sums))
        layers.append((kind, shape, dtype, memory, options))
    return layers, cache.sources, cache.tokens, cache.query_tokens, dict(cache.metadata)


def answers(cache: AttentionCache) -> list[bytes]:
    """The bits of every kind of answer of every layer."""
    found = []
    for layer, (batch_size, n_heads, seq_q, seq_k) in enumerate(cache.shapes):
        if not batch_size * seq_q * seq_k:
            continue
        for heads in ("mean", None) if n_heads else (None,):
            found += [cache.rows(layer, heads=heads, batch=-1).tobytes(), cache.columns(layer, heads=heads).tobytes()]
            top = cache.top_k(3, layers=layer, heads=heads)
            found += [top.positions.tobytes(), top.weights.tobytes()]
    return found
