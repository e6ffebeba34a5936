"""The index of the head mean: it changes no bit of any answer, is built when its rule says, and lives as long as it must.

Covered: every registered query under "off", "auto" and "eager", on every level and dtype; eager pushes of every source
that is converted; the ski-rental rule, query by query, against its own arithmetic written here; views, drop_index,
sizes; threads that ask, push, clear and drop at once; memory that cannot be had; arguments that change the cache while
they are read. Sizes: around 16, the block of the index, and layers of some MiB where threads and streams are used.
Tolerance: none. Not covered: speed, the index of factored layers.
"""

from __future__ import annotations

import functools
import gc
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attncache
from attncache import AttentionCache
from attncache.reference import QUERIES
from test_threads import fresh_process, run_together
from tests.support.patterns import DTYPES, Array, Shape, assert_same, make, meaning, rng, strided

POLICIES = ("off", "auto", "eager")


def cache_with(policy: Any, patterns: list[Array], dtype: Any = None) -> AttentionCache:
    cache = AttentionCache(dtype, index=policy)
    for pattern in patterns:
        cache.push(pattern)
    return cache


def index_bytes(*shapes: Shape) -> int:
    """What the indexes of all batch items of such layers take; a layer of no heads has none."""
    return sum(8 * batches * queries * keys for batches, heads, queries, keys in shapes if heads)


def build_all(cache: AttentionCache) -> None:
    """Asks until every batch item of every layer has its index."""
    for layer, shape in enumerate(cache.shapes):
        for batch in range(shape[0]):
            cache.head_mean(layer, batch)
            cache.head_mean(layer, batch)
    assert cache.index_nbytes == index_bytes(*cache.shapes)


def address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


class Meaning:
    """The reference, called like a cache."""

    def __init__(self, patterns: list[Array]) -> None:
        self.patterns = patterns

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **options: meaning(name, self.patterns, *args, **options)


# The same bits

Ask = Callable[..., Any]


