"""What docs/queries.md promises in words: order, ties, NaN, the limits of k, selectors, errors and their messages, the face.

Sizes: the smallest at which the rule shows, plus rows of 1 to 129 for order. Tolerance: none.
Not covered: numbers (test_queries.py), what push accepts (test_push.py), lifetime (test_views.py).
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attncache
from attncache import AttentionCache, TopK
from attncache.reference import QUERIES
from tests.support.patterns import SIZES, Array, assert_same, cache_of, make, meaning, rng

SELECTING = ("rows", "columns", "edges", "top_k")
HOT = ("attention_from_position", "attention_to_position", "top_attended_positions", "head_mean")


def small() -> AttentionCache:
    """One layer of shape [1, 2, 4, 6]."""
    return cache_of([make("soft", (1, 2, 4, 6))])


def call(cache: AttentionCache, name: str, **options: Any) -> Any:
    """A selecting query with whatever it needs besides the options."""
    needed: dict[str, Any] = {"edges": {"from_positions": 0, "to_positions": 0}, "top_k": {"k": 2}}.get(name, {})
    return getattr(cache, name)(**(needed | options))


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


def test_top_k_keeps_the_lowest_of_the_ties_at_its_edge(simd_level: str) -> None:
    for size in (17, 64, 129, 1000):
        for k in (1, 3, 16, size // 2):
            row = rng("edge", size, k).integers(0, 3, size).astype(np.float32)
            expected = sorted(range(size), key=lambda position: (-row[position], position))[:k]
            assert row_cache(row).top_k(k, layers=0, positions=0).positions.tolist() == expected


def test_top_k_finds_the_heaviest_wherever_it_stands(simd_level: str) -> None:
    for size in (33, 129):
        for place in range(size):
            row = np.zeros(size, np.float32)
            row[place] = 1.0
            rest = [position for position in range(size) if position != place]
            assert row_cache(row).top_k(3, layers=0, positions=0).positions.tolist() == [place, *rest[:2]]


@pytest.mark.parametrize("order", ["rising", "falling"])
def test_top_k_sorts_rows_that_are_already_sorted(order: str, simd_level: str) -> None:
    row = np.arange(1000, dtype=np.float32)[:: 1 if order == "rising" else -1]
    positions = list(range(1000))[:: -1 if order == "rising" else 1]
    for k in (1, 10, 100, 999, 1000):
        assert row_cache(row).top_k(k, layers=0, positions=0).positions.tolist() == positions[:k]


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


def test_top_k_of_a_row_of_nan_gives_positions_in_order(simd_level: str) -> None:
    for size in SIZES:
        top = row_cache(np.full(size, np.nan)).top_k(size, layers=0, positions=0)
        assert top.positions.tolist() == list(range(size))
        assert np.isnan(top.weights).all()


def test_top_k_fills_up_with_nan_when_numbers_run_out(simd_level: str) -> None:
    for size in (17, 65, 129):
        row = np.full(size, np.nan)
        row[size // 2] = -np.inf
        assert row_cache(row).top_k(3, layers=0, positions=0).positions.tolist() == [size // 2, 0, 1]


def test_top_k_orders_rows_longer_than_sixteen_bits_count(simd_level: str) -> None:
    row = rng("long").integers(0, 5000, 70001).astype(np.float32)
    row[[7, 69999]] = np.nan
    cache, expected = row_cache(row), meaning("top_k", [row.reshape(1, 1, 1, -1)], 70001)
    for k in (1, 100, 5000, 70000, 70001):
        top = cache.top_k(k)
        assert_same(top.positions, expected[0][..., :k])
        assert_same(top.weights, expected[1][..., :k])


def test_top_k_of_zero_gives_nothing() -> None:
    top = small().top_k(0)
    assert top.positions.shape == top.weights.shape == (1, 4, 0)
    assert top.positions.dtype == np.int64
    assert top.weights.dtype == np.float32
    assert small().top_attended_positions(0, 0, 0) == []


@pytest.mark.parametrize("k", [6, 7, 100, 2**31, 2**32, 2**62, sys.maxsize, 2**64, 2**100], ids=str)
def test_k_beyond_the_row_gives_the_whole_row(k: int) -> None:
    cache = small()
    assert cache.top_k(k).positions.shape == (1, 4, 6)
    assert cache.top_k(k, direction="to").positions.shape == (1, 6, 4)
    assert len(cache.top_attended_positions(0, 0, k)) == 6


@pytest.mark.parametrize("k", [-1, -(2**31), -sys.maxsize, -(2**100), np.int64(-1)], ids=str)
def test_a_negative_k_is_a_value_error(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k must be at least 0, got {k}"):
        small().top_k(k)
    with pytest.raises(ValueError, match=rf"k must be at least 0, got {k}"):
        small().top_attended_positions(0, 0, k)


@pytest.mark.parametrize("k", [True, False, 1.0, "1", None, [1], np.float32(1), np.True_], ids=repr)
def test_k_of_the_wrong_kind_is_a_type_error(k: Any) -> None:
    with pytest.raises(TypeError, match="k"):
        small().top_k(k)
    with pytest.raises(TypeError, match="k"):
        small().top_attended_positions(0, 0, k)


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


def test_top_k_weights_are_the_stored_values(dtype: str) -> None:
    pattern = make("extremes", (1, 2, 3, 50), dtype)
    top = cache_of([pattern]).top_k(50, heads=None)
    widened = pattern[0].astype(np.float32)[None]
    assert_same(top.weights, np.take_along_axis(widened, top.positions, axis=-1))


@pytest.mark.parametrize("direction", ["", "both", "FROM", "query"])
def test_an_unknown_direction_is_a_value_error(direction: Any) -> None:
    with pytest.raises(ValueError, match="direction"):
        small().top_k(1, direction=direction)


def test_top_attended_positions_gives_plain_pairs() -> None:
    pairs = small().top_attended_positions(0, 0, 3)
    assert type(pairs) is list
    assert all(type(p) is tuple and type(p[0]) is int and type(p[1]) is float for p in pairs)


# Errors and their messages

OUT_OF_RANGE: list[tuple[str, str, Callable[[AttentionCache], Any]]] = [
    ("position 10 is out of range for seq_q=4", "from", lambda c: c.attention_from_position(0, 10)),
    ("position 4 is out of range for seq_q=4", "from edge", lambda c: c.attention_from_position(0, 4)),
    ("position -5 is out of range for seq_q=4", "from negative", lambda c: c.attention_from_position(0, -5)),
    ("position 6 is out of range for seq_k=6", "to", lambda c: c.attention_to_position(0, 6)),
    ("position -7 is out of range for seq_k=6", "to negative", lambda c: c.attention_to_position(0, -7)),
    ("from_position 4 is out of range for seq_q=4", "top", lambda c: c.top_attended_positions(0, 4, 1)),
    ("layer 3 is out of range for n_layers=1", "from layer", lambda c: c.attention_from_position(3, 0)),
    ("layer -2 is out of range for n_layers=1", "to layer", lambda c: c.attention_to_position(-2, 0)),
    ("layer 1 is out of range for n_layers=1", "top layer", lambda c: c.top_attended_positions(1, 0, 1)),
    ("layer 1 is out of range for n_layers=1", "mean layer", lambda c: c.head_mean(1)),
    ("batch 2 is out of range for batch_size=1", "from batch", lambda c: c.attention_from_position(0, 0, 2)),
    ("batch -2 is out of range for batch_size=1", "to batch", lambda c: c.attention_to_position(0, 0, batch=-2)),
    ("batch 1 is out of range for batch_size=1", "top batch", lambda c: c.top_attended_positions(0, 0, 1, batch=1)),
    ("batch 1 is out of range for batch_size=1", "mean batch", lambda c: c.head_mean(0, 1)),
    ("layer 3 is out of range for n_layers=1", "rows layers", lambda c: c.rows(3)),
    ("layer -2 is out of range for n_layers=1", "rows list of layers", lambda c: c.rows([0, -2])),
    ("position 10 is out of range for seq_q=4", "rows", lambda c: c.rows(0, 10)),
    ("position 10 is out of range for seq_q=4", "rows list", lambda c: c.rows(0, [0, 10, 11])),
    ("position -5 is out of range for seq_q=4", "rows array", lambda c: c.rows(0, np.array([0, -5]))),
    ("position 6 is out of range for seq_k=6", "columns", lambda c: c.columns(0, range(3, 9))),
    ("head 9 is out of range for n_heads=2", "rows heads", lambda c: c.rows(0, heads=9)),
    ("head 9 is out of range for n_heads=2", "rows mean of heads", lambda c: c.rows(0, heads=("mean", [0, 9]))),
    ("head -3 is out of range for n_heads=2", "edges heads", lambda c: c.edges(0, 0, heads=[-3])),
    ("batch 2 is out of range for batch_size=1", "rows batch", lambda c: c.rows(batch=2)),
    ("from_position 4 is out of range for seq_q=4", "edges from", lambda c: c.edges(4, 0)),
    ("to_position 6 is out of range for seq_k=6", "edges to", lambda c: c.edges(0, [6])),
    ("position 4 is out of range for seq_q=4", "top_k", lambda c: c.top_k(1, positions=4)),
    ("position 6 is out of range for seq_k=6", "top_k to", lambda c: c.top_k(1, positions=6, direction="to")),
    ("layer 1 is out of range for n_layers=1", "item", lambda c: c[1]),
    ("layer -2 is out of range for n_layers=1", "negative item", lambda c: c[-2]),
    (f"position {2**100} is out of range for seq_q=4", "huge", lambda c: c.attention_from_position(0, 2**100)),
    (f"layer {-(2**100)} is out of range for n_layers=1", "huge layer", lambda c: c.head_mean(-(2**100))),
    (f"position {2**63 - 1} is out of range", "largest", lambda c: c.attention_from_position(0, 2**63 - 1)),
    (f"position {-(2**63)} is out of range", "smallest", lambda c: c.attention_to_position(0, -(2**63))),
    (f"position {2**32} is out of range", "wraps in 32 bits", lambda c: c.attention_from_position(0, 2**32)),
    (f"position {2**64} is out of range", "wraps in 64 bits", lambda c: c.attention_from_position(0, 2**64)),
    (f"position {2**100} is out of range", "huge in rows", lambda c: c.rows(0, [2**100])),
    (f"position {2**64 - 1} is out of range", "uint64", lambda c: c.rows(0, np.array([2**64 - 1], np.uint64))),
]


@pytest.mark.parametrize(("message", "place", "query"), OUT_OF_RANGE, ids=[place for _, place, _ in OUT_OF_RANGE])
def test_out_of_range_is_an_index_error_that_names_argument_value_and_size(
    message: str, place: str, query: Callable[[AttentionCache], Any]
) -> None:
    with pytest.raises(IndexError, match=rf"^{message}"):
        query(small())


@pytest.mark.parametrize("name", HOT)
def test_any_layer_is_out_of_range_in_an_empty_cache(name: str) -> None:
    args = {"head_mean": (), "top_attended_positions": (0, 1)}.get(name, (0,))
    with pytest.raises(IndexError, match="layer 0 is out of range for n_layers=0"):
        getattr(AttentionCache(), name)(0, *args)


NOT_AN_INDEX = [True, False, 1.0, "0", None, [0], (0,), np.float64(0), np.True_, slice(None), object()]


@pytest.mark.parametrize("index", NOT_AN_INDEX, ids=lambda index: type(index).__name__ + repr(index)[:8])
@pytest.mark.parametrize("argument", ["layer", "position", "batch"])
def test_an_index_of_the_wrong_kind_is_a_type_error(argument: str, index: Any) -> None:
    given = {"layer": 0, "position": 0, "batch": 0, argument: index}
    for query in (small().attention_from_position, small().attention_to_position):
        with pytest.raises(TypeError, match=argument):
            query(**given)
    from_position = given.pop("position")
    with pytest.raises(TypeError, match=argument):
        small().top_attended_positions(from_position=from_position, k=1, **given)
    if argument != "position":
        with pytest.raises(TypeError, match=argument):
            small().head_mean(**given)


NOT_A_SELECTOR: dict[str, Any] = {
    "bool": True,
    "float": 1.0,
    "string": "0",
    "bool array": np.array([True]),
    "bool list": [False, True],
    "bool in list": [0, True],
    "float list": [0.0],
    "float array": np.array([0.0, 1.0]),
    "2-D array": np.array([[0]]),
    "nested list": [[0]],
    "string list": ["0"],
    "None in list": [None],
    "object": object(),
    "set": {0},
    "dict": {0: 0},
    "numpy bool": np.True_,
    "numpy float": np.float32(0),
    "bytes": b"\0",
}


@pytest.mark.parametrize("kind", NOT_A_SELECTOR)
@pytest.mark.parametrize("argument", ["layers", "positions", "heads", "batch"])
@pytest.mark.parametrize("name", SELECTING)
def test_a_selector_of_the_wrong_kind_is_a_type_error(name: str, argument: str, kind: str) -> None:
    arguments = ["from_positions", "to_positions"] if (name, argument) == ("edges", "positions") else [argument]
    for each in arguments:
        options: dict[str, Any] = {each: NOT_A_SELECTOR[kind]}
        needed: dict[str, Any] = {"from_positions": 0, "to_positions": 0} if name == "edges" else {}
        needed |= {"k": 1} if name == "top_k" else {}
        with pytest.raises(TypeError, match=each):
            getattr(small(), name)(**(needed | options))


HEADS = ["median", "", "MEAN", ("mean", "all"), ("median", [0]), ("mean", True), ("mean", [0.5]), ("mean", [0], [1])]


@pytest.mark.parametrize("heads", HEADS, ids=repr)
@pytest.mark.parametrize("name", SELECTING)
def test_heads_of_the_wrong_kind_is_a_type_error(name: str, heads: Any) -> None:
    with pytest.raises(TypeError, match="heads"):
        call(small(), name, heads=heads)


@pytest.mark.parametrize("argument", ["layers", "batch", "positions"])
def test_only_heads_can_be_averaged(argument: str) -> None:
    for averaged in ("mean", ("mean", [0])):
        options: dict[str, Any] = {argument: averaged}
        with pytest.raises(TypeError, match=argument):
            small().rows(**options)


def test_a_slice_of_step_zero_or_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step|zero"):
        small().rows(0, slice(None, None, 0))
    with pytest.raises(TypeError):
        small().rows(0, slice(0.0, 1.0))


@pytest.mark.parametrize("name", SELECTING)
def test_layers_of_different_shapes_are_a_value_error_that_names_both(name: str) -> None:
    patterns = [make("soft", (1, 2, 4, 6)), make("soft", (1, 2, 4, 6)), make("soft", (1, 2, 4, 7))]
    cache = cache_of(patterns)
    for layers in (None, [0, 2], slice(1, None), (2, 0)):
        with pytest.raises(ValueError, match=r"1, 2, 4, [67].*1, 2, 4, [67]") as error:
            call(cache, name, layers=layers)
        assert "1, 2, 4, 6" in str(error.value)
        assert "1, 2, 4, 7" in str(error.value)
    assert_same(cache.rows([1, 0]), meaning("rows", patterns, [1, 0]))
    assert_same(cache.rows(2), meaning("rows", patterns, 2))
    call(cache, name, layers=[2])


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


@pytest.mark.parametrize("name", SELECTING)
def test_no_layers_have_no_shape_when_shapes_differ_or_the_cache_is_empty(name: str) -> None:
    with pytest.raises(ValueError, match=r"layer|shape"):
        call(cache_of([make("soft", (1, 2, 4, 6)), make("soft", (1, 2, 4, 7))]), name, layers=[])
    with pytest.raises(ValueError, match=r"layer|empty"):
        call(AttentionCache(), name)
    with pytest.raises(ValueError, match=r"layer|empty"):
        call(AttentionCache(), name, layers=[])
    with pytest.raises(IndexError, match="layer 0 is out of range for n_layers=0"):
        call(AttentionCache(), name, layers=0)


def test_an_error_leaves_the_next_answer_right() -> None:
    cache, expected = small(), small().attention_from_position(0, 1)
    for _ in range(100):
        with pytest.raises(IndexError):
            cache.attention_from_position(0, 10)
        with pytest.raises(TypeError):
            cache.rows(0, "x")  # type: ignore[arg-type]
        assert_same(cache.attention_from_position(0, 1), expected)


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


def test_selectors_keep_duplicates_and_order() -> None:
    pattern = make("soft", (1, 4, 5, 6))
    cache = cache_of([pattern])
    assert_same(cache.rows(0, [3, 0, 3, -5], heads=[2, 2, 0]), pattern[0][[2, 2, 0]][:, [3, 0, 3, 0]])
    assert_same(cache.columns(0, [5, 5, 1], heads=1), np.ascontiguousarray(pattern[0, 1][:, [5, 5, 1]].T))
    assert_same(cache.rows([0, 0], 1, heads=0), np.stack([pattern[0, 0, 1]] * 2))


def test_a_mean_of_chosen_heads_adds_them_in_the_given_order(simd_level: str) -> None:
    pattern = make("extremes", (1, 5, 3, 33))
    cache = cache_of([pattern])
    differs = 0
    for heads in ([1, 3], [3, 1, 4], [4, 3, 1], [2, 2, 0, 4], slice(None, None, -1), None, (0,), np.array([4, 0, 2])):
        picked = pattern[0][heads if not isinstance(heads, tuple) else list(heads)]
        expected = np.zeros((3, 33), np.float32) if heads is not None else pattern[0].mean(axis=0)
        if heads is not None:
            for head in picked:
                expected = expected + head
            expected = expected / np.float32(len(picked))
        assert_same(cache.rows(0, heads=("mean", heads)), expected, f"mean of {heads}")
        differs += int((expected != cache.rows(0, heads="mean")).any())
    assert differs > 0


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


@pytest.mark.parametrize("name", SELECTING)
def test_a_mask_is_refused_with_the_way_to_its_positions(name: str) -> None:
    mask = np.array([True, False, True, False])
    torch_or_numpy = [mask, pytest.importorskip("torch", reason="needs torch").from_numpy(mask)]
    argument = "from_positions" if name == "edges" else "positions"
    for each in torch_or_numpy:
        with pytest.raises(TypeError, match=rf"{argument} must be .* array of bool; np.flatnonzero\(mask\) gives"):
            call(small(), name, **{argument: each})


def test_wrong_arguments_are_reported_of_the_class_that_users_know() -> None:
    for name in ("rows", "columns", "edges", "top_k"):
        with pytest.raises(TypeError, match=rf"^AttentionCache\.{name}\(\) got an unexpected keyword argument 'layer'"):
            getattr(small(), name)(layer=0)


def test_nested_positions_are_refused_as_such() -> None:
    with pytest.raises(TypeError, match=r"positions must be .* a sequence of ints, got a sequence of sequences"):
        small().rows(0, [[1, 2], [3, 4]])  # type: ignore[list-item]


WRONG_CALLS: dict[str, Callable[[AttentionCache], Any]] = {
    "too few": lambda c: c.attention_from_position(0),  # type: ignore[call-arg]
    "too many": lambda c: c.attention_from_position(0, 0, 0, 0),  # type: ignore[call-arg]
    "unknown name": lambda c: c.attention_from_position(0, 0, head=1),  # type: ignore[call-arg]
    "twice": lambda c: c.attention_from_position(0, 0, layer=0),  # type: ignore[misc]
    "none at all": lambda c: c.top_attended_positions(),  # type: ignore[call-arg]
    "missing k": lambda c: c.top_attended_positions(0, from_position=0),  # type: ignore[call-arg]
    "heads by place": lambda c: c.rows(0, 0, "mean"),  # type: ignore[call-arg]
    "heads by place in top_k": lambda c: c.top_k(1, 0, 0, "mean"),  # type: ignore[call-arg]
    "unknown option": lambda c: c.top_k(1, largest=True),  # type: ignore[call-arg]
}


@pytest.mark.parametrize("mistake", WRONG_CALLS)
def test_a_wrong_call_is_a_type_error(mistake: str) -> None:
    with pytest.raises(TypeError):
        WRONG_CALLS[mistake](small())


# Zero-size axes


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0), (0, 0, 0, 0)], ids=str)
def test_zero_size_axes_answer_with_zero_size_results(shape: tuple[int, int, int, int], dtype: str) -> None:
    patterns = [make("zeros", shape, dtype)]
    cache = cache_of(patterns)
    assert cache[0].shape == shape
    assert cache.nbytes == 0
    for name in ("rows", "columns"):
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


# The face


def test_an_empty_cache_is_empty() -> None:
    for cache in (AttentionCache(), AttentionCache.with_capacity(32), AttentionCache.with_capacity(0)):
        assert cache.n_layers == len(cache) == cache.nbytes == 0
        assert cache.is_empty is True
        assert cache.patterns == ()
        assert list(cache) == []
        assert cache.get_layer(0) is None
        assert cache.get_layer(-1) is None
        with pytest.raises(IndexError):
            cache[0]


def test_the_face_tells_what_is_held(dtype: str) -> None:
    cache = cache_of([make("soft", (1, 2, 4, 6), dtype), make("soft", (2, 3, 4, 5), dtype)])
    size = {"float16": 2, "bfloat16": 2, "float32": 4}[dtype]
    assert cache.n_layers == len(cache) == 2
    assert cache.is_empty is False
    assert cache.nbytes == (1 * 2 * 4 * 6 + 2 * 3 * 4 * 5) * size
    assert isinstance(cache.patterns, tuple)
    assert [p.shape for p in cache.patterns] == [(1, 2, 4, 6), (2, 3, 4, 5)]
    assert [p.shape for p in cache] == [(1, 2, 4, 6), (2, 3, 4, 5)]
    assert "2" in repr(cache)
    assert "AttentionCache" in repr(cache)


def test_repr_tells_layers_shape_and_dtype(dtype: str) -> None:
    text = repr(cache_of([make("soft", (1, 12, 34, 56), dtype)] * 7))
    for part in ("AttentionCache", "7", "12", "34", "56", dtype):
        assert part in text, f"{part} is not in {text}"
    assert "AttentionCache" in repr(AttentionCache())


def test_with_capacity_refuses_what_is_no_count() -> None:
    with pytest.raises(ValueError, match="-1"):
        AttentionCache.with_capacity(-1)
    for wrong in (1.0, "1", None, True):
        with pytest.raises(TypeError):
            AttentionCache.with_capacity(wrong)  # type: ignore[arg-type]


def test_an_unknown_dtype_is_refused() -> None:
    for wrong in ("float64", "int8", "half", ""):
        with pytest.raises(ValueError, match="dtype"):
            AttentionCache(dtype=wrong)
    with pytest.raises(TypeError, match="dtype"):
        AttentionCache(dtype=16)  # type: ignore[arg-type]


def test_get_layer_gives_none_for_what_is_absent() -> None:
    cache = cache_of([make("soft", (1, 1, 2, 2), "float32", place) for place in range(3)])
    for absent in (3, -4, 1000, -1000, 2**100):
        assert cache.get_layer(absent) is None
    for layer in range(-3, 3):
        view = cache.get_layer(layer)
        assert view is not None
        assert_same(view, cache.patterns[layer])
    for wrong in (True, 1.0, "0", None):
        with pytest.raises(TypeError):
            cache.get_layer(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            cache[wrong]  # type: ignore[index]


def test_slices_of_a_cache_are_tuples_of_views() -> None:
    patterns = [make("soft", (1, 1, 2, 2), "float32", place) for place in range(5)]
    cache = cache_of(patterns)
    for piece in (slice(1, 3), slice(None), slice(None, None, -2), slice(-2, 100), slice(3, 1)):
        views = cache[piece]
        assert isinstance(views, tuple)
        assert_same(views, tuple(patterns[piece]))


def test_clear_empties_and_the_cache_can_be_used_again() -> None:
    cache = cache_of([make("soft", (1, 2, 3, 4))] * 3)
    assert cache.clear() is None  # type: ignore[func-returns-value]
    assert cache.is_empty
    assert cache.nbytes == 0
    assert cache.get_layer(0) is None
    with pytest.raises(IndexError, match="layer 0 is out of range for n_layers=0"):
        cache.attention_from_position(0, 0)
    pattern = make("soft", (2, 1, 5, 6), "float16")
    cache.push(pattern)
    assert_same(cache.attention_from_position(0, 4, 1), pattern[1].mean(axis=0, dtype=np.float32)[4])


def test_the_properties_cannot_be_set() -> None:
    cache = small()
    for name in ("n_layers", "is_empty", "nbytes", "patterns"):
        with pytest.raises(AttributeError):
            setattr(cache, name, 0)


class Named(AttentionCache):
    """A subclass with a constructor and a query of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(dtype="float16")
        self.name = name

    def attention_from_position(self, layer: int, position: int, batch: int = 0) -> Array:
        return super().attention_from_position(layer, position, batch) * np.float32(2)


