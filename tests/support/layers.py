"""Every kind of layer that a cache may hold, one table for the tests that ask all of them the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from attncache import AttentionCache
from tests.support.factored import normal
from tests.support.patterns import cache_of, locked, make, strided

SHAPE = (2, 3, 7, 37)


def dense(index: Any = "auto", layout: Callable[[Any], Any] = lambda pattern: pattern) -> AttentionCache:
    return cache_of([layout(make("extremes", SHAPE, "float16", number)) for number in range(2)], index=index)


def factored(*, sums: bool = False, **options: Any) -> AttentionCache:
    cache = AttentionCache()
    for number in range(2):
        query, key = (normal((2, n_heads, n, 8), np.float16, number) for n_heads, n in ((3, 7), (1, 37)))
        cache.push_qk(query, key, **options)
        if sums:
            cache.lse(number)
    return cache


def appended() -> AttentionCache:
    cache = AttentionCache()
    for number in range(2):
        query, key = (normal((2, n_heads, n, 8), np.float32, number) for n_heads, n in ((3, 7), (1, 37)))
        cache.push_qk(query[:, :, :3], key[:, :, :33])
        cache.append_qk(number, query[:, :, 3:], key[:, :, 33:])
    return cache


def mixed() -> AttentionCache:
    cache = dense("eager").part(layers=0)
    query, key = (normal((2, n_heads, n, 8), np.float32) for n_heads, n in ((3, 7), (3, 37)))
    cache.push_qk(query, key, causal=False)
    return cache


def part() -> AttentionCache:
    cache = cache_of([make("extremes", (3, 5, 9, 39), "float32", number) for number in range(3)])
    return cache.part(layers=[2, 0], heads=[4, 0, 1], batch=[1, 0], positions=slice(2, None))


def part_of_factored() -> AttentionCache:
    cache = AttentionCache()
    for number in range(2):
        query, key = (normal((2, n_heads, n, 8), np.float32, number) for n_heads, n in ((4, 9), (2, 39)))
        cache.push_qk(query, key, window=6)
    return cache.part(heads=[0, 1, 3], positions=slice(2, None))


def saved(cache: AttentionCache, folder: Path, *, index: bool = False) -> Path:
    cache.save(folder / "cache.safetensors", index=index)
    return folder / "cache.safetensors"


def in_a_directory(folder: Path) -> AttentionCache:
    cache = AttentionCache.create(folder / "run")
    for layer in dense():
        cache.push(layer)
    return cache


EVERYTHING: dict[str, Any] = {"scale": 0.7, "window": 9, "softcap": 3.0, "sinks": np.ones(3, np.float32)}
LAYERS: dict[str, Callable[[Path], AttentionCache]] = {
    "dense": lambda _: dense("off"),
    "dense, indexed by and by": lambda _: dense("auto"),
    "dense, indexed at once": lambda _: dense("eager"),
    "borrowed": lambda _: dense(layout=locked),
    "from a strided source": lambda _: dense(layout=lambda pattern: strided(pattern)["backwards"]),
    "factored": lambda _: factored(),
    "factored, sums known": lambda _: factored(sums=True),
    "factored, every option": lambda _: factored(**EVERYTHING),
    "factored, given sums": lambda _: factored(lse=normal((2, 3, 7))),
    "factored and appended to": lambda _: appended(),
    "dense and factored": lambda _: mixed(),
    "a part": lambda _: part(),
    "a part of factored layers": lambda _: part_of_factored(),
    "mapped from a file": lambda folder: AttentionCache.load(saved(dense(), folder)),
    "mapped with its index": lambda folder: AttentionCache.load(saved(dense(), folder, index=True)),
    "read from a file": lambda folder: AttentionCache.load(saved(dense(), folder), mmap=False),
    "factored in a file": lambda folder: AttentionCache.load(saved(factored(**EVERYTHING), folder)),
    "in a directory that is written": in_a_directory,
}
