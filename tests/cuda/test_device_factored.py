"""Queries and keys on a device: every option of push_qk, every query that is answered there, errors.

Sizes: as far as the options show; groups of 1 to 3 heads for a key head. Tolerance of weights: the bound written in
cpp/include/attncache/factored.hpp, with nothing added; everything else by bits, against the rows of the same layer.
Not covered: long sequences, the kernel by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, reference
from cuda.placing import ThroughInterface, put
from tests.support import factored
from tests.support.patterns import Array, assert_same, meaning

pytestmark = pytest.mark.usefixtures("on_device")
SHAPE = {"batch": 2, "heads": 6, "key_heads": 2, "head_dim": 24}


def both(query: Array, key: Array, **options: Any) -> tuple[AttentionCache, AttentionCache]:
    """The same layer on the device and in CPU memory."""
    on_device, cpu = AttentionCache(), AttentionCache()
    on_device.push_qk(put(query), put(key), **options)
    cpu.push_qk(query, key, **options)
    return on_device, cpu


def assert_within_bound(weights: Array, pattern: Any, bound: Any) -> None:
    error = np.abs(weights.astype(np.float64) - pattern)
    assert (error <= bound).all(), f"off by {(error - bound).max()} more than the bound"
    assert (weights[pattern == 0] == 0).all()


@pytest.mark.parametrize("option", factored.OPTIONS)
def test_weights_lie_within_the_written_bound_for_every_option(option: str) -> None:
    for seq_q, seq_k in ((33, 33), (7, 70), (70, 7)):
        query, key = factored.layer(seq_q, seq_k, **SHAPE)
        options = factored.options_of(option, 2, 6, seq_k)
        cache, _ = both(query, key, **options)
        expected = reference.factored(query, key, **options)
        assert_within_bound(cache.rows(0, heads=None, batch=None), expected.pattern, expected.bound)


@pytest.mark.parametrize("key_heads", [1, 2, 3, 6])
def test_heads_in_groups_read_their_key_head(key_heads: int, dtype: str) -> None:
    import ml_dtypes

    numpy_dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    query, key = factored.layer(9, 20, **{**SHAPE, "key_heads": key_heads}, dtype=numpy_dtype)
    cache, cpu = both(query, key)
    expected = reference.factored(query.astype(np.float32), key.astype(np.float32))
    assert_within_bound(cache.rows(heads=None, batch=None)[0], expected.pattern, expected.bound)
    assert (cache.kinds, cache.dtypes, cache.shapes) == (("factored",), (dtype,), ((2, 6, 9, 20),))
    assert cache.nbytes == cpu.nbytes
    assert "queries and keys on cuda:0" in repr(cache)


def test_given_sums_are_used_as_they_are() -> None:
    query, key = factored.layer(12, 12, **SHAPE)
    lse = reference.factored(query, key).lse.astype(np.float32)
    lse[0, 0, 3] = -np.inf
    for given in (lse, put(lse), ThroughInterface(lse)):
        cache, _ = both(query, key, lse=given)
        expected = reference.factored(query, key, lse=lse)
        assert_within_bound(cache.rows(heads=None, batch=None)[0], expected.pattern, expected.bound)
        assert (cache.rows(0, 3, heads=0) == 0).all()


@pytest.mark.parametrize("place", [lambda array: array, put, ThroughInterface], ids=["cpu", "dlpack", "interface"])
def test_options_may_lie_anywhere(place: Any) -> None:
    query, key = factored.layer(12, 12, **SHAPE)
    options = factored.options_of("everything", 2, 6, 12)
    cache, _ = both(query, key, **options)
    other = AttentionCache()
    placed = {**options, "key_mask": place(options["key_mask"]), "sinks": place(options["sinks"])}
    other.push_qk(put(query), put(key), **placed)
    assert_same(other.rows(heads=None), cache.rows(heads=None))


def test_options_in_bfloat16_are_widened() -> None:
    import ml_dtypes

    query, key = factored.layer(5, 5, **SHAPE)
    sinks = np.arange(6).astype(ml_dtypes.bfloat16)
    cache, _ = both(query, key, sinks=put(sinks))
    other, _ = both(query, key, sinks=sinks.astype(np.float32))
    assert_same(cache.rows(heads=None), other.rows(heads=None))


def test_every_query_has_the_bits_of_the_rows() -> None:
    query, key = factored.layer(9, 11, **SHAPE)
    cache, _ = both(query, key, window=5)
    pattern = cache.rows(0, heads=None, batch=None)
    for name, args, options in (
        ("attention_from_position", (0, -1, 1), {}),
        ("head_mean", (0,), {}),
        ("top_attended_positions", (0, 5, 4), {}),
        ("rows", ([0, 0], [3, 1]), {"heads": ("mean", [4, 1])}),
        ("rows", (0, 2), {"heads": [5, 0], "batch": None}),
        ("edges", ([8, 0], [10, 3]), {}),
        ("edges", (None, 4), {"heads": "mean", "batch": [1, 0]}),
        ("top_k", (3,), {"heads": None, "positions": [2, 8]}),
        ("top_k", (30,), {"batch": None}),
    ):
        assert_same(getattr(cache, name)(*args, **options), meaning(name, [pattern], *args, **options), name)


def test_lines_beyond_the_scratch_of_the_library_come_in_pieces_with_the_same_bits() -> None:
    query, key = factored.layer(150, 60, **SHAPE)  # 36 KB a head; the emulated library has 64 KB
    cache, _ = both(query, key)
    pattern = cache.rows(0, heads=None, batch=None)
    for name, args, options in (
        ("edges", (None, [3, 0]), {"batch": None}),
        ("top_k", (2,), {"heads": [4, 0], "batch": [1]}),
        ("top_k", (2,), {"heads": ("mean", [4, 0]), "batch": None}),
    ):
        asked = getattr(cache, name)(*args, layers=[0, 0], **options)
        assert_same(asked, meaning(name, [pattern], *args, layers=[0, 0], **options), name)


@pytest.mark.parametrize(("n_heads", "seq_q"), [(2, 127), (2, 128), (2, 129), (1, 1500), (192, 3)])
def test_edges_are_those_of_the_rows_however_many_there_are(n_heads: int, seq_q: int) -> None:
    query, key = factored.layer(seq_q, 5, batch=1, heads=n_heads, key_heads=n_heads, head_dim=2)
    cache, _ = both(query, key, causal=False)
    rows = cache.rows(layers=0, positions=None, heads=None)
    assert_same(cache.edges(None, [4, 0], layers=0, heads=None), np.ascontiguousarray(rows[..., [4, 0]]))


def test_dense_and_factored_layers_answer_together() -> None:
    query, key = factored.layer(9, 9, **SHAPE)
    cache, _ = both(query, key)
    pattern = cache.rows(0, heads=None, batch=None)
    cache.push(put(pattern))
    cache.push(put(pattern))
    cache.push_qk(put(query), put(key))
    for name, args in (("rows", ()), ("edges", (None, [1, 5])), ("top_k", (3,))):
        assert_same(getattr(cache, name)(*args, heads=[2, 0]), meaning(name, [pattern] * 4, *args, heads=[2, 0]))


def test_columns_of_queries_and_keys_are_answered_on_the_cpu() -> None:
    cache, cpu = both(*factored.layer(9, 9, **SHAPE), window=4, sinks=np.zeros(6, np.float32))
    for ask in (
        lambda cache: cache.columns(),
        lambda cache: cache.attention_to_position(0, 3),
        lambda cache: cache.top_k(2, direction="to").weights,
    ):
        with pytest.raises(
            ValueError, match=r"must be dense for columns on a device, got a factored one: cache\.cpu\(\)"
        ):
            ask(cache)
        assert_same(ask(cache.cpu()), ask(cpu))
    assert_same(cache.cpu().get_queries(0), cpu.get_queries(0))
    assert_same(cache.cpu().get_keys(0), cpu.get_keys(0))


def test_a_mask_and_sums_come_to_the_cpu_as_well() -> None:
    query, key = factored.layer(9, 9, **SHAPE)
    for options in (factored.options_of("everything", 2, 6, 9), {"lse": np.ones((2, 6, 9), np.float32)}):
        cache, cpu = both(query, key, **options)
        assert_same(cache.cpu().rows(heads=None, batch=None), cpu.rows(heads=None, batch=None))


def test_strided_queries_and_keys_are_taken_as_they_are() -> None:
    query, key = factored.layer(9, 9, **SHAPE)
    cache, _ = both(query, key)
    turned = [np.ascontiguousarray(each.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for each in (query, key)]
    strided, _ = both(*turned)
    assert_same(strided.rows(heads=None), cache.rows(heads=None))
    assert_same(strided.cpu().get_keys(0), key)


def test_what_does_not_fit_together_is_named() -> None:
    query, key = factored.layer(5, 5, **SHAPE)
    cache = AttentionCache()
    for one, other, message in (
        (put(query), key, "key lies in CPU memory"),
        (query, put(key), "query lies in CPU memory"),
        (put(query), put(key, 1), "one device, got cuda:0 and cuda:1"),
        (put(query), put(key.astype(np.float16)), "one dtype on a device, got float32 and float16"),
        (put(query), put(key[..., :-1]), "the same number of items"),
        (put(query[:, :5]), put(key), "a multiple of those of key"),
        (put(query.astype(np.float64)), put(key), "query must hold float16, bfloat16 or float32, got float64"),
    ):
        with pytest.raises(ValueError, match=message):
            cache.push_qk(one, other)
    for wrong, error in (({"copy": True}, ValueError), ({"copy": 1}, TypeError)):
        with pytest.raises(error, match=next(iter(wrong))):
            cache.push_qk(put(query), put(key), **wrong)
    for wrong in ({"sinks": put(np.zeros(5, np.float32))}, {"key_mask": put(np.ones((2, 4), bool))}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            cache.push_qk(put(query), put(key), **wrong)
    assert cache.is_empty
