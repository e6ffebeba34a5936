"""The index of the head mean: what an eager push makes on its way, and when the rule of ski rental builds it.

Covered: eager pushes of every source that is converted, on every level; the rule, query by query, against its own
arithmetic written here. That it changes no bit of any answer is in test_queries.py.
Sizes: around 16, the block of the index. Tolerance: none. Not covered: speed, the index of factored layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attncache
from attncache import AttentionCache
from tests.support.calls import index_bytes
from tests.support.patterns import (
    DTYPES,
    Array,
    Shape,
    address,
    assert_same,
    cache_of,
    make,
    meaning,
    rng,
    strided,
    unaligned,
)

POLICIES = ("off", "auto", "eager")


def test_an_index_built_on_one_level_answers_on_another(dtype: str) -> None:
    pattern = make("extremes", (1, 5, 33, 65), dtype)
    expected = meaning("head_mean", [pattern], 0)
    for built_on in attncache.simd.available():
        with attncache.simd.use(built_on):
            cache = cache_of([pattern], index="eager")
        for asked_on in attncache.simd.available():
            with attncache.simd.use(asked_on):
                assert_same(cache.rows(0), expected)
                assert_same(cache.columns(0), np.ascontiguousarray(expected.T))
                assert_same(cache.edges(None, None, layers=0, heads="mean"), expected)


# The copy that makes the index on its way


def sources(pattern: Array) -> dict[str, Array]:
    """The same weights in every layout that a push must copy, by name."""
    found = {
        "plain": pattern,
        "unaligned": unaligned(pattern),
        "one head for all": np.broadcast_to(pattern[:, :1], pattern.shape),
        "one query for all": np.broadcast_to(pattern[:, :, :1], pattern.shape),
        "one key for all": np.broadcast_to(pattern[..., :1], pattern.shape),
        **strided(pattern),
    }
    if pattern.dtype.kind == "f":  # NumPy's own: bfloat16 is native always
        found["the other byte order"] = pattern.astype(pattern.dtype.newbyteorder())
    return found


@pytest.mark.parametrize("stored", [None, *DTYPES])
@pytest.mark.parametrize("source", [*DTYPES, "float64"])
def test_an_eager_push_stores_and_answers_what_a_plain_one_does(
    source: str, stored: str | None, simd_level: str
) -> None:
    made_of = "float32" if source == "float64" else source
    for shape in ((2, 3, 17, 33), (1, 2, 16, 5)):
        for kind in ("extremes", "infinities", "subnormals"):
            pattern = make(kind, shape, made_of)
            if source == "float64":
                pattern = pattern.astype(np.float64) * (1 + 2.0**-30)
            for layout, array in sources(pattern).items():
                with np.errstate(all="ignore"):
                    plain, eager = cache_of([array], stored, "off"), cache_of([array], stored, "eager")
                context = f"{layout}, {kind} {source} as {stored}"
                assert eager.dtypes == plain.dtypes
                assert_same(eager[0], plain[0], context)
                assert eager.index_nbytes == index_bytes(shape)
                for batch in range(shape[0]):
                    mean = plain.head_mean(0, batch)
                    assert_same(eager.head_mean(0, batch), mean, context)
                    assert_same(eager.columns(0, batch=batch), np.ascontiguousarray(mean.T), context)


def test_an_eager_push_of_borrowed_memory_borrows_it() -> None:
    pattern = make("soft", (2, 3, 17, 33), "float16")
    pattern.setflags(write=False)
    for copy in (None, False):
        cache = AttentionCache(index="eager")
        cache.push(pattern, copy=copy)
        assert address(cache[0]) == address(pattern)
        assert cache.index_nbytes == index_bytes((2, 3, 17, 33))
        assert_same(cache.head_mean(0, 1), meaning("head_mean", [pattern], 0, 1))


@pytest.mark.parametrize("source", [np.float16, np.float32, np.float64], ids=lambda kind: kind.__name__)
def test_copies_that_are_streamed_past_the_caches_are_the_same(source: Any, simd_level: str) -> None:
    length = 2903  # odd, and enough for 16 MiB of the narrowest dtype
    random = rng("streams")
    with np.errstate(all="ignore"):
        base = random.integers(0, 2**16, (1, 1, length, length), dtype=np.uint16).view(np.float16).astype(source)
    for name, dtype in DTYPES.items():
        plain, eager = cache_of([base], name, "off"), cache_of([base], name, "eager")
        assert plain.nbytes >= 16 << 20
        with np.errstate(all="ignore"):
            expected = base.astype(dtype)
        for cache in (plain, eager):
            stored = cache[0]
            assert stored.dtype == expected.dtype
            raw = f"u{expected.dtype.itemsize}"
            differ = stored.view(raw) != expected.view(raw)
            assert np.isnan(stored[differ].astype(np.float32)).all(), "only the payload of NaN may differ"
            assert np.isnan(expected[differ].astype(np.float32)).all()


# When it is built


class Rule:
    """The ski-rental rule as index.hpp states it, for caches of equal layers."""

    def __init__(self, shape: Shape, dtype: str, n_layers: int = 1) -> None:
        batches, heads, queries, keys = shape
        item = heads * np.dtype(DTYPES[dtype]).itemsize + 4
        stray = heads * 64 + 4
        self.row, self.column, self.edge = keys * item, queries * stray, stray
        self.layer, self.build = queries * keys * item, queries * keys * (item + 4)
        self.one = 8 * queries * keys
        self.spent = np.zeros((n_layers, batches), np.int64)
        self.built = np.zeros((n_layers, batches), bool)

    def count(self, cost: int, layer: int = 0, batch: int = 0) -> None:
        if self.built[layer, batch]:
            return
        self.spent[layer, batch] += cost
        if self.spent[layer, batch] >= self.build:
            self.built[layer, batch] = True
            self.spent[layer, batch] = 0

    @property
    def index_nbytes(self) -> int:
        return self.one * int(self.built.sum())


SHAPE: Shape = (2, 3, 21, 35)


Counted = Callable[[AttentionCache, Rule, int, int, Array], Any]
COUNTED: dict[str, Counted] = {  # ask something of a layer and a batch item at some positions; and what the rule counts
    "from": lambda c, r, layer, batch, _: (c.attention_from_position(layer, 3, batch), r.count(r.row, layer, batch)),
    "from, out": lambda c, r, layer, batch, _: (
        c.attention_from_position(layer, 3, batch, out=np.empty(13, np.float32)),
        r.count(r.row, layer, batch),
    ),
    "to": lambda c, r, layer, batch, _: (
        c.attention_to_position(layer - 3, 3, batch - 2),
        r.count(r.column, layer, batch),
    ),
    "top": lambda c, r, layer, batch, _: (c.top_attended_positions(layer, 3, 4, batch), r.count(r.row, layer, batch)),
    "mean": lambda c, r, layer, batch, _: (c.head_mean(layer, batch), r.count(r.layer, layer, batch)),
    "rows": lambda c, r, _layer, _batch, at: (
        c.rows(None, at, batch=None),
        [r.count(len(at) * r.row, *each) for each in np.ndindex(3, 2)],
    ),
    "rows of all heads by number": lambda c, r, layer, batch, _: (
        c.rows(layer, 5, heads=("mean", [0, 1, 2]), batch=batch),
        r.count(r.row, layer, batch),
    ),
    "columns": lambda c, r, layer, batch, at: (
        c.columns([layer, layer], at, batch=batch),
        [r.count(min(len(at) * r.column, r.layer), layer, batch) for _ in range(2)],
    ),
    "all columns": lambda c, r, layer, batch, _: (c.columns(layer, batch=batch), r.count(r.layer, layer, batch)),
    "edges": lambda c, r, layer, batch, at: (
        c.edges(at, [1, 2], layers=slice(layer, None), heads="mean", batch=batch),
        [r.count(min(2 * len(at) * r.edge, r.layer), each, batch) for each in range(layer, 3)],
    ),
    "top_k": lambda c, r, layer, batch, _: (
        c.top_k(2, layers=layer, positions=[5, 6], batch=batch),
        r.count(2 * r.row, layer, batch),
    ),
    "top_k to": lambda c, r, layer, batch, _: (
        c.top_k(2, layers=layer, positions=[5, 6], batch=batch, direction="to"),
        r.count(min(2 * r.column, r.layer), layer, batch),
    ),
    "each head": lambda c, _r, layer, _batch, _: (c.rows(layer, heads=None, batch=None), c.edges(None, None)),
}


@pytest.mark.parametrize("only", [None, *COUNTED])
def test_auto_builds_with_the_query_that_makes_it_pay(only: str | None, dtype: str) -> None:
    random = rng("mixture", dtype)
    for turn in range(1 if only else 10):
        cache = cache_of([make("soft", (2, 3, 11, 13), dtype, layer) for layer in range(3)])
        rule = Rule((2, 3, 11, 13), dtype, 3)
        for step in range(120):
            what, layer, batch, n = random.integers(0, [len(COUNTED), 3, 2, 5])
            COUNTED[only or list(COUNTED)[what]](cache, rule, int(layer), int(batch), random.integers(0, 11, n))
            if step % 7 == 0:
                with pytest.raises(IndexError):
                    cache.rows(None, [0, 11])
            if step == 59:
                cache.drop_index()
                rule.spent[:], rule.built[:] = 0, False
            assert cache.index_nbytes == rule.index_nbytes, f"turn {turn}, step {step}"


def test_heads_that_are_not_the_mean_of_all_in_order_build_nothing(dtype: str) -> None:
    pattern = make("extremes", SHAPE, dtype)
    cache = cache_of([pattern], index="auto")
    for heads in (None, 0, [0], [], slice(0, 2), ("mean", [0, 1]), ("mean", [1, 0, 2]), ("mean", [0, 1, 2, 2])):
        for _ in range(3):
            for name, args in (("rows", (0,)), ("columns", (0,)), ("edges", (None, None)), ("top_k", (3,))):
                answer = getattr(cache, name)(*args, heads=heads)
                expected = meaning(name, [pattern], *args, heads=heads)
                assert_same(tuple(answer) if name == "top_k" else answer, expected, f"{name} {heads}")
    assert cache.index_nbytes == 0


# What is handed out


def test_the_policy_is_told_and_cannot_be_set() -> None:
    assert AttentionCache().index == "auto"
    assert AttentionCache.with_capacity(3).index == "auto"
    for policy in POLICIES:
        cache = AttentionCache.with_capacity(3, "float16", index=policy)  # type: ignore[arg-type]
        assert cache.index == AttentionCache(index=policy).index == policy  # type: ignore[arg-type]
        with pytest.raises(AttributeError):
            cache.index = "off"  # type: ignore[misc]
    with pytest.raises(TypeError):
        AttentionCache(None, "off")  # type: ignore[misc]


@pytest.mark.parametrize("make_cache", [AttentionCache, functools.partial(AttentionCache.with_capacity, 2)])
def test_an_unknown_policy_is_a_value_error_and_a_wrong_kind_a_type_error(make_cache: Any) -> None:
    for policy in ("", "of", "OFF", "automatic", "eager ", "off\0", "\N{GREEK SMALL LETTER ALPHA}"):
        with pytest.raises(ValueError, match='index must be "off", "auto" or "eager"'):
            make_cache(index=policy)
    for wrong in (None, True, False, 0, 1.5, b"auto", bytearray(b"off"), ["auto"], np.str_):
        with pytest.raises(TypeError, match="index"):
            make_cache(index=wrong)