def some(size: int) -> list[int]:
    """The first, last and middle position of an axis, if it has any."""
    return [0, size - 1, -1 - size // 2][:size]


def lines(ask: Ask, shape: Shape, size: int) -> list[Any]:
    answers = [
        ask(),
        ask(None, slice(None, None, -1), batch=None),
        ask([1, 0, 1], some(size), batch=[-1, 0][: shape[0]]),
        ask(0, None, heads=("mean", None)),
        ask(1, [], heads="mean"),
        ask(0, None, heads=None),
    ]
    return answers + [ask(-1, position, batch=-1) for position in some(size)]


ANSWERS: dict[str, Callable[[Ask, Shape], list[Any]]] = {
    "attention_from_position": lambda ask, s: [ask(-1, q, batch=b) for q in some(s[2]) for b in range(s[0])],
    "attention_to_position": lambda ask, s: [ask(0, key, batch=b) for key in some(s[3]) for b in range(s[0])],
    "top_attended_positions": lambda ask, s: [ask(1, q, k, batch=-1) for q in some(s[2]) for k in (0, 1, 5, s[3] + 1)],
    "head_mean": lambda ask, s: [ask(layer, b) for layer in (0, -1) for b in range(s[0])],
    "rows": lambda ask, s: lines(ask, s, s[2]),
    "columns": lambda ask, s: lines(ask, s, s[3]),
    "edges": lambda ask, s: [
        ask(None, None, heads="mean"),
        ask(some(s[2]), some(s[3]), heads="mean", batch=None),
        ask(slice(None, None, 2), slice(None, None, -3), layers=[1, 0], heads=("mean", None), batch=[-1]),
        ask(None, [], layers=0, heads="mean"),
        ask(some(s[2]), None, heads=None),
        *[ask(s[2] - 1, s[3] - 1, layers=1, heads="mean") for _ in range(1) if s[2] and s[3]],
    ],
    "top_k": lambda ask, s: [
        tuple(ask(k, layers=layers, direction=direction, batch=batch))
        for k in (0, 1, 5, max(s))
        for layers, batch in ((None, None), (1, -1))
        for direction in ("from", "to")
    ],
}


@functools.cache
def two_layers(kind: str, shape: Shape, dtype: str) -> tuple[Array, Array]:
    return make(kind, shape, dtype, 0), make(kind, shape, dtype, 1)


@functools.cache
def expected_answers(name: str, kind: str, shape: Shape, dtype: str) -> list[Any]:
    return ANSWERS[name](functools.partial(meaning, name, two_layers(kind, shape, dtype)), shape)


def assert_answers(cache: AttentionCache, kind: str, shape: Shape, dtype: str, context: str) -> None:
    for name in QUERIES:
        answers = ANSWERS[name](getattr(cache, name), shape)
        for place, (actual, expected) in enumerate(
            zip(answers, expected_answers(name, kind, shape, dtype), strict=True)
        ):
            assert_same(actual, expected, f"{name}, answer {place}, {context} {kind} {shape} {dtype}")


def test_every_registered_query_is_asked_here() -> None:
    assert sorted(QUERIES) == sorted(ANSWERS)


AROUND_A_BLOCK = [(2, 3, 15, 17), (1, 5, 16, 16), (3, 2, 17, 15), (1, 4, 1, 33), (2, 1, 33, 1), (1, 1, 31, 32)]


@pytest.mark.parametrize("kind", ["extremes", "infinities", "signed_zeros", "nans"])
def test_every_query_has_the_same_bits_under_every_policy(kind: str, simd_level: str, dtype: str) -> None:
    for shape in AROUND_A_BLOCK:
        patterns = list(two_layers(kind, shape, dtype))
        off, auto, eager = (cache_with(policy, patterns) for policy in POLICIES)
        assert_answers(off, kind, shape, dtype, "off")
        assert off.index_nbytes == 0
        for turn in range(3):
            assert_answers(auto, kind, shape, dtype, f"auto, turn {turn}")
        assert auto.index_nbytes == index_bytes(shape, shape), "so many answers must have built it"
        assert eager.index_nbytes == index_bytes(shape, shape)
        assert_answers(eager, kind, shape, dtype, "eager")


@pytest.mark.parametrize("shape", [(2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0), (1, 0, 0, 0)], ids=str)
def test_layers_with_an_axis_of_no_size_answer_the_same_under_every_policy(shape: Shape, dtype: str) -> None:
    empty = list(two_layers("zeros", shape, dtype))
    for policy in POLICIES:
        cache = cache_with(policy, empty)
        for _ in range(3):
            assert_answers(cache, "zeros", shape, dtype, policy)
        if policy != "off":
            build_all(cache)
        assert np.isnan(cache.head_mean(0)).all(), "the mean of no heads, or no weights"


def test_layers_without_batch_items_have_no_index() -> None:
    for policy in POLICIES:
        cache = cache_with(policy, [np.zeros((0, 2, 3, 4), np.float16)])
        for _ in range(3):
            assert cache.rows(batch=None).shape == (1, 0, 3, 4)
            assert cache.columns(0, 3, batch=[]).shape == (0, 3)
            assert cache.top_k(2, batch=None, direction="to").weights.shape == (1, 0, 4, 2)
        assert cache.index_nbytes == 0


def test_large_layers_have_the_same_bits_on_every_thread_count(threads: int, dtype: str) -> None:
    pattern = make("extremes", (2, 4, 259, 517), dtype)
    means = [meaning("head_mean", [pattern], 0, batch) for batch in range(2)]
    for policy in ("auto", "eager"):
        cache = cache_with(policy, [pattern])
        build_all(cache)
        for batch, mean in enumerate(means):
            assert_same(cache.head_mean(0, batch), mean)
            assert_same(cache.columns(0, batch=batch), np.ascontiguousarray(mean.T))
            assert_same(cache.attention_to_position(0, 516, batch), np.ascontiguousarray(mean[:, 516]))
            assert_same(cache.attention_from_position(0, 258, batch), mean[258])


def test_an_index_built_on_one_level_answers_on_another(dtype: str) -> None:
    pattern = make("extremes", (1, 5, 33, 65), dtype)
    expected = meaning("head_mean", [pattern], 0)
    for built_on in attncache.simd.available():
        with attncache.simd.use(built_on):
            cache = cache_with("eager", [pattern])
        for asked_on in attncache.simd.available():
            with attncache.simd.use(asked_on):
                assert_same(cache.rows(0), expected)
                assert_same(cache.columns(0), np.ascontiguousarray(expected.T))
                assert_same(cache.edges(None, None, layers=0, heads="mean"), expected)


# The copy that makes the index on its way


def unaligned(pattern: Array) -> Array:
    memory = np.zeros(pattern.nbytes + 8, np.uint8)[1 : 1 + pattern.nbytes]
    memory[:] = np.frombuffer(pattern.tobytes(), np.uint8)
    return memory.view(pattern.dtype).reshape(pattern.shape)


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
                    plain, eager = cache_with("off", [array], stored), cache_with("eager", [array], stored)
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
        plain, eager = cache_with("off", [base], name), cache_with("eager", [base], name)
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


def asked_until_built(cache: AttentionCache, ask: Callable[[], Any]) -> int:
    """How many times `ask` is called until an index is there; that call included."""
    for count in range(1, 5000):
        ask()
        if cache.index_nbytes:
            return count
    raise AssertionError("no index was built")


SHAPE: Shape = (2, 3, 21, 35)


@pytest.mark.parametrize(
    ("ask", "cost"),
    [
        (lambda cache: cache.attention_from_position(0, 5), lambda rule: rule.row),
        (lambda cache: cache.attention_from_position(0, 5, out=np.empty(35, np.float32)), lambda rule: rule.row),
        (lambda cache: cache.top_attended_positions(0, 5, 3), lambda rule: rule.row),
        (lambda cache: cache.attention_to_position(0, 5), lambda rule: rule.column),
        (lambda cache: cache.head_mean(0), lambda rule: rule.layer),
        (lambda cache: cache.rows(0, 5), lambda rule: rule.row),
        (lambda cache: cache.rows(0, [5, 6, 5]), lambda rule: 3 * rule.row),
        (lambda cache: cache.rows(0, 5, heads=("mean", [0, 1, 2])), lambda rule: rule.row),
        (lambda cache: cache.columns(0, 5), lambda rule: rule.column),
        (lambda cache: cache.columns(0, [5, 6, 5]), lambda rule: min(3 * rule.column, rule.layer)),
        (lambda cache: cache.columns(0), lambda rule: rule.layer),
        (lambda cache: cache.edges(5, 6, layers=0, heads="mean"), lambda rule: rule.edge),
        (lambda cache: cache.edges([5, 6], [7, 8, 9], layers=0, heads="mean"), lambda rule: 6 * rule.edge),
        (lambda cache: cache.edges(None, None, layers=0, heads="mean"), lambda rule: rule.layer),
        (lambda cache: cache.top_k(2, layers=0, positions=[5, 6]), lambda rule: 2 * rule.row),
        (lambda cache: cache.top_k(2, layers=0, positions=[5, 6], direction="to"), lambda rule: 2 * rule.column),
    ],
)
def test_auto_builds_with_the_query_that_makes_it_pay(
    ask: Callable[[AttentionCache], Any], cost: Callable[[Rule], int], dtype: str
) -> None:
    cache, rule = cache_with("auto", [make("soft", SHAPE, dtype)]), Rule(SHAPE, dtype)
    wanted = math.ceil(rule.build / min(cost(rule), rule.layer))
    assert asked_until_built(cache, lambda: ask(cache)) == wanted
    assert cache.index_nbytes == rule.one, "of the batch item asked about, and of no other"
    cache.drop_index()
    assert cache.index_nbytes == 0
    assert asked_until_built(cache, lambda: ask(cache)) == wanted, "counting starts afresh"


def test_auto_follows_the_rule_through_any_mixture_of_queries(dtype: str) -> None:
    shape: Shape = (2, 3, 11, 13)
    random = rng("mixture", dtype)
    for turn in range(10):
        cache = cache_with("auto", [make("soft", shape, dtype, layer) for layer in range(3)])
        rule = Rule(shape, dtype, 3)
        for step in range(120):
            kind, layer, batch, n = random.integers(0, [9, 3, 2, 5])
            positions = random.integers(0, 11, n)
            if kind == 0:
                cache.attention_from_position(layer, 3, batch)
                rule.count(rule.row, layer, batch)
            elif kind == 1:
                cache.attention_to_position(layer - 3, 3, batch - 2)
                rule.count(rule.column, layer, batch)
            elif kind == 2:
                cache.rows(None, positions, batch=None)
                for each in np.ndindex(3, 2):
                    rule.count(int(n) * rule.row, *each)
            elif kind == 3:
                cache.columns([layer, layer], positions, batch=batch)
                for _ in range(2):
                    rule.count(min(int(n) * rule.column, rule.layer), layer, batch)
            elif kind == 4:
                cache.edges(positions, [1, 2], layers=slice(layer, None), heads="mean", batch=batch)
                for each in range(layer, 3):
                    rule.count(min(2 * int(n) * rule.edge, rule.layer), each, batch)
            elif kind == 5:
                with pytest.raises(IndexError):
                    cache.attention_from_position(layer, 11, batch)
                with pytest.raises(IndexError):
                    cache.rows(None, [0, 11])
            elif kind == 6:
                cache.rows(layer, heads=None, batch=None)
                cache.edges(None, None)
            elif kind == 7 and step % 60 == 59:
                cache.drop_index()
                rule.spent[:], rule.built[:] = 0, False
            elif kind == 8:
                assert len(cache.top_attended_positions(layer, 3, 4, batch)) == 4
                rule.count(rule.row, layer, batch)
            assert cache.index_nbytes == rule.index_nbytes, f"turn {turn}, step {step}, kind {kind}"


def test_heads_that_are_not_the_mean_of_all_in_order_build_nothing(dtype: str) -> None:
    pattern = make("extremes", SHAPE, dtype)
    cache = cache_with("auto", [pattern])
    for heads in (None, 0, [0], [], slice(0, 2), ("mean", [0, 1]), ("mean", [1, 0, 2]), ("mean", [0, 1, 2, 2])):
        for _ in range(3):
            for name, args in (("rows", (0,)), ("columns", (0,)), ("edges", (None, None)), ("top_k", (3,))):
                answer = getattr(cache, name)(*args, heads=heads)
                expected = meaning(name, [pattern], *args, heads=heads)
                assert_same(tuple(answer) if name == "top_k" else answer, expected, f"{name} {heads}")
    assert cache.index_nbytes == 0


def test_an_index_for_the_mean_of_all_heads_leaves_other_heads_alone(dtype: str) -> None:
    pattern = make("extremes", SHAPE, dtype)
    cache = cache_with("eager", [pattern])
    for heads in (None, 1, [2, 0], ("mean", [0, 1]), ("mean", [2, 1, 0]), ("mean", [])):
        assert_same(cache.rows(0, heads=heads, batch=None), meaning("rows", [pattern], 0, heads=heads, batch=None))


def test_nothing_is_ever_built_under_off() -> None:
    cache = cache_with("off", [make("soft", SHAPE, "float16")])
    for _ in range(200):
        cache.head_mean(0)
        cache.attention_from_position(0, 0)
        cache.columns()
    cache.drop_index()
    assert cache.index_nbytes == 0
    assert address(cache.head_mean(0)) != address(cache.head_mean(0, out=np.empty((21, 35), np.float32)))


def test_each_batch_item_and_layer_has_an_index_of_its_own() -> None:
    cache = cache_with("auto", [make("soft", SHAPE, "float16", layer) for layer in range(2)])
    for count, (layer, batch) in enumerate([(1, 0), (0, 1), (1, 1), (0, 0)], 1):
        cache.head_mean(layer, batch)
        assert cache.index_nbytes == (count - 1) * index_bytes((1, *SHAPE[1:]))
        cache.head_mean(layer, batch)
        assert cache.index_nbytes == count * index_bytes((1, *SHAPE[1:]))


# What is handed out


@pytest.mark.parametrize("policy", ["auto", "eager"])
def test_views_of_the_index_lie_in_one_block_and_are_not_copied(policy: str, dtype: str) -> None:
    shape: Shape = (2, 3, 17, 19)
    cache = cache_with(policy, [make("soft", shape, dtype)])
    build_all(cache)
    for batch in range(2):
        start = address(cache.head_mean(0, batch))
        assert start % 64 == 0
        for query in range(17):
            row = cache.attention_from_position(0, query, batch)
            assert (
                address(row) == address(cache.attention_from_position(0, query - 17, batch)) == start + query * 19 * 4
            )
            assert row.shape == (19,)
        columns = address(cache.attention_to_position(0, 0, batch))
        assert columns % 64 == 0
        assert start + 17 * 19 * 4 <= columns < start + 17 * 19 * 4 + 64, "both halves are one allocation"
        for key in range(19):
            column = cache.attention_to_position(0, key, batch)
            assert address(column) == columns + key * 17 * 4
            assert column.shape == (17,)


def test_views_of_the_index_are_read_only_and_stay_so() -> None:
    cache = cache_with("eager", [make("soft", SHAPE, "float16")])
    for view in (cache.head_mean(0), cache.attention_from_position(0, 1), cache.attention_to_position(0, 1)):
        assert type(view) is np.ndarray
        assert view.dtype == np.float32
        assert view.flags.c_contiguous
        assert view.flags.aligned
        assert not view.flags.owndata
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.setflags(write=True)
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
        assert memoryview(view).readonly


def test_selections_are_fresh_writable_arrays_with_an_index_too() -> None:
    cache = cache_with("eager", [make("soft", SHAPE, "float16")])
    before = cache.head_mean(0).copy()
    for array in (cache.rows(0), cache.columns(0), cache.edges(None, None, heads="mean"), cache.top_k(3).weights):
        assert array.flags.writeable
        assert array.flags.owndata
        array[...] = -1
    assert_same(cache.head_mean(0), before)


@pytest.mark.parametrize("forget", ["drop_index", "clear", "delete"])
def test_views_of_the_index_outlive_it(forget: str, dtype: str) -> None:
    pattern = make("extremes", (1, 3, 200, 300), dtype)
    mean = meaning("head_mean", [pattern], 0)
    for _ in range(5):
        cache = cache_with("eager", [pattern])
        views = cache.head_mean(0), cache.attention_from_position(0, 7), cache.attention_to_position(0, 8)
        if forget == "delete":
            del cache
        else:
            getattr(cache, forget)()
        gc.collect()
        junk = [np.full((200, 600), 9.0, np.float32) for _ in range(8)]
        assert_same(views[0], mean)
        assert_same(views[1], mean[7])
        assert_same(views[2], np.ascontiguousarray(mean[:, 8]))
        del junk


def test_dropped_indexes_are_built_again_when_they_pay() -> None:
    for policy in ("auto", "eager"):
        cache = cache_with(policy, [make("soft", SHAPE, "float16")])
        for _ in range(3):
            build_all(cache)
            before = cache.attention_from_position(0, 3).copy()
            cache.drop_index()
            cache.drop_index()
            assert cache.index_nbytes == 0
            assert_same(cache.attention_from_position(0, 3), before)
            assert cache.index_nbytes == 0, "one row does not pay for it"


def test_sizes_and_repr_tell_the_index() -> None:
    shape: Shape = (2, 4, 64, 64)
    cache = cache_with("auto", [make("soft", shape, "float16")] * 2)
    layers = 2 * 2 * 4 * 64 * 64 * 2
    assert (cache.nbytes, cache.index_nbytes) == (layers, 0)
    assert "index" not in repr(cache)
    cache.head_mean(0)
    cache.head_mean(0)
    assert (cache.nbytes, cache.index_nbytes) == (layers + 32768, 32768)
    assert repr(cache) == "AttentionCache(2 layers of [2, 4, 64, 64] float16, 164 kB of which 32.8 kB index)"
    cache.drop_index()
    assert (cache.nbytes, cache.index_nbytes) == (layers, 0)
    assert "index" not in repr(cache)
    build_all(cache)
    cache.clear()
    assert (cache.nbytes, cache.index_nbytes) == (0, 0)


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


# Threads

LARGE: Shape = (1, 8, 384, 512)


@functools.cache
def large() -> tuple[Array, Array]:
    """A layer whose queries release the GIL, and its mean."""
    pattern = make("extremes", LARGE, "float16")
    return pattern, meaning("head_mean", [pattern], 0)


def test_first_queries_of_many_threads_build_one_index(threads: int) -> None:
    pattern, mean = large()
    cache = cache_with("auto", [pattern])
    asks: list[Callable[[], tuple[Array, Array]]] = [
        lambda: (cache.head_mean(0), mean),
        lambda: (cache.rows(0), mean),
        lambda: (cache.columns(0), np.ascontiguousarray(mean.T)),
        lambda: (cache.attention_from_position(0, 383), mean[383]),
        lambda: (cache.attention_to_position(0, 511), np.ascontiguousarray(mean[:, 511])),
        lambda: (cache.edges(None, None, layers=0, heads="mean"), mean),
        lambda: (cache.head_mean(0), mean),
        lambda: (cache.head_mean(0, out=np.empty(mean.shape, np.float32)), mean),
    ]

    def job(ask: Callable[[], tuple[Array, Array]]) -> Callable[[], None]:
        return lambda: assert_same(*ask())

    for _ in range(4):
        for _ in range(2):
            run_together(*map(job, asks))
        assert cache.index_nbytes == index_bytes(LARGE)
        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(lambda _: address(cache.head_mean(0)), range(16)))) == 1
        cache.drop_index()


