"""Arguments whose reading runs Python code, which then changes what was read before: shapes, dtypes and writability.

Covered: push, push_qk, append_qk, pattern_from_qk and a cache on disk, with every option that may run code; what is stored
and answered is what the arrays were when the call began. Tolerance: none.
Not covered: memory that code frees under a view (``resize(refcheck=False)``), which NumPy leaves to its caller.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, _core, pattern_from_qk
from tests.support.patterns import Array, assert_same

SHAPE = (1, 2, 8, 64)


class Runs:
    """A value that runs something when it is read."""

    def __init__(self, run: Callable[[], None], value: Any) -> None:
        self.run, self.value = run, value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        self.run()
        return np.asarray(self.value)

    def __float__(self) -> float:
        self.run()
        return float(self.value)

    def __index__(self) -> int:
        self.run()
        return int(self.value)


def set_shape(array: Array, shape: tuple[int, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        array.shape = shape


def set_dtype(array: Array) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        array.dtype = np.dtype(np.float64)


CHANGES: dict[str, Callable[[Array], None]] = {
    "batch items": lambda array: set_shape(array, (8, 2, 1, 64)),
    "heads": lambda array: set_shape(array, (1, 16, 1, 64)),
    "positions": lambda array: set_shape(array, (1, 2, 512, 1)),
    "axes": lambda array: set_shape(array, (1024,)),
    "dtype": set_dtype,
}
OPTIONS: dict[str, Any] = {
    "key_mask": np.ones((1, 8), bool),
    "scale": 0.125,
    "softcap": 30.0,
    "window": 4,
    "sinks": np.zeros(2, np.float32),
    "lse": np.zeros((1, 2, 8), np.float32),
}


def arrays() -> list[Array]:
    random = np.random.default_rng(0)
    return [random.standard_normal(SHAPE, dtype=np.float32) for _ in range(2)]


@pytest.mark.parametrize("copy", [None, False])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("which", [0, 1], ids=["query", "key"])
def test_what_is_pushed_is_what_was_given(which: int, option: str, change: str, copy: bool | None) -> None:
    given = arrays()
    expected = AttentionCache()
    expected.push_qk(*arrays(), **{option: OPTIONS[option]})
    cache = AttentionCache()
    cache.push_qk(*given, **{option: Runs(lambda: CHANGES[change](given[which]), OPTIONS[option])}, copy=copy)
    assert_same(cache.rows(0, heads=None), expected.rows(0, heads=None))
    assert_same(cache.columns(0), expected.columns(0))
    assert_same(cache.get_keys(0), arrays()[1])


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_computed_and_put_on_disk_is_what_was_given(change: str, tmp_path: Path) -> None:
    given = arrays()
    expected = pattern_from_qk(*arrays(), key_mask=OPTIONS["key_mask"])
    mask = Runs(lambda: CHANGES[change](given[1]), OPTIONS["key_mask"])
    assert_same(pattern_from_qk(*given, key_mask=mask), expected)
    given = arrays()
    with AttentionCache.create(tmp_path / "run") as cache:
        cache.push_qk(*given, key_mask=mask)
        assert_same(cache[0], expected)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("which", [0, 1], ids=["query", "key"])
def test_what_is_appended_is_what_was_given(which: int, change: str) -> None:
    cache, expected = AttentionCache(), AttentionCache()
    for each in (cache, expected):
        each.push_qk(*arrays())
    expected.append_qk(0, *arrays(), key_mask=OPTIONS["key_mask"])
    for layer, mask in ((0, 1), (1, 0)):
        given = arrays()

        def run(given: list[Array] = given) -> None:
            CHANGES[change](given[which])

        grown = AttentionCache()
        grown._take(cache._layer(0), None)
        ones = OPTIONS["key_mask"]
        grown.append_qk(Runs(run, 0) if layer else 0, *given, key_mask=Runs(run, ones) if mask else ones)  # type: ignore[arg-type]
        assert_same(grown.rows(0), expected.rows(0))


def source(array: Array, shares_memory: bool) -> tuple[Array, str, str, bool]:
    return array, "float32", "float32", shares_memory


WRONG_FOR_THE_CORE: dict[str, dict[str, Any]] = {
    "batch sizes": {"key": np.zeros((2, 2, 8, 64), np.float32)},
    "items": {"key": np.zeros((1, 2, 8, 63), np.float32)},
    "heads": {"key": np.zeros((1, 3, 8, 64), np.float32)},
    "no heads": {"key": np.zeros((1, 0, 8, 64), np.float32)},
    "hidden keys of another batch": {"hidden_keys": [[], []]},
    "hidden keys beyond the last": {"hidden_keys": [[(3, 9)]]},
    "hidden keys that descend": {"hidden_keys": [[(3, 4), (1, 2)]]},
    "sinks": {"sinks": [0.0] * 3},
    "lse": {"lse": np.zeros((1, 2, 7), np.float32)},
}


@pytest.mark.parametrize("shares_memory", [True, False])
@pytest.mark.parametrize("wrong", WRONG_FOR_THE_CORE)
def test_the_core_checks_what_it_computes_with(wrong: str, shares_memory: bool) -> None:
    query, key = arrays()
    given: dict[str, Any] = {"query": query, "key": key, "hidden_keys": [], "sinks": [], "lse": None}
    given |= WRONG_FOR_THE_CORE[wrong]
    scoring = (1.0, 0.0, True, 0, given["hidden_keys"], given["sinks"])
    with pytest.raises(ValueError, match=r"key|sinks|lse"):
        _core.Layer.factored(
            source(given["query"], shares_memory), source(given["key"], shares_memory), scoring, given["lse"]
        )
    made = _core.Layer.factored(source(query, True), source(key, True), (1.0, 0.0, True, 0, [], []), None)
    for hidden in ([[], []], [[(0, 9)]]):
        with pytest.raises(ValueError, match="hidden keys"):
            made.with_more(query, "float32", key, "float32", hidden)
    assert made.shape == (1, 2, 8, 8)


def test_the_core_shares_only_memory_that_it_can_read() -> None:
    pattern = arrays()[0]
    for array, stored in (
        (pattern[..., ::2], "float32"),
        (pattern.transpose(0, 1, 3, 2), "float32"),
        (pattern, "float16"),
    ):
        with pytest.raises(TypeError, match="shared"):
            _core.Layer.dense(array, "float32", stored, True)
