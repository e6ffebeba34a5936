"""Factored layers: every option of push_qk against float64, every query against the rows of the same layer, errors, growth.

Sizes: head_dim 1 to 130 around every vector width and multiple of 8, sequences around the panel of 32 and the block of 256
keys, groups of 1 to 9 heads, sequences that differ. Tolerance of weights: the bound written in factored.hpp and computed by
reference.factored, nothing more. Everything that compares one query with another, one level with another or one thread
count with another compares bits.
Not covered: real models (test_models.py), speed (benchmarks/).
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import attncache
from attncache import AttentionCache, pattern_from_qk, progress, reference
from patterns import Array, assert_same

Options = dict[str, Any]


def normal(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> Array:
    """Normal numbers in a dtype; bfloat16 too."""
    return np.random.default_rng([*shape, seed]).standard_normal(shape, np.float32).astype(dtype)


def layer(
    seq_q: int = 40,
    seq_k: int = 40,
    *,
    batch: int = 2,
    heads: int = 6,
    key_heads: int = 2,
    head_dim: int = 24,
    dtype: Any = np.float32,
) -> tuple[Array, Array]:
    """Queries and keys of one layer."""
    return normal((batch, heads, seq_q, head_dim), dtype, 1), normal((batch, key_heads, seq_k, head_dim), dtype, 2)


def cache_of(query: Array, key: Array, **options: Any) -> AttentionCache:
    cache = AttentionCache()
    cache.push_qk(query, key, **options)
    return cache


def all_rows(cache: AttentionCache) -> Array:
    """Every weight of layer 0, [batch, head, query, key]."""
    return cache.rows(0, heads=None, batch=None)


def assert_within_bound(cache: AttentionCache, meaning: reference.Factored) -> None:
    weights = all_rows(cache).astype(np.float64)
    assert weights.shape == meaning.pattern.shape
    error = np.abs(weights - meaning.pattern)
    worst = np.unravel_index(np.argmax(error - meaning.bound), error.shape)
    assert (error <= meaning.bound).all(), f"at {worst}: {weights[worst]} for {meaning.pattern[worst]}"
    assert (weights[meaning.pattern == 0] == 0).all()
    lse = cache.lse(0).astype(np.float64)
    assert (np.isneginf(lse) == np.isneginf(meaning.lse)).all()
    finite = np.isfinite(meaning.lse)
    assert (np.abs(lse[finite] - meaning.lse[finite]) <= meaning.lse_bound[finite]).all()


def options_of(name: str, batch: int, heads: int, seq_k: int) -> Options:
    """One option of push_qk, by name, for such a layer."""
    rng = np.random.default_rng(seq_k)
    mask = rng.random((batch, seq_k)) > 0.3
    return {
        "plain": {},
        "bidirectional": {"causal": False},
        "scale": {"scale": 0.3},
        "window": {"window": 5},
        "window of one": {"window": 1},
        "window both ways": {"window": 4, "causal": False},
        "softcap": {"softcap": 2.5},
        "key mask": {"key_mask": mask},
        "left padding": {"key_mask": np.arange(seq_k) >= np.array([[0], [seq_k // 2]])[:batch]},
        "sinks": {"sinks": rng.standard_normal(heads).astype(np.float32)},
        "heavy sinks": {"sinks": np.full(heads, 90, np.float32)},
        "everything": {
            "scale": 0.7,
            "window": 9,
            "softcap": 3.0,
            "key_mask": mask,
            "sinks": rng.standard_normal(heads).astype(np.float32),
        },
    }[name]


OPTIONS = (
    "plain", "bidirectional", "scale", "window", "window of one", "window both ways", "softcap", "key mask",
    "left padding", "sinks", "heavy sinks", "everything",
)  # fmt: skip
SEQUENCES = ((1, 1), (31, 31), (33, 33), (40, 40), (1, 40), (7, 300), (300, 7), (255, 255), (257, 513), (16, 1000))


@pytest.mark.parametrize("option", OPTIONS)
def test_weights_and_sums_lie_within_the_written_bound_for_every_option(option: str, simd_level: str) -> None:
    for seq_q, seq_k in SEQUENCES if simd_level != "scalar" else SEQUENCES[:6]:
        query, key = layer(seq_q, seq_k)
        options = options_of(option, 2, 6, seq_k)
        assert_within_bound(cache_of(query, key, **options), reference.factored(query, key, **options))


@pytest.mark.parametrize("head_dim", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 80, 96, 128, 130])
def test_weights_lie_within_the_bound_for_every_head_dim(head_dim: int, dtype: str, simd_level: str) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    query, key = layer(35, 70, batch=1, heads=3, key_heads=1, head_dim=head_dim, dtype=kind)
    assert_within_bound(cache_of(query, key), reference.factored(query, key))


@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (2, 1), (3, 3), (4, 2), (9, 3), (12, 1), (13, 13), (300, 1)])
def test_heads_in_groups_read_their_key_head(heads: int, key_heads: int) -> None:
    query, key = layer(20, 30, heads=heads, key_heads=key_heads)
    assert_within_bound(cache_of(query, key), reference.factored(query, key))
    repeated = np.repeat(key, heads // key_heads, axis=1)
    assert_same(all_rows(cache_of(query, key)), all_rows(cache_of(query, repeated)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layer_with_any_options_lies_within_the_bound(data: st.DataObject) -> None:
    draw = data.draw
    key_heads, group, batch = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 2))
    seq_q, seq_k, head_dim = draw(st.integers(1, 70)), draw(st.integers(1, 600)), draw(st.integers(1, 40))
    size = draw(st.sampled_from([0.01, 1.0, 4.0, 30.0]))
    dtype = draw(st.sampled_from([np.float16, np.float32, ml_dtypes.bfloat16]))
    query = (size * normal((batch, key_heads * group, seq_q, head_dim), seed=draw(st.integers(0, 9)))).astype(dtype)
    key = normal((batch, key_heads, seq_k, head_dim), dtype, draw(st.integers(0, 9)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    options: Options = {"causal": draw(st.booleans())}
    if draw(st.booleans()):
        options["window"] = draw(st.integers(1, 650))
    if draw(st.booleans()):
        options["scale"] = draw(st.sampled_from([1e-3, 0.5, -0.25, 2.0]))
    if draw(st.booleans()):
        options["softcap"] = draw(st.sampled_from([0.05, 1.0, 50.0]))
    if draw(st.booleans()):
        options["key_mask"] = rng.random((batch, seq_k)) > draw(st.sampled_from([0.05, 0.5, 1.1]))
    sums = draw(st.sampled_from(["computed", "given", "with sinks"]))
    if sums == "given":
        right = reference.factored(query, key, **options).lse
        options["lse"] = (right + rng.normal(size=right.shape)).astype(np.float32)  # a little off: taken as it is
    elif sums == "with sinks":
        options["sinks"] = (size * rng.standard_normal(key_heads * group)).astype(np.float32)
    assert_within_bound(cache_of(query, key, **options), reference.factored(query, key, **options))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("sums_known", [False, True], ids=["sums unknown", "sums known"])
def test_every_query_has_the_bits_of_the_rows(option: str, sums_known: bool, simd_level: str) -> None:
    for seq_q, seq_k in ((40, 40), (7, 300), (70, 33)):
        query, key = layer(seq_q, seq_k)
        options = options_of(option, 2, 6, seq_k)
        rows = all_rows(cache_of(query, key, **options))
        cache = cache_of(query, key, **options)
        if sums_known:
            cache.lse(0)
        assert_queries_have_the_bits_of(cache, rows)


def assert_queries_have_the_bits_of(cache: AttentionCache, rows: Array) -> None:
    """Each query of layer 0 gives what its plain NumPy meaning gives on these rows."""
    seq_q, seq_k = rows.shape[2:]
    some_queries, some_keys = [seq_q - 1, 0, seq_q // 2, 0], [seq_k - 1, 0, seq_k // 3]
    calls: list[tuple[str, tuple[Any, ...], Options]] = [
        ("edges", (some_queries, some_keys), {"layers": 0, "batch": None}),
        ("edges", (-1, 0), {"heads": "mean"}),
        ("rows", (0, some_queries), {"heads": [5, 0, 3]}),
        ("rows", (0, some_queries), {"heads": ("mean", [4, 1, 2]), "batch": [1, 0]}),
        ("rows", (), {}),
        ("attention_from_position", (0, -1), {}),
        ("attention_from_position", (0, 0, 1), {}),
        ("top_attended_positions", (0, -1, 5), {"batch": 1}),
        ("head_mean", (0,), {"batch": 1}),
        ("top_k", (3,), {"layers": 0, "heads": None, "batch": None}),
        ("top_k", (seq_k,), {"positions": some_queries}),
        ("edges", (None, None), {"heads": [1], "batch": 1}),
        ("columns", (0, some_keys), {"heads": None, "batch": None}),
        ("columns", (), {"heads": ("mean", [0, 5])}),
        ("attention_to_position", (0, -1), {}),
        ("top_k", (4,), {"direction": "to", "heads": [0, 5]}),
        ("top_k", (seq_q + 1,), {"direction": "to", "positions": some_keys}),
    ]
    for name, args, keywords in calls:
        expected = reference.QUERIES[name].meaning([rows], *args, **keywords)
        assert_same(getattr(cache, name)(*args, **keywords), expected, f"{name}{args} {keywords}")
    assert_same(cache.get_layer(0), rows, "get_layer")
    assert_same(cache[0], rows)
    assert_same(cache.patterns[0], rows)


def test_levels_and_thread_counts_give_the_same_bits(dtype: str) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    query, key = layer(300, 530, head_dim=20, dtype=kind)
    options = options_of("everything", 2, 6, 530)
    before = attncache.get_num_threads()
    found: list[tuple[str, list[Array]]] = []
    try:
        for level, n_threads in itertools.product(attncache.simd.available(), (1, 2, 3)):
            attncache.set_num_threads(n_threads)
            with attncache.simd.use(level):
                cache = cache_of(query, key, **options)
                answers = [all_rows(cache), cache.columns(0, heads=None), cache.lse(0), cache.head_mean(0)]
            found.append((f"{level}, {n_threads} threads", answers))
    finally:
        attncache.set_num_threads(before)
    for setting, answers in found[1:]:
        for answer, first in zip(answers, found[0][1], strict=True):
            assert_same(answer, first, f"{setting} against {found[0][0]}")


def test_given_sums_are_used_as_they_are() -> None:
    query, key = layer()
    sums = cache_of(query, key).lse(0) + np.float32(0.5)
    cache = cache_of(query, key, lse=sums)
    expected = reference.factored(query, key)
    np.testing.assert_allclose(all_rows(cache), expected.pattern * np.exp(-0.5), rtol=4e-6, atol=1e-30)
    assert_same(cache.lse(0), sums)
    assert_queries_have_the_bits_of(cache, all_rows(cache))


def test_weights_far_beyond_given_sums_stop_at_e_to_the_88th(simd_level: str) -> None:
    query, key = layer()
    lse = np.full(query.shape[:3], -100, np.float32)
    weights = all_rows(cache_of(query, key, lse=lse))
    expected = reference.factored(query, key, lse=lse)
    assert expected.pattern.max() == np.exp(88)
    assert (np.abs(weights - expected.pattern) <= expected.bound).all()


@pytest.mark.parametrize("infinity", [np.inf, -np.inf])
def test_given_sums_that_are_infinite_mean_a_row_of_zeros(infinity: float) -> None:
    query, key = layer()
    sums = cache_of(query, key).lse(0).copy()
    sums[:, :, 3] = infinity
    cache = cache_of(query, key, lse=sums)
    assert (all_rows(cache)[:, :, 3] == 0).all()
    assert np.isneginf(cache.lse(0)[:, :, 3]).all()


def test_a_row_without_a_visible_key_is_all_zeros_and_leaves_the_mean_alone() -> None:
    query, key = layer()
    cache = cache_of(query, key, key_mask=np.arange(40) >= np.array([[10], [40]]))
    assert (cache.rows(0, 9) == 0).all()
    assert (cache.rows(0, 10) != 0).any()
    assert (cache.rows(0, batch=1) == 0).all()
    assert np.isneginf(cache.lse(0)[0, :, :10]).all()


def test_causal_queries_before_the_first_key_see_nothing() -> None:
    query, key = layer(seq_q=10, seq_k=4)
    rows = all_rows(cache_of(query, key))
    assert (rows[:, :, :6] == 0).all()
    assert_same(rows[:, :, 6, 0], np.ones((2, 6), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_spoils_the_rows_that_see_it_as_in_numpy(value: float, simd_level: str) -> None:
    query, key = layer()
    key[0, 0, 20, 3] = value
    meaning = reference.factored(query, key)
    cache = cache_of(query, key)
    assert (np.isnan(all_rows(cache)) == np.isnan(meaning.pattern)).all()
    assert np.isfinite(all_rows(cache)[0, :, :20]).all()
    assert_queries_have_the_bits_of(cache, all_rows(cache))


def test_a_number_that_is_none_in_a_hidden_key_spoils_nothing() -> None:
    query, key = layer()
    mask = np.ones((2, 40), bool)
    mask[:, 20] = False
    clean = all_rows(cache_of(query, key, key_mask=mask))
    key[:, :, 20] = np.nan
    assert_same(all_rows(cache_of(query, key, key_mask=mask)), clean)


def test_large_scores_do_not_overflow() -> None:
    query, key = layer()
    rows = all_rows(cache_of(100 * query, 100 * key, scale=1.0))
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(rows.sum(axis=-1), 1, rtol=1e-5)


def test_dense_and_factored_layers_answer_together() -> None:
    query, key = layer()
    pattern = pattern_from_qk(query, key)
    cache = AttentionCache(index="eager")
    cache.push(pattern)
    cache.push_qk(query, key)
    cache.push(pattern)
    assert cache.kinds == ("dense", "factored", "dense")
    for name, args in (("rows", ()), ("columns", (None, [3, 0])), ("edges", (None, [0, 5])), ("top_k", (4,))):
        for heads in ("mean", [2, 0], ("mean", [1, 2])):
            expected = reference.QUERIES[name].meaning([pattern] * 3, *args, heads=heads)
            assert_same(getattr(cache, name)(*args, heads=heads), expected, f"{name} {heads}")


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_a_pattern_of_queries_and_keys_is_rounded_once(dtype: str) -> None:
    query, key = layer(70, 70)
    dense = pattern_from_qk(query, key, dtype=dtype, window=9)  # type: ignore[arg-type]
    exact = all_rows(cache_of(query, key, window=9))
    assert not dense.flags.writeable
    assert_same(dense.astype(np.float32), exact.astype(dense.dtype).astype(np.float32))
    borrowed = AttentionCache()
    borrowed.push(dense, copy=False)


def test_a_factored_layer_takes_the_bytes_of_its_queries_and_keys() -> None:
    query, key = layer(dtype=np.float16)
    cache = cache_of(query, key)
    assert cache.nbytes == query.nbytes + key.nbytes
    cache.lse(0)
    assert cache.nbytes == query.nbytes + key.nbytes + 8 * query.shape[0] * query.shape[1] * query.shape[2]
    assert cache.index_nbytes == 0
    assert repr(cache) == f"AttentionCache(1 layer of [2, 6, 40, 40] as float16 queries and keys, {repr(cache)[-8:-1]})"


def test_a_cache_stores_queries_and_keys_in_its_dtype() -> None:
    query, key = layer()
    cache = AttentionCache(dtype="float16")
    cache.push_qk(query, key)
    assert cache.dtypes == ("float16",)
    assert_same(cache.get_queries(0), query.astype(np.float16))
    assert_same(cache.get_keys(0), key.astype(np.float16))
    assert_same(all_rows(cache), all_rows(cache_of(query.astype(np.float16), key.astype(np.float16))))


def test_read_only_arrays_are_borrowed_and_writable_ones_are_copied() -> None:
    query, key = layer()
    query.flags.writeable = False
    cache = cache_of(query, key)
    assert cache.get_queries(0).ctypes.data == query.ctypes.data
    assert cache.get_keys(0).ctypes.data != key.ctypes.data
    shared = cache_of(query, key, copy=False)
    assert shared.get_keys(0).ctypes.data == key.ctypes.data
    assert cache_of(query, key, copy=True).get_queries(0).ctypes.data != query.ctypes.data


def test_borrowed_arrays_live_as_long_as_their_layer_and_its_views() -> None:
    query, key = layer()
    expected = all_rows(cache_of(query, key))
    cache = cache_of(query, key, copy=False)
    view = cache.get_queries(0)
    kept = query.copy()
    del query, key
    assert_same(all_rows(cache), expected)
    cache.clear()
    assert_same(view, kept)


def test_strided_sources_give_the_same_answers() -> None:
    query, key = layer()
    expected = all_rows(cache_of(query, key))
    by_position = np.ascontiguousarray(query.swapaxes(1, 2)).swapaxes(1, 2)  # [batch, position, head, item] in memory
    assert_same(all_rows(cache_of(by_position, key[:, :, ::-1][:, :, ::-1])), expected)
    with pytest.raises(ValueError, match="copy=False cannot borrow this query"):
        cache_of(by_position, key, copy=False)


def test_positions_appended_one_by_one_equal_those_pushed_at_once() -> None:
    query, key = layer(130, 150)
    whole = cache_of(query, key)
    cache = cache_of(query[:, :, :90], key[:, :, :110])
    for position in range(90, 130):
        cache.append_qk(0, query[:, :, [position]], key[:, :, [position + 20]])
        if position == 100:
            before, rows = cache.get_queries(0), all_rows(cache)
            cache.lse(0)
    assert cache.shapes == whole.shapes
    assert_same(all_rows(cache), all_rows(whole))
    assert_queries_have_the_bits_of(cache, all_rows(whole))
    assert_same(before, query[:, :, :101])
    assert_same(rows[..., :100, :], all_rows(whole)[..., :100, :121])
    assert_same(cache.get_keys(0), key)


def test_appending_keeps_the_options_and_extends_the_mask() -> None:
    query, key = layer(60, 60)
    mask = np.random.default_rng(5).random((2, 60)) > 0.4
    options: Options = {"window": 12, "softcap": 4.0, "sinks": np.ones(6, np.float32)}
    cache = cache_of(query[:, :, :30], key[:, :, :30], key_mask=mask[:, :30], **options)
    cache.append_qk(-1, query[:, :, 30:45], key[:, :, 30:45], key_mask=mask[:, 30:45])
    cache.append_qk(-1, query[:, :, 45:], key[:, :, 45:], key_mask=mask[:, 45:])
    assert_same(all_rows(cache), all_rows(cache_of(query, key, key_mask=mask, **options)))


class ClearsWhenFreed(bytearray):
    """Memory that clears a cache when it is let go of."""

    cache: AttentionCache | None = None

    def __del__(self) -> None:
        if self.cache is not None:
            self.cache.clear()


@pytest.mark.parametrize("replace", ["append_qk", "_replace_layer"])
def test_a_layer_whose_memory_clears_the_cache_may_be_replaced(replace: str) -> None:
    query, key = layer(20, 20)
    cache = AttentionCache()
    cache.push_qk(query, key)
    memory = ClearsWhenFreed(key.tobytes())
    cache.push_qk(query, np.frombuffer(memory, np.float32).reshape(key.shape), copy=False)
    memory.cache = cache
    del memory
    assert cache.n_layers == 2
    if replace == "append_qk":
        cache.append_qk(1, query[:, :, :1], key[:, :, :1])
    else:
        other = AttentionCache()
        other.push(np.ones((1, 1, 2, 2), np.float32))
        cache._replace_layer(1, other)
    assert cache.is_empty


def test_two_layers_may_grow_from_one() -> None:
    query, key = layer(20, 20)
    caches = [cache_of(query[:, :, :8], key[:, :, :8]) for _ in range(2)]
    for cache in caches:
        cache.append_qk(0, query[:, :, 8:10], key[:, :, 8:10])
    kept = all_rows(caches[0])
    caches[0].append_qk(0, query[:, :, 10:], key[:, :, 10:])
    assert_same(all_rows(caches[0]), all_rows(cache_of(query, key)))
    assert_same(all_rows(caches[1]), kept)


def test_a_layer_with_given_sums_cannot_grow() -> None:
    query, key = layer()
    cache = cache_of(query, key, lse=np.zeros((2, 6, 40), np.float32))
    with pytest.raises(ValueError, match="lse"):
        cache.append_qk(0, query, key)
    assert cache.shapes == ((2, 6, 40, 40),)


BAD: dict[str, tuple[Options, type[Exception], str]] = {
    "three axes": ({"query": np.zeros((2, 3, 4))}, ValueError, r"query must have the 4 axes \[batch, head, query, item\]"),
    "integers": ({"key": np.zeros((2, 2, 40, 24), int)}, TypeError, "key must hold float16"),
    "batch sizes": ({"key": np.zeros((1, 2, 40, 24))}, ValueError, "one batch size, got 2 and 1"),
    "item sizes": ({"key": np.zeros((2, 2, 40, 23))}, ValueError, "same number of items, at least 1, got 24 and 23"),
    "head counts": ({"key": np.zeros((2, 4, 40, 24))}, ValueError, "multiple of those of key, got 6 and 4"),
    "no key heads": ({"key": np.zeros((2, 0, 40, 24))}, ValueError, "multiple of those of key, got 6 and 0"),
    "scale of text": ({"scale": "x"}, TypeError, "scale must be a number or None, got str"),
    "scale infinite": ({"scale": np.inf}, ValueError, "scale must be finite, got inf"),
    "scale too large": ({"scale": 1e300}, ValueError, "scale must be finite"),
    "causal of int": ({"causal": 1}, TypeError, "causal must be True or False, got int"),
    "window zero": ({"window": 0}, ValueError, "window must be at least 1, got 0"),
    "window of float": ({"window": 2.5}, TypeError, "window must be an int or None, got float"),
    "window of bool": ({"window": True}, TypeError, "window must be an int or None, got bool"),
    "softcap zero": ({"softcap": 0.0}, ValueError, "softcap must be greater than 0, got 0.0"),
    "softcap negative": ({"softcap": -1}, ValueError, "softcap must be greater than 0, got -1"),
    "mask shape": ({"key_mask": np.ones((2, 39), bool)}, ValueError, r"key_mask must be \[batch, key\] = \[2, 40\]"),
    "mask for each query": ({"key_mask": np.ones((2, 1, 40, 40), bool)}, ValueError, "push the dense pattern"),
    "additive mask": ({"key_mask": np.zeros((2, 40))}, TypeError, "an additive mask cannot be expressed"),
    "mask of twos": ({"key_mask": np.full((2, 40), 2)}, ValueError, "got values from 2 to 2"),
    "lse shape": ({"lse": np.zeros((2, 6, 39))}, ValueError, r"lse must be \[batch, head, query\] = \[2, 6, 40\]"),
    "lse of ints": ({"lse": np.zeros((2, 6, 40), int)}, TypeError, "lse must hold floats, got int64"),
    "sinks shape": ({"sinks": np.zeros(5)}, ValueError, r"sinks must be \[head\] = \[6\], got shape \[5\]"),
    "sums twice": ({"sinks": np.zeros(6), "lse": np.zeros((2, 6, 40))}, ValueError, "lse and sinks"),
    "copy of text": ({"copy": "yes"}, TypeError, "copy must be None, True or False"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_leaves_the_cache_as_it_was(case: str) -> None:
    query, key = layer()
    options, kind, message = BAD[case]
    arguments: Options = {"query": query, "key": key, **options}
    cache = cache_of(query, key)
    with pytest.raises(kind, match=message):
        cache.push_qk(arguments.pop("query"), arguments.pop("key"), **arguments)
    assert cache.n_layers == 1


def test_what_a_dense_layer_does_not_have_is_refused() -> None:
    cache = AttentionCache()
    cache.push(np.ones((1, 1, 2, 2), np.float32))
    for ask in (cache.lse, cache.get_queries, cache.get_keys):
        with pytest.raises(ValueError, match="layer must be a factored one, got 0, which is dense"):
            ask(0)
        with pytest.raises(IndexError, match="layer 1 is out of range for n_layers=1"):
            ask(1)
    with pytest.raises(ValueError, match="which is dense"):
        cache.append_qk(0, np.ones((1, 1, 1, 2), np.float32), np.ones((1, 1, 1, 2), np.float32))


@pytest.mark.parametrize(
    ("query_shape", "key_shape", "message"),
    [
        ((2, 6, 3, 23), (2, 2, 3, 23), "item"),
        ((2, 5, 3, 24), (2, 1, 3, 24), "head"),
        ((1, 6, 3, 24), (1, 2, 3, 24), "batch"),
        ((2, 6, 3, 24), (2, 2, 4, 24), "as many"),
        ((2, 6, 3, 24), (2, 3, 3, 24), "head"),
    ],
)
def test_appended_positions_must_fit_the_layer(query_shape: Any, key_shape: Any, message: str) -> None:
    query, key = layer()
    cache = cache_of(query, key)
    with pytest.raises(ValueError, match=message):
        cache.append_qk(0, normal(query_shape), normal(key_shape))
    assert_same(all_rows(cache), all_rows(cache_of(query, key)))


def test_out_of_range_positions_are_refused_as_in_dense_layers() -> None:
    cache = cache_of(*layer(4, 9))
    with pytest.raises(IndexError, match="position 10 is out of range for seq_q=4"):
        cache.attention_from_position(0, 10)
    with pytest.raises(IndexError, match="position 9 is out of range for seq_k=9"):
        cache.columns(0, 9)


@pytest.mark.parametrize(("seq_q", "seq_k", "batch"), [(0, 5, 2), (5, 0, 2), (0, 0, 1), (3, 3, 0)])
def test_empty_axes_give_empty_answers(seq_q: int, seq_k: int, batch: int) -> None:
    cache = cache_of(*layer(seq_q, seq_k, batch=batch))
    assert all_rows(cache).shape == (batch, 6, seq_q, seq_k)
    assert cache.columns(0, heads=None, batch=None).shape == (batch, 6, seq_k, seq_q)
    assert cache.edges([], [], layers=0).shape[-2:] == (0, 0) if batch else True
    assert cache.lse(0).shape == (batch, 6, seq_q)
    assert cache[0].shape == (batch, 6, seq_q, seq_k)


def test_results_can_be_written_into_out() -> None:
    query, key = layer()
    cache = cache_of(query, key)
    out = np.empty((6, 40, 40), np.float32)
    assert cache.rows(0, heads=None, out=out) is out
    assert_same(out, all_rows(cache)[0])
    row = np.empty(40, np.float32)
    assert_same(cache.attention_to_position(0, 3, out=row), cache.columns(0, 3))


def test_progress_is_told_and_may_stop_the_pass() -> None:
    query, key = layer(3000, 3000, batch=1, heads=8, key_heads=1, head_dim=64)
    cache = cache_of(query, key)
    with attncache.simd.use("scalar"):  # slow enough to be looked at
        told: list[tuple[int, int]] = []

        def stop(done: int, total: int) -> None:
            told.append((done, total))
            raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            cache.lse(0, progress=stop)
    assert len(told) == 1
    assert 0 < told[0][0] < told[0][1]
    assert np.isfinite(cache.lse(0)).all()
    with pytest.raises(TypeError, match="progress must be True, False, None or callable, got int"):
        cache.lse(0, progress=3)  # type: ignore[arg-type]


def test_iteration_holds_one_pattern_at_a_time() -> None:
    cache = AttentionCache()
    for _ in range(3):
        cache.push_qk(*layer(20, 20))
    patterns = iter(cache)
    held = weakref.ref(next(patterns))
    assert held() is None
    assert [len(each) for each in patterns] == [2, 2]
    assert list(map(len, cache)) == [2, 2, 2]


def test_a_bar_shows_how_far_the_pass_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    cache = cache_of(*layer(3000, 3000, batch=1, heads=8, key_heads=1, head_dim=64))
    with attncache.simd.use("scalar"):  # slow enough to be looked at
        cache.lse(0, progress=True)
    assert re.search(r"summing rows: percent [0-9]+ of 100 \n$", capsys.readouterr().err)


ASKS_A_LONG_LAYER = """
import resource
import numpy as np
import attncache

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