@pytest.mark.parametrize("change", ["drop", "push", "clear"])
@pytest.mark.parametrize("policy", ["auto", "eager"])
def test_threads_ask_while_another_changes_the_cache(policy: str, change: str) -> None:
    pattern, mean = large()
    cache = cache_with(policy, [pattern])
    small = [np.full((1, 1, 1, place % 3), 1.0, np.float32) for place in range(50)]
    done = threading.Event()
    turned = np.ascontiguousarray(mean.T)

    def alter() -> None:
        try:
            for turn in range(60):
                if change == "drop":
                    cache.drop_index()
                    cache.head_mean(0)
                elif change == "push":
                    cache.push(small[turn % 50])
                    cache.push(pattern)
                elif turn % 3 == 2:
                    cache.clear()
                    cache.push(pattern)
                else:
                    cache.drop_index()
        finally:
            done.set()

    asks: list[tuple[Callable[[], Any], Array]] = [
        (lambda: cache.head_mean(0), mean),
        (lambda: cache.attention_from_position(0, 300), mean[300]),
        (lambda: cache.attention_to_position(0, 500), turned[500]),
        (lambda: cache.rows(0, slice(100, 384)), mean[100:]),
        (lambda: cache.columns(0), turned),
        (lambda: cache.top_k(1, layers=0).weights, np.max(mean, axis=1, keepdims=True)),
        (lambda: np.array(cache.top_attended_positions(0, 5, 1), np.float32)[:, 1], mean[5].max(keepdims=True)),
    ]

    def ask_all() -> None:
        views: list[tuple[Array, Array]] = []
        while not done.is_set():
            for ask, expected in asks:
                try:
                    answer = ask()
                except IndexError:  # between clear and push
                    continue
                except ValueError:
                    assert change == "clear"
                    continue
                assert_same(answer, expected)
                views.append((answer, expected))
            assert cache.index_nbytes % 8 == 0
            assert "AttentionCache" in repr(cache)
        for view, expected in views[-20:]:
            assert_same(view, expected)

    run_together(alter, ask_all, ask_all)
    for _ in range(2):
        assert_same(cache.head_mean(0), mean)
    pushed = 61 if change == "push" else 1
    if policy == "eager" and change == "push":
        assert cache.index_nbytes == index_bytes(*cache.shapes)
    assert sum(shape == LARGE for shape in cache.shapes) == pushed


