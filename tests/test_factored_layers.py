"""What push_qk and append_qk take and hold: memory, dtypes, growth, and what they refuse.

Sizes: up to 150 positions. Tolerance: none. Not covered: the weights (test_factored.py), kinds of numbers
(test_wrong_kinds.py).
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, pattern_from_qk
from tests.support.factored import Options, all_rows, assert_queries_have_the_bits_of, factored_of, layer, normal
from tests.support.patterns import assert_same


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_a_pattern_of_queries_and_keys_is_rounded_once(dtype: str) -> None:
    query, key = layer(70, 70)
    dense = pattern_from_qk(query, key, dtype=dtype, window=9)  # type: ignore[arg-type]
    exact = all_rows(factored_of(query, key, window=9))
    assert not dense.flags.writeable
    assert_same(dense.astype(np.float32), exact.astype(dense.dtype).astype(np.float32))
    borrowed = AttentionCache()
    borrowed.push(dense, copy=False)


def test_a_factored_layer_takes_the_bytes_of_its_queries_and_keys() -> None:
    query, key = layer(dtype=np.float16)
    cache = factored_of(query, key)
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
    assert_same(all_rows(cache), all_rows(factored_of(query.astype(np.float16), key.astype(np.float16))))


def test_read_only_arrays_are_borrowed_and_writable_ones_are_copied() -> None:
    query, key = layer()
    query.flags.writeable = False
    cache = factored_of(query, key)
    assert cache.get_queries(0).ctypes.data == query.ctypes.data
    assert cache.get_keys(0).ctypes.data != key.ctypes.data
    shared = factored_of(query, key, copy=False)
    assert shared.get_keys(0).ctypes.data == key.ctypes.data
    assert factored_of(query, key, copy=True).get_queries(0).ctypes.data != query.ctypes.data


def test_borrowed_arrays_live_as_long_as_their_layer_and_its_views() -> None:
    query, key = layer()
    expected = all_rows(factored_of(query, key))
    cache = factored_of(query, key, copy=False)
    view = cache.get_queries(0)
    kept = query.copy()
    del query, key
    assert_same(all_rows(cache), expected)
    cache.clear()
    assert_same(view, kept)


def test_strided_sources_give_the_same_answers() -> None:
    query, key = layer()
    expected = all_rows(factored_of(query, key))
    by_position = np.ascontiguousarray(query.swapaxes(1, 2)).swapaxes(1, 2)  # [batch, position, head, item] in memory
    assert_same(all_rows(factored_of(by_position, key[:, :, ::-1][:, :, ::-1])), expected)
    with pytest.raises(ValueError, match="copy=False cannot borrow this query"):
        factored_of(by_position, key, copy=False)


def test_positions_appended_one_by_one_equal_those_pushed_at_once() -> None:
    query, key = layer(130, 150)
    whole = factored_of(query, key)
    cache = factored_of(query[:, :, :90], key[:, :, :110])
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
    cache = factored_of(query[:, :, :30], key[:, :, :30], key_mask=mask[:, :30], **options)
    cache.append_qk(-1, query[:, :, 30:45], key[:, :, 30:45], key_mask=mask[:, 30:45])
    cache.append_qk(-1, query[:, :, 45:], key[:, :, 45:], key_mask=mask[:, 45:])
    assert_same(all_rows(cache), all_rows(factored_of(query, key, key_mask=mask, **options)))


class ClearsWhenFreed(bytearray):
    """Memory that clears a cache when it is let go of."""

    cache: AttentionCache | None = None

    def __del__(self) -> None:
        if self.cache is not None:
            self.cache.clear()


def test_a_layer_whose_memory_clears_the_cache_may_be_appended_to() -> None:
    query, key = layer(20, 20)
    cache = factored_of(query, key)
    memory = ClearsWhenFreed(key.tobytes())
    cache.push_qk(query, np.frombuffer(memory, np.float32).reshape(key.shape), copy=False)
    memory.cache = cache
    del memory
    assert cache.n_layers == 2
    cache.append_qk(1, query[:, :, :1], key[:, :, :1])
    assert cache.is_empty


def test_two_layers_may_grow_from_one() -> None:
    query, key = layer(20, 20)
    caches = [factored_of(query[:, :, :8], key[:, :, :8]) for _ in range(2)]
    for cache in caches:
        cache.append_qk(0, query[:, :, 8:10], key[:, :, 8:10])
    kept = all_rows(caches[0])
    caches[0].append_qk(0, query[:, :, 10:], key[:, :, 10:])
    assert_same(all_rows(caches[0]), all_rows(factored_of(query, key)))
    assert_same(all_rows(caches[1]), kept)


def test_a_layer_with_given_sums_cannot_grow() -> None:
    query, key = layer()
    cache = factored_of(query, key, lse=np.zeros((2, 6, 40), np.float32))
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
    cache = factored_of(query, key)
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
    cache = factored_of(query, key)
    with pytest.raises(ValueError, match=message):
        cache.append_qk(0, normal(query_shape), normal(key_shape))
    assert_same(all_rows(cache), all_rows(factored_of(query, key)))


@pytest.mark.parametrize(("seq_q", "seq_k", "batch"), [(0, 5, 2), (5, 0, 2), (0, 0, 1), (3, 3, 0)])
def test_empty_axes_give_empty_answers(seq_q: int, seq_k: int, batch: int) -> None:
    cache = factored_of(*layer(seq_q, seq_k, batch=batch))
    assert all_rows(cache).shape == (batch, 6, seq_q, seq_k)
    assert cache.columns(0, heads=None, batch=None).shape == (batch, 6, seq_k, seq_q)
    assert cache.edges([], [], layers=0).shape[-2:] == (0, 0) if batch else True
    assert cache.lse(0).shape == (batch, 6, seq_q)
    assert cache[0].shape == (batch, 6, seq_q, seq_k)


def test_iteration_holds_one_pattern_at_a_time() -> None:
    cache = AttentionCache()
    for _ in range(3):
        cache.push_qk(*layer(20, 20))
    patterns = iter(cache)
    held = weakref.ref(next(patterns))
    assert held() is None
    assert [len(each) for each in patterns] == [2, 2]
    assert list(map(len, cache)) == [2, 2, 2]