def test_subclasses_work() -> None:
    cache = Named("mine")
    pattern = make("soft", (1, 2, 3, 4))
    cache.push(pattern)
    assert cache.name == "mine"
    assert cache[0].dtype == np.float16
    assert isinstance(cache, AttentionCache)
    mean = pattern.astype(np.float16)[0].mean(axis=0, dtype=np.float32)
    assert_same(cache.attention_from_position(0, 1), mean[1] * np.float32(2))
    assert_same(cache.attention_to_position(0, 1), np.ascontiguousarray(mean[:, 1]))
    assert_same(cache.rows(0), mean)


class Forgetful(AttentionCache):
    """A subclass that does not call the constructor of its base."""

    def __init__(self) -> None:
        pass


EVERY_CALL: dict[str, tuple[Any, ...]] = {
    "attention_from_position": (0, 0),
    "attention_to_position": (0, 0),
    "top_attended_positions": (0, 0, 1),
    "head_mean": (0,),
    "rows": (),
    "columns": (),
    "edges": (0, 0),
    "top_k": (1,),
    "get_layer": (0,),
    "clear": (),
    "__len__": (),
    "__getitem__": (0,),
    "__iter__": (),
    "__repr__": (),
}


@pytest.mark.parametrize("name", EVERY_CALL)
def test_a_subclass_that_forgets_its_base_and_a_stranger_are_type_errors(name: str) -> None:
    with pytest.raises(TypeError):
        getattr(Forgetful(), name)(*EVERY_CALL[name])
    if not name.startswith("__"):
        with pytest.raises(TypeError):
            getattr(AttentionCache, name)(object(), *EVERY_CALL[name])