# Memory that cannot be had

NO_MEMORY = """
import resource
import numpy as np
import attncache
attncache.set_num_threads(1)
shape = (1, 2, 2900, 2900)  # an index of 67 MB
pattern = np.broadcast_to(np.linspace(0, 1, 2900, dtype=np.float16), shape).copy()
pattern.setflags(write=False)
cache, eager = attncache.AttentionCache(), attncache.AttentionCache(index="eager")
cache.push(pattern)
expected = pattern[0].mean(axis=0, dtype=np.float32)[0]
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20), hard))
for _ in range(3 * 2900):
    row = cache.attention_from_position(0, 7)
assert (row == expected).all() and row.base is None
top = cache.top_k(3, layers=0, positions=[5, 6])
assert (top.positions == np.argsort(-expected, kind="stable")[:3]).all()
assert cache.index_nbytes == 0
try:
    eager.push(pattern)
except MemoryError:
    assert eager.n_layers == 0 and eager.nbytes == 0
else:
    raise AssertionError("an eager push needs the memory")
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
for _ in range(2 * 2900):
    row = cache.attention_from_position(0, 7)
assert (row == expected).all()
assert cache.index_nbytes == 8 * 2900 * 2900
print("done")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of the process is read from /proc")
def test_no_memory_for_an_index_is_no_error_unless_it_was_asked_for(tmp_path: Path) -> None:
    ran = fresh_process(tmp_path, NO_MEMORY)
    assert (ran.returncode, ran.stdout.strip()) == (0, "done"), ran.stderr


NO_HEADS = """
import numpy as np
import attncache
# No bytes of weights, but 2**61 (query, key) pairs: the bytes of an index do not fit into 64 bits.
endless = np.empty((1, 0, 2**31, 2**30), np.float16)
cache = attncache.AttentionCache()
cache.push(endless)
for _ in range(3):
    assert np.isnan(cache.edges(0, 0, layers=0, heads="mean"))
    assert np.isnan(cache.edges([1, 2], [3], layers=0, heads="mean")).all()
