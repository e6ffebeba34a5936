"""Wrong calls of every query: the kind of error, and the words that name the argument, the rule and the value.

Not covered: values that Python or NumPy would quietly turn into numbers (test_wrong_kinds.py), out= (test_out.py), what
push refuses (test_push.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from tests.support.calls import HOT, NOT_A_SELECTOR, OUT_OF_RANGE, SELECTING, call, small
from tests.support.factored import small_factored
from tests.support.patterns import assert_same, cache_of, make, meaning


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


@pytest.mark.parametrize("direction", ["", "both", "FROM", "query"])
def test_an_unknown_direction_is_a_value_error(direction: Any) -> None:
    with pytest.raises(ValueError, match="direction"):
        small().top_k(1, direction=direction)


@pytest.mark.parametrize(("message", "place", "query"), OUT_OF_RANGE, ids=[place for _, place, _ in OUT_OF_RANGE])
def test_out_of_range_is_an_index_error_that_names_argument_value_and_size(
    message: str, place: str, query: Callable[[AttentionCache], Any]
) -> None:
    for cache in (small(), small_factored()):
        with pytest.raises(IndexError, match=rf"^{message}"):
            query(cache)


@pytest.mark.parametrize("name", HOT)
def test_any_layer_is_out_of_range_in_an_empty_cache(name: str) -> None:
    args = {"head_mean": (), "top_attended_positions": (0, 1)}.get(name, (0,))
    with pytest.raises(IndexError, match="layer 0 is out of range for n_layers=0"):
        getattr(AttentionCache(), name)(0, *args)


@pytest.mark.parametrize("kind", NOT_A_SELECTOR)
@pytest.mark.parametrize("argument", ["layers", "positions", "heads", "batch"])
@pytest.mark.parametrize("name", SELECTING)
def test_a_selector_of_the_wrong_kind_is_a_type_error(name: str, argument: str, kind: str) -> None:
    arguments = ["from_positions", "to_positions"] if (name, argument) == ("edges", "positions") else [argument]
    for each in arguments:
        with pytest.raises(TypeError, match=each):
            call(small(), name, **{each: NOT_A_SELECTOR[kind]})


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