USES_WITHOUT_CONSTRUCTOR = """
import sys
import numpy as np
from attncache import AttentionCache
junk = [np.full(size, -7, np.int64) for size in range(1, 200) for _ in range(20)]
del junk  # what is allocated next may hold anything
name, args = sys.argv[1], eval(sys.argv[2])
for _ in range(50):
    try:
        answer = getattr(AttentionCache.__new__(AttentionCache), name)(*args)
        assert answer is None or answer == 0 or name == "__iter__", answer
    except (TypeError, IndexError, ValueError, AttributeError) as error:
        assert "vector" not in str(error), error
        assert "n_layers=" not in str(error) or "n_layers=0" in str(error), error
print("done")
"""


@pytest.mark.parametrize("name", ["attention_from_position", "top_k", "get_layer", "clear", "__len__", "__iter__"])
def test_a_cache_made_without_its_constructor_reads_no_wild_memory(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", USES_WITHOUT_CONSTRUCTOR, name, repr(EVERY_CALL[name])]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, "done"), ran.stderr


def test_copying_and_pickling_work_or_are_a_type_error() -> None:
    cache = small()
    for way in (copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))):
        try:
            other = way(cache)
        except TypeError:
            continue
        assert_same(other.patterns, cache.patterns)


@pytest.mark.parametrize("size", [10**4, 2**16], ids=["too much for memory", "too much for 64 bits"])
@pytest.mark.parametrize("name", SELECTING)
def test_a_result_too_large_to_hold_is_an_error_and_not_a_crash(name: str, size: int) -> None:
    many = [0] * size
    cache, expected = small(), small().rows()
    options: dict[str, Any] = {"layers": many, "heads": many, "batch": many}
    args: tuple[Any, ...] = {"edges": (many, many), "top_k": (3,)}.get(name, ())
    if name != "edges":
        options["positions"] = many
    with pytest.raises((MemoryError, ValueError)):
        getattr(cache, name)(*args, **options)
    assert_same(cache.rows(), expected)