assert cache.index_nbytes == 0 and cache.nbytes == 0
eager = attncache.AttentionCache(index="eager")
try:
    eager.push(endless)
except (MemoryError, ValueError):
    assert eager.n_layers == 0
else:
    assert eager.index_nbytes == 0
print("done")
"""


def test_an_index_whose_bytes_overflow_is_not_built(tmp_path: Path) -> None:
    ran = fresh_process(tmp_path, NO_HEADS)
    assert (ran.returncode, ran.stdout.strip()) == (0, "done"), ran.stderr


# Arguments that change the cache while they are read

CHANGES = """
import sys
import numpy as np
import attncache
pattern = np.linspace(0, 1, 2 * 64 * 64, dtype=np.float32).reshape(1, 2, 64, 64)
tiny = np.ones((1, 1, 1, 1), np.float32)
class Index:
    def __init__(self, act, value):
        self.act, self.value = act, value
    def __index__(self):
        self.act()
        return self.value
def clear(cache):
    cache.clear()
def replace(cache):
    cache.clear()
    for _ in range(2):
        cache.push(tiny)
def grow(cache):
    for _ in range(100):
        cache.push(tiny)
def drop(cache):
    cache.drop_index()
calls = {
    "from": lambda cache, index: cache.attention_from_position(1, index(60)),
    "from, batch": lambda cache, index: cache.attention_from_position(1, 60, index(0)),
    "to": lambda cache, index: cache.attention_to_position(1, index(60)),
    "top": lambda cache, index: cache.top_attended_positions(1, index(60), 3),
    "top, k": lambda cache, index: cache.top_attended_positions(1, 60, index(3)),
    "mean": lambda cache, index: cache.head_mean(1, index(0)),
    "layer": lambda cache, index: cache.attention_from_position(index(1), 0),
    "rows": lambda cache, index: cache.rows([0, 1], [0, index(60)]),
    "rows, layers": lambda cache, index: cache.rows([1, index(1)], 60),
    "rows, heads": lambda cache, index: cache.rows([1, 0], 60, heads=[index(1)]),
    "columns, batch": lambda cache, index: cache.columns([1, 0], 60, batch=index(0)),
    "edges": lambda cache, index: cache.edges([60], [index(60)], layers=1),
    "top_k": lambda cache, index: cache.top_k(index(3), layers=1, positions=60),
    "get_layer": lambda cache, index: cache.get_layer(index(1)),
    "item": lambda cache, index: cache[index(1)],
    "slice": lambda cache, index: cache[index(0):2],
}
n_right = 0
for policy in ("off", "auto", "eager"):
    for name, call in calls.items():
        for act in (clear, replace, grow, drop):
            cache = attncache.AttentionCache(index=policy)
            cache.push(pattern)
            cache.push(pattern)
            print(policy, name, act.__name__, file=sys.stderr, flush=True)
            right = call(cache, lambda value: value)
            try:
                found = call(cache, lambda value: Index(lambda: act(cache), value))
            except (IndexError, ValueError):
                assert act in (clear, replace)
                continue
            if found is None:
                assert (name, act) == ("get_layer", clear)
                continue
            same = found == right if isinstance(right, list) else all(map(np.array_equal, found, right))
            assert same or act is replace, "the answer is about the layers before or after the change"
            n_right += bool(same)