rng = np.random.default_rng(0)
query, key = (rng.standard_normal((1, heads, 20000, 16), np.float32) for heads in (4, 2))
cache = attncache.AttentionCache()
cache.push_qk(query, key)
before = peak()
cache.rows(0, [0, 9999, -1], heads=None)
cache.lse(0)
cache.columns(0, [0, 5, 19999])
cache.attention_to_position(0, 7)
cache.top_k(3, positions=slice(0, 20000, 100), heads=None)
cache.top_k(3, positions=[1, 2], direction="to")
cache.edges(slice(0, 200), slice(0, 200))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process in the unit that Linux has")
def test_no_query_holds_the_square_of_a_long_sequence() -> None:
    run = subprocess.run([sys.executable, "-c", ASKS_A_LONG_LAYER], capture_output=True, text=True, check=True)
    dense = 4 * 4 * 20000**2
    slab, buffers = 64 * 2**20, 32 * 2**20
    assert int(run.stdout) < slab + buffers < dense / 50


@pytest.mark.skipif(os.name != "posix", reason="sends itself a signal")
@pytest.mark.parametrize("ask", ["lse", "columns", "get_layer"])
def test_ctrl_c_ends_long_work_and_leaves_the_layer_as_it_was(ask: str, ctrl_c: None) -> None:
    query, key = layer(3000, 3000, batch=1, heads=8, key_heads=1, head_dim=64)
    cache = cache_of(query, key)
    before = cache.nbytes
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    with attncache.simd.use("scalar"):
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            getattr(cache, ask)(0)
    timer.join()
    assert cache.nbytes == before
    assert_same(cache.attention_to_position(0, 5), cache.head_mean(0)[:, 5])


