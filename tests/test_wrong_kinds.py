"""Values of the wrong kind that Python or NumPy would quietly turn into numbers: text, truth values, masked arrays; and absurd
shapes.

Covered: every public argument that takes a number or an array of numbers. Not covered: those of capture and of the commands
(test_capture.py, test_cli.py).
"""

from __future__ import annotations

import decimal
import fractions
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attncache
from attncache import AttentionCache
from tests.support.patterns import Array, assert_same, cache_of

QK = np.zeros((1, 2, 4, 4), np.float32)
NO_NUMBERS: dict[str, Any] = {
    "text": "1",
    "bytes": b"1",
    "bytearray": bytearray(b"1"),
    "True": True,
    "NumPy's True": np.True_,
    "an array of True": np.array(True),
    "NumPy's text": np.str_("1"),
    "NumPy's bytes": np.bytes_(b"1"),
    "NumPy's duration": np.timedelta64(1, "s"),
    "a complex number": 1 + 0j,
    "NumPy's complex number": np.complex64(1),
    "a list": [1],
    "an object": object(),
}


def dense() -> AttentionCache:
    return cache_of([np.full((2, 2, 4, 4), 0.25, np.float32)])


def factored(**options: Any) -> AttentionCache:
    cache = AttentionCache()
    cache.push_qk(QK, QK, **options)
    return cache


