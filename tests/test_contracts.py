"""What docs/queries.md promises in words: order, ties, NaN, the limits of k, selectors, axes of no size.

Sizes: the smallest at which the rule shows, plus rows of 1 to 129 for order. Tolerance: none.
Not covered: numbers (test_queries.py, test_top_k_shapes.py), errors (test_errors.py), the face (test_face.py).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, TopK
from tests.support.calls import SELECTING, call, small
from tests.support.patterns import SIZES, assert_same, cache_of, make, meaning, rng


def row_cache(row: Any) -> AttentionCache:
    return cache_of([np.array(row, np.float32).reshape(1, 1, 1, -1)])


# Order, ties, NaN, k


def test_top_k_breaks_ties_toward_lower_positions(simd_level: str) -> None:
    for size in SIZES:
        cache = row_cache(np.full(size, 0.25))
        for k in {1, 2, size // 2, size - 1, size}:
            top = cache.top_k(k, layers=0, positions=0)
            assert top.positions.tolist() == list(range(min(k, size)))
            assert [position for position, _ in cache.top_attended_positions(0, 0, k)] == list(range(min(k, size)))


def test_top_k_treats_negative_zero_and_zero_as_equal(simd_level: str) -> None:
    row = np.array([-0.0, 0.0, -0.0, 1.0, 0.0, -1.0], np.float32)
    top = row_cache(row).top_k(6, layers=0, positions=0, heads=0)
    assert top.positions.tolist() == [3, 0, 1, 2, 4, 5]
    assert_same(top.weights, row[[3, 0, 1, 2, 4, 5]])


def test_top_k_puts_nan_after_every_number_in_ascending_position(simd_level: str) -> None:
    row = [np.nan, -np.inf, 1.0, np.nan, np.inf, -np.nan, 0.0, -5.0]
    expected = [4, 2, 6, 7, 1, 0, 3, 5]
    for k in range(9):
        top = row_cache(row).top_k(k, layers=0, positions=0)
        assert top.positions.tolist() == expected[:k]
        assert np.isnan(top.weights).tolist() == [place >= 5 for place in range(k)]
        assert [position for position, _ in row_cache(row).top_attended_positions(0, 0, k)] == expected[:k]


def test_top_k_orders_rows_longer_than_sixteen_bits_count(simd_level: str) -> None:
    row = rng("long").integers(0, 5000, 70001).astype(np.float32)
    row[[7, 69999]] = np.nan
    cache, expected = row_cache(row), meaning("top_k", [row.reshape(1, 1, 1, -1)], 70001)
    for k in (1, 100, 5000, 70000, 70001):
        top = cache.top_k(k)
        assert_same(top.positions, expected[0][..., :k])
        assert_same(top.weights, expected[1][..., :k])


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint64, np.intp], ids=lambda kind: kind.__name__)
def test_numpy_integers_are_integers_everywhere(kind: Callable[[int], Any]) -> None:
    cache, one = small(), kind(1)
    zero = kind(0)
    assert cache.top_attended_positions(zero, one, one, zero) == cache.top_attended_positions(0, 1, 1, 0)
    assert_same(cache.attention_from_position(zero, one, batch=zero), cache.attention_from_position(0, 1))
    assert_same(cache.rows(zero, one, heads=one, batch=zero), cache.rows(0, 1, heads=1, batch=0))
    assert_same(tuple(cache.top_k(one, layers=zero)), tuple(cache.top_k(1, layers=0)))
    assert_same(cache[zero], cache[0])
    view = cache.get_layer(zero)
    assert view is not None


def test_top_k_is_a_named_tuple_of_positions_and_weights() -> None:
    assert TopK._fields == ("positions", "weights")
    assert isinstance(small().top_k(1), TopK)
    positions, weights = small().top_k(2)
    assert positions.dtype == np.int64
    assert weights.dtype == np.float32


@pytest.mark.parametrize("name", SELECTING)
def test_no_layers_of_several_give_a_layer_axis_of_zero(name: str) -> None:
    cache = cache_of([make("soft", (2, 3, 4, 6))] * 2)
    whole = call(cache, name)
    empty: list[Any] = [[], slice(0, 0), np.array([], np.int64), range(0)]
    for layers in empty:
        none = call(cache, name, layers=layers)
        for one, all_layers in zip(*((r if name == "top_k" else (r,)) for r in (none, whole)), strict=True):
            assert one.shape == (0, *all_layers.shape[1:])
            assert one.dtype == all_layers.dtype


# Selections: which axes, in which order


def test_result_axes_come_as_layer_batch_head_query_key() -> None:
    cache = cache_of([make("soft", (2, 3, 4, 5))] * 6)
    assert cache.rows(layers=None, positions=3).shape == (6, 5)
    assert cache.rows(3, [2, 3], heads=None).shape == (3, 2, 5)
    assert cache.rows(heads=None, batch=None).shape == (6, 2, 3, 4, 5)
    assert cache.rows(0, 0, heads=0).shape == (5,)
    assert cache.columns(heads=None, batch=None).shape == (6, 2, 3, 5, 4)
    assert cache.columns(0, 0).shape == (4,)
    assert cache.edges([0, 1], [4, 3, 2]).shape == (6, 3, 2, 3)
    assert cache.edges([0, 1], [4, 3, 2], heads="mean", batch=None).shape == (6, 2, 2, 3)
    assert cache.top_k(2, heads=None, batch=None).weights.shape == (6, 2, 3, 4, 2)
    assert cache.top_k(2, heads=None, batch=None, direction="to").weights.shape == (6, 2, 3, 5, 2)


def test_a_single_edge_is_an_array_of_no_axes() -> None:
    pattern = make("soft", (1, 2, 4, 6))
    edge = cache_of([pattern]).edges(3, 5, layers=0, heads=1)
    assert_same(edge, np.array(pattern[0, 1, 3, 5]))


def test_a_mean_over_no_heads_is_nan() -> None:
    cache = small()
    empty: list[Any] = [[], slice(0, 0), np.array([], np.int64)]
    for heads in empty:
        assert np.isnan(cache.rows(0, heads=("mean", heads))).all()
        assert np.isnan(cache.columns(0, heads=("mean", heads))).all()
        assert np.isnan(cache.edges(0, 0, layers=0, heads=("mean", heads)))
        assert cache.top_k(3, layers=0, positions=0, heads=("mean", heads)).positions.tolist() == [0, 1, 2]


def test_all_keyword_arguments_are_accepted_by_name() -> None:
    cache = cache_of([make("soft", (2, 3, 4, 6))])
    assert_same(cache.attention_from_position(layer=0, position=1, batch=1), cache.attention_from_position(0, 1, 1))
    assert_same(cache.attention_to_position(batch=1, position=1, layer=0), cache.attention_to_position(0, 1, 1))
    by_name = cache.top_attended_positions(k=2, layer=0, from_position=1, batch=1)
    assert by_name == cache.top_attended_positions(0, 1, 2, 1)
    assert_same(cache.head_mean(layer=0, batch=1), cache.head_mean(0, 1))
    assert_same(cache.rows(layers=0, positions=1, heads=1, batch=1), cache.rows(0, 1, heads=1, batch=1))
    assert_same(cache.columns(layers=0, positions=1, heads=1, batch=1), cache.columns(0, 1, heads=1, batch=1))
    edges = cache.edges(from_positions=1, to_positions=2, layers=0, heads=1, batch=1)
    assert_same(edges, cache.edges(1, 2, layers=0, heads=1, batch=1))
    assert_same(tuple(cache.top_k(2, 0, 1)), tuple(cache.top_k(2, layers=0, positions=1)))
    named = cache.top_k(k=2, layers=0, positions=1, heads=1, batch=1, direction="to")
    assert_same(tuple(named), tuple(cache.top_k(2, layers=0, positions=1, heads=1, batch=1, direction="to")))
    assert cache.get_layer(layer=0) is not None


@pytest.mark.parametrize("name", SELECTING)
@pytest.mark.parametrize("argument", ["layers", "positions", "heads", "batch"])
@pytest.mark.parametrize("kind", ["int64", "int32", "uint8"])
def test_tensors_of_torch_select_as_arrays_of_numpy_do(name: str, argument: str, kind: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    cache = cache_of([make("soft", (2, 2, 4, 6), "float32", layer) for layer in range(2)])
    arguments = ["from_positions", "to_positions"] if (name, argument) == ("edges", "positions") else [argument]
    for numbers in ([1, 0, 1], [1], [], 1):
        tensor = torch.tensor(numbers, dtype=getattr(torch, kind))
        assert_same(
            call(cache, name, **dict.fromkeys(arguments, tensor)),
            call(cache, name, **dict.fromkeys(arguments, numbers)),
        )


# Zero-size axes


@pytest.mark.parametrize("index", ["off", "auto", "eager"])
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0), (0, 0, 0, 0)], ids=str)
def test_zero_size_axes_answer_with_zero_size_results(shape: tuple[int, int, int, int], index: str, dtype: str) -> None:
    patterns = [make("zeros", shape, dtype)]
    cache = cache_of(patterns, index=index)
    assert cache[0].shape == shape
    assert cache.nbytes == cache.index_nbytes
    for name in ("rows", "columns") * 3:
        heads_arguments: list[Any] = [None, "mean", ("mean", [])]
        batches: list[Any] = [None, [], 0] if shape[0] else [None, []]
        for heads, batch in itertools.product(heads_arguments, batches):
            expected = meaning(name, patterns, heads=heads, batch=batch)
            assert_same(getattr(cache, name)(heads=heads, batch=batch), expected, f"{name} {heads} {batch} {shape}")
    assert_same(cache.edges(None, None, batch=None), meaning("edges", patterns, None, None, batch=None))
    for direction in ("from", "to"):
        for k in (0, 3):
            options: dict[str, Any] = {"batch": None, "direction": direction}
            expected = meaning("top_k", patterns, k, **options)
            assert_same(tuple(cache.top_k(k, **options)), expected, f"top_k {k} {direction} {shape}")
    if shape[0] == 0:
        with pytest.raises(IndexError, match="batch 0 is out of range for batch_size=0"):
            cache.head_mean(0)
    else:
        assert_same(cache.head_mean(0), meaning("head_mean", patterns, 0))


def test_empty_axes_have_no_positions() -> None:
    no_keys = cache_of([np.zeros((1, 2, 3, 0), np.float32)])
    assert no_keys.attention_from_position(0, 2).shape == (0,)
    assert no_keys.top_attended_positions(0, 0, 5) == []
    with pytest.raises(IndexError, match="position 0 is out of range for seq_k=0"):
        no_keys.attention_to_position(0, 0)
    no_queries = cache_of([np.zeros((1, 2, 0, 3), np.float32)])
    assert no_queries.attention_to_position(0, 2).shape == (0,)
    with pytest.raises(IndexError, match="position 0 is out of range for seq_q=0"):
        no_queries.attention_from_position(0, 0)
    no_heads = cache_of([np.zeros((1, 0, 2, 3), np.float32)])
    assert np.isnan(no_heads.attention_from_position(0, 0)).all()
    assert [p for p, w in no_heads.top_attended_positions(0, 0, 5) if math.isnan(w)] == [0, 1, 2]


@pytest.mark.parametrize("selector", [[], (), range(0), slice(0, 0), np.array([], np.int64)], ids=repr)
def test_an_empty_selection_gives_an_axis_of_zero(selector: Any) -> None:
    cache = small()
    assert cache.rows(0, selector).shape == (0, 6)
    assert cache.columns(0, selector).shape == (0, 4)
    assert cache.rows(0, heads=selector).shape == (0, 4, 6)
    assert cache.rows(0, batch=selector).shape == (0, 4, 6)
    assert cache.edges(selector, 0, layers=0, heads="mean").shape == (0,)
    assert cache.top_k(2, layers=0, positions=selector).positions.shape == (0, 2)


# Which results are fresh, which are read-only


@pytest.mark.parametrize("name", ["attention_from_position", "attention_to_position", "head_mean"])
def test_results_that_may_be_views_are_read_only(name: str) -> None:
    args = (0,) if name == "head_mean" else (0, 1)
    result = getattr(small(), name)(*args)
    assert result.dtype == np.float32
    assert not result.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        result[...] = 0


@pytest.mark.parametrize("index", ["off", "eager"])
def test_selected_results_are_fresh_writable_arrays(index: str, dtype: str) -> None:
    pattern = make("soft", (1, 1, 3, 5), dtype)
    pattern.setflags(write=False)
    cache = cache_of([pattern], index=index)
    for heads in ("mean", None, 0):
        for name in SELECTING:
            options: dict[str, Any] = {"layers": 0, "heads": heads}
            first, second = call(cache, name, **options), call(cache, name, **options)
            for one, two in zip(*((r if name == "top_k" else (r,)) for r in (first, second)), strict=True):
                kept = two.copy()
                assert one.flags.writeable
                assert one.flags.owndata
                assert not np.shares_memory(one, two)
                assert not np.shares_memory(one, cache[0])
                one[...] = 7
                assert_same(two, kept)
                assert_same(cache[0], pattern)