def test_threads_that_need_the_sums_at_once_wait_for_one_pass() -> None:
    query, key = layer(800, 800, batch=1, heads=8, key_heads=1, head_dim=64)
    cache = cache_of(query, key)
    told: list[int] = []
    answers: list[Array] = []

    def ask(progress: Any) -> None:
        answers.append(cache.lse(0, progress=progress))

    with attncache.simd.use("scalar"):
        first = threading.Thread(target=ask, args=(lambda _, total: told.append(total),))
        first.start()
        while not told:
            time.sleep(0.01)
        others = [threading.Thread(target=ask, args=(lambda _, total: told.append(-total),)) for _ in range(2)]
        for thread in others:
            thread.start()
        for thread in (first, *others):
            thread.join()
    assert_same(answers[0], answers[1])
    assert_same(answers[0], answers[2])
    assert {total for total in told if total < 0} <= {-1}, "a thread that waits has no pieces of its own"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_during_the_pass_makes_its_own() -> None:
    query, key = layer(1500, 1500, batch=1, heads=4, key_heads=1, head_dim=32)
    cache = cache_of(query, key)
    right = cache_of(query, key).lse(0)
    told: list[int] = []
    with attncache.simd.use("scalar"):
        summing = threading.Thread(target=lambda: cache.lse(0, progress=lambda done, _: told.append(done)))
        summing.start()
        while not told and summing.is_alive():
            time.sleep(0.01)
        child = os.fork()
        if child == 0:
            attncache.simd.use("auto")
            os._exit(0 if np.array_equal(cache.lse(0), right) else 1)
        _, status = os.waitpid(child, 0)
        summing.join()
    assert os.waitstatus_to_exitcode(status) == 0


def test_threads_may_ask_while_another_appends() -> None:
    query, key = layer(200, 200, batch=1)
    whole = all_rows(cache_of(query, key))
    cache = cache_of(query[:, :, :1], key[:, :, :1])
    failures: list[str] = []

    def ask() -> None:
        for _ in range(60):
            rows = all_rows(cache)
            n = rows.shape[2]
            if not np.array_equal(rows, whole[:, :, :n, :n]):
                failures.append(f"rows of {n} positions differ")
            cache.attention_to_position(0, 0)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for position in range(1, 200):
        cache.append_qk(0, query[:, :, [position]], key[:, :, [position]])
    for thread in threads:
        thread.join()
    assert failures == []
    assert_same(all_rows(cache), whole)