assert n_right >= 2 * 3 * len(calls)
print("done")
"""

LISTS_THAT_SHRINK = """
import numpy as np
import attncache
cache = attncache.AttentionCache()
cache.push(np.ones((1, 1, 4, 4), np.float32))
class Shrinks:
    def __index__(self):
        positions.clear()
        return 100
    def __str__(self):
        return "a position"
for _ in range(10):
    positions = [Shrinks(), 0, 1]
    try:
        cache.rows(0, positions)
    except IndexError:
        continue
    raise AssertionError("100 is out of range")
print("done")
"""

IMPORTS_THAT_CLEAR = """
import builtins
import ml_dtypes
import numpy as np
import attncache
pattern = np.ones((1, 2, 64, 64), np.float32)
cache = attncache.AttentionCache("bfloat16")
original = builtins.__import__
def clearing(*args, **options):
    if args[0] == "ml_dtypes":
        cache.clear()
    return original(*args, **options)
for view_of in (lambda: cache.get_layer(0), lambda: cache[0], lambda: cache[:][-1]):
    cache.push(pattern)
    cache.push(pattern)
    builtins.__import__ = clearing
    try:
        view = view_of()
    except IndexError:
        continue
    finally:
        builtins.__import__ = original
    junk = [np.full((1, 2, 64, 64), 7.0) for _ in range(20)]
    assert (view.astype(np.float32) == 1).all()