class Plain(AttentionCache):
    """A subclass without a constructor."""


def test_subclasses_keep_their_type_in_with_capacity() -> None:
    assert type(Plain.with_capacity(3)) is Plain


PUBLIC = [*QUERIES, "push", "get_layer", "clear", "with_capacity", "__init__", "__getitem__", "__len__", "__iter__"]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_method_has_a_signature_and_a_docstring(name: str) -> None:
    method = getattr(AttentionCache, name)
    inspect.signature(method)
    if not name.startswith("__"):
        assert method.__doc__
        assert method.__doc__.strip()


def test_the_first_arguments_keep_their_places() -> None:
    def parameters(name: str) -> list[tuple[str, Any]]:
        found = inspect.signature(getattr(AttentionCache, name)).parameters.values()
        return [(p.name, p.default) for p in found if p.name not in ("self", "cls") and p.kind != p.KEYWORD_ONLY]

    nothing = inspect.Parameter.empty
    assert parameters("push") == [("pattern", nothing), ("copy", None)]
    assert parameters("__init__")[0] == ("dtype", None)
    assert parameters("get_layer") == [("layer", nothing)]
    assert len(parameters("with_capacity")) >= 1


def test_the_package_tells_its_version_and_names() -> None:
    from importlib.metadata import version

    assert attncache.__version__ == version("attncache")
    for name in ("AttentionCache", "TopK", "LayerSource", "set_num_threads", "get_num_threads"):
        assert name in attncache.__all__


# Which results are fresh, which are read-only


@pytest.mark.parametrize("name", ["attention_from_position", "attention_to_position", "head_mean"])
def test_results_that_may_be_views_are_read_only(name: str) -> None:
    args = (0,) if name == "head_mean" else (0, 1)
    result = getattr(small(), name)(*args)
    assert result.dtype == np.float32
    assert not result.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        result[...] = 0


def test_selected_results_are_fresh_writable_arrays(dtype: str) -> None:
    pattern = make("soft", (1, 1, 3, 5), dtype)
    pattern.setflags(write=False)
    cache = cache_of([pattern])
    for heads in ("mean", None, 0):
        for name in SELECTING:
            options: dict[str, Any] = {"layers": 0, "heads": heads}
            first, second = call(cache, name, **options), call(cache, name, **options)
            for one, two in zip(*((r if name == "top_k" else (r,)) for r in (first, second)), strict=True):
                kept = two.copy()
                assert one.flags.writeable
                assert not np.shares_memory(one, two)
                assert not np.shares_memory(one, cache[0])
                one[...] = 7
                assert_same(two, kept)
                assert_same(cache[0], pattern)