CALLS: dict[str, tuple[Callable[[Any], object], str]] = {
    "scale": (lambda n: factored(scale=n), "scale"),
    "softcap": (lambda n: factored(softcap=n), "softcap"),
    "window": (lambda n: factored(window=n), "window"),
    "pattern_from_qk": (lambda n: attncache.pattern_from_qk(QK, QK, scale=n), "scale"),
    "append_qk": (lambda n: factored().append_qk(n, QK, QK), "layer"),
    "lse": (lambda n: factored().lse(n), "layer"),
    "get_keys": (lambda n: factored().get_keys(n), "layer"),
    "get_layer": (lambda n: dense().get_layer(n), "layer"),
    "getitem": (lambda n: dense()[n], "layer"),
    "attention_from_position, layer": (lambda n: dense().attention_from_position(n, 0), "layer"),
    "attention_from_position, position": (lambda n: dense().attention_from_position(0, n), "position"),
    "attention_from_position, batch": (lambda n: dense().attention_from_position(0, 0, n), "batch"),
    "attention_to_position, layer": (lambda n: dense().attention_to_position(n, 0), "layer"),
    "attention_to_position, position": (lambda n: dense().attention_to_position(0, n), "position"),
    "attention_to_position, batch": (lambda n: dense().attention_to_position(0, 0, n), "batch"),
    "head_mean, layer": (lambda n: dense().head_mean(n), "layer"),
    "head_mean, batch": (lambda n: dense().head_mean(0, n), "batch"),
    "top_attended_positions, layer": (lambda n: dense().top_attended_positions(n, 0, 1), "layer"),
    "top_attended_positions, position": (lambda n: dense().top_attended_positions(0, n, 1), "from_position"),
    "top_attended_positions, k": (lambda n: dense().top_attended_positions(0, 0, n), "k"),
    "top_attended_positions, batch": (lambda n: dense().top_attended_positions(0, 0, 1, n), "batch"),
    "top_k": (lambda n: dense().top_k(n), "k"),
    "set_num_threads": (attncache.set_num_threads, "n"),
    "with_capacity": (AttentionCache.with_capacity, "n_layers"),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_number_is_a_type_error(call: str, kind: str) -> None:
    ask, argument = CALLS[call]
    before = attncache.get_num_threads()
    with pytest.raises(TypeError, match=argument):
        ask(NO_NUMBERS[kind])
    assert attncache.get_num_threads() == before


TAKE_FRACTIONS = {"scale", "softcap", "window", "pattern_from_qk"}  # or None


@pytest.mark.parametrize("call", [call for call in CALLS if call not in TAKE_FRACTIONS])
def test_what_is_no_index_is_a_type_error(call: str) -> None:
    ask, argument = CALLS[call]
    for wrong in (1.0, np.float32(1), np.float64(0), None, (0,), slice(None)):
        if not (call == "getitem" and isinstance(wrong, slice)):
            with pytest.raises(TypeError, match=argument):
                ask(wrong)


def test_numbers_of_every_kind_are_numbers() -> None:
    expected = factored(scale=0.5, softcap=2.0).rows(0)
    for half, two in (
        (fractions.Fraction(1, 2), 2),
        (decimal.Decimal("0.5"), np.int8(2)),
        (np.float16(0.5), np.array(2.0)),
        (np.float64(0.5), np.array(2)),
    ):
        assert_same(factored(scale=half, softcap=two).rows(0), expected)
    for window in (2, np.int64(2), np.uint8(2), np.array(2)):
        assert_same(factored(window=window).rows(0), factored(window=2).rows(0))


def test_a_tensor_of_one_truth_value_is_no_number() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    truth = torch.tensor(True)
    for ask, argument in CALLS.values():
        with pytest.raises(TypeError, match=argument):
            ask(truth)
    assert_same(dense().rows(torch.tensor(0)), dense().rows(0))
    assert_same(factored(scale=torch.tensor(0.5)).rows(0), factored(scale=0.5).rows(0))


def test_a_number_too_large_for_a_float_is_a_value_error() -> None:
    for name in ("scale", "softcap"):
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            factored(**{name: 10**400})


@pytest.mark.parametrize("call", CALLS)
def test_an_array_with_an_axis_is_no_number(call: str) -> None:
    with pytest.raises(TypeError):
        CALLS[call][0](np.ones(1, int))


@pytest.mark.parametrize("copy", ["no", 0, 1, 1.0, b"", np.True_])
def test_copy_is_none_true_or_false(copy: Any) -> None:
    with pytest.raises(TypeError, match="copy"):
        dense().push(QK, copy=copy)
    with pytest.raises(TypeError, match="copy"):
        factored(copy=copy)


# Masked arrays


def masked(values: Array) -> Any:
    """The values with the first one masked."""
    mask = np.zeros(values.shape, bool)
    mask.reshape(-1)[0] = True
    return np.ma.masked_array(values, mask=mask)


MASKED: dict[str, Callable[[Any], object]] = {
    "pattern": lambda mask: dense().push(mask(QK)),
    "query": lambda mask: AttentionCache().push_qk(mask(QK), QK),
    "key": lambda mask: factored().append_qk(0, QK, mask(QK)),
    "key_mask": lambda mask: factored(key_mask=mask(np.ones((1, 4), bool))),
    "lse": lambda mask: factored(lse=mask(np.ones((1, 2, 4), np.float32))),
    "sinks": lambda mask: factored(sinks=mask(np.ones(2, np.float32))),
    "positions": lambda mask: dense().rows(0, mask(np.arange(2))),
    "layers": lambda mask: dense().top_k(1, layers=mask(np.zeros(2, int))),
    "heads": lambda mask: dense().rows(0, 0, heads=mask(np.arange(2))),
    "batch": lambda mask: dense().columns(0, 0, batch=mask(np.arange(2))),
    "out": lambda mask: dense().head_mean(0, out=mask(np.zeros((4, 4), np.float32))),
}


@pytest.mark.parametrize("argument", MASKED)
def test_masked_items_are_refused_and_their_filling_is_named(argument: str) -> None:
    with pytest.raises(ValueError, match=rf"{argument} must have no masked items.*{argument}\.filled\(0\)"):
        MASKED[argument](masked)


@pytest.mark.parametrize("argument", MASKED)
def test_a_masked_array_without_masked_items_is_an_array(argument: str) -> None:
    MASKED[argument](np.ma.masked_array)
    MASKED[argument](lambda values: np.ma.masked_array(values, mask=np.zeros(values.shape, bool)))


def test_from_attentions_refuses_masked_items_by_the_name_of_the_step() -> None:
    with pytest.raises(ValueError, match=r"attentions\[1\].*masked"):
        AttentionCache.from_attentions([QK, masked(QK)])


# Absurd shapes


@pytest.mark.parametrize(
    "shape",
    [(1, 2**60, 1, 0), (2**60, 1, 1, 0), (1, 2**24, 0, 1), (2**24, 0, 1, 1), (0, 1, 2**32, 1), (1, 0, 1, 2**32)],
    ids=str,
)
def test_axes_that_nobody_could_list_are_a_value_error_in_our_words(shape: tuple[int, ...]) -> None:
    cache = AttentionCache()
    with pytest.raises(ValueError, match=r"pattern must have fewer than 2\*\*(24|32) .*, got shape"):
        cache.push(np.empty(shape, np.float32))
    assert cache.is_empty


@pytest.mark.parametrize("shape", [(1, 2**20, 2**20, 0), (2**20, 2**20, 1, 0), (1, 3, 2**23, 0), (1, 2**20, 0, 2**20)])
def test_large_axes_of_a_layer_without_items_cost_no_time(shape: tuple[int, int, int, int]) -> None:
    for index in ("off", "auto", "eager"):
        cache = AttentionCache(index=index)  # type: ignore[arg-type]
        if shape[0] > 1 and index == "eager":
            continue  # an index for each batch item
        cache.push(np.empty(shape, np.float32))
        assert cache.rows(0, heads=None).size == 0
        assert cache.columns(0, heads=None).size == 0
        assert cache.edges(None, None, layers=0).size == 0
        assert cache.top_k(3, layers=0, heads=None).weights.size == 0
        assert cache.head_mean(0).size == 0
        assert cache.nbytes == 0


def test_room_for_more_layers_than_memory_holds_is_a_memory_error() -> None:
    for n_layers in (2**62, 2**80):
        with pytest.raises(MemoryError, match="no memory for this many items"):
            AttentionCache.with_capacity(n_layers)


def test_what_no_memory_can_hold_is_a_memory_error_in_our_words() -> None:
    huge = np.broadcast_to(np.float32(0), (1, 1, 1 << 27, 1 << 27))
    cache = dense()
    for call in (lambda: cache.push(huge), lambda: cache.push(huge, copy=True)):
        with pytest.raises(MemoryError, match="no memory for this many items"):
            call()
    assert cache.n_layers == 1