print("done")
"""

COLLECTIONS_THAT_CLEAR = """
import gc
import numpy as np
import attncache
class Cycle:
    def __init__(self, cache):
        self.cache, self.me = cache, self
    def __del__(self):
        self.cache.clear()
for ask in (lambda c: c.shapes, lambda c: c.dtypes, lambda c: c[:], lambda c: c.patterns, lambda c: c.nbytes,
            lambda c: c.attention_from_position(0, 0), lambda c: c.top_attended_positions(0, 0, 2),
            lambda c: c.rows(), lambda c: c.head_mean(0)):
    for threshold in range(1, 40):
        cache = attncache.AttentionCache()
        for _ in range(300):
            cache.push(np.ones((1, 1, 2, 2), np.float32))
        gc.collect()
        gc.disable()
        Cycle(cache)
        gc.set_threshold(threshold, 1, 1)
        gc.enable()
        try:
            found = ask(cache)
        except (IndexError, ValueError):
            found = None
        gc.set_threshold(700, 10, 10)
        repr(found)
print("done")
"""


@pytest.mark.parametrize(
    "code",
    [CHANGES, LISTS_THAT_SHRINK, IMPORTS_THAT_CLEAR, COLLECTIONS_THAT_CLEAR],
    ids=["indices", "lists that shrink", "an import", "a garbage collection"],
)
def test_a_cache_that_changes_while_a_question_is_read_answers_or_says_no(code: str, tmp_path: Path) -> None:
    ran = fresh_process(tmp_path, code, PYTHONMALLOC="debug")  # what is freed is overwritten
    assert (ran.returncode, ran.stdout.strip()) == (0, "done"), ran.stderr[-400:]
