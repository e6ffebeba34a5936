"""`out=`: the six queries that write their result where the caller wants it.

Covered: for every kind of layer the result is `out` itself with the bits of the result without it, also from threads
that share nothing but the cache; every array that does not fit (dtype, byte order, shape, strides, alignment, flag);
`out` is left as it was by every error. Sizes: a few items, and a layer large enough to be answered by several threads.
Tolerance: none. Not covered: an `out` over memory that the cache reads (a borrowed layer), which the caller must not do.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.reference import QUERIES
from tests.support.calls import CASES, large, meaning_of_large
from tests.support.layers import LAYERS
from tests.support.patterns import DTYPES, Array, assert_same, cache_of, locked, make, meaning, unaligned

TAKES_OUT = ("attention_from_position", "attention_to_position", "head_mean", "rows", "columns", "edges")
SHAPE = (2, 3, 5, 17)
POLICIES = ("off", "auto", "eager")


def layers() -> list[Array]:
    return [make("extremes", SHAPE, "float16", layer) for layer in range(2)]


def other_numbers(shape: tuple[int, ...]) -> Array:
    """An array that such a result fits into, holding something else."""
    return np.full(shape, -77.5, np.float32)


def test_exactly_the_queries_that_return_one_array_take_out() -> None:
    signatures = {name: inspect.signature(getattr(AttentionCache, name)).parameters for name in QUERIES}
    assert sorted(name for name, found in signatures.items() if "out" in found) == sorted(TAKES_OUT)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_result_is_out_with_the_same_bits_for_every_kind_of_layer(layer: str, tmp_path: Path) -> None:
    cache = LAYERS[layer](tmp_path)
    rows = [np.array(pattern, np.float32) for pattern in cache.patterns]
    for _ in range(3):  # an index is built on the way
        for name in TAKES_OUT:
            for args, options in CASES[name](rows[0].shape):  # type: ignore[arg-type]
                expected = np.asarray(meaning(name, rows, *args, **options))
                out = other_numbers(expected.shape)
                assert getattr(cache, name)(*args, **options, out=out) is out
                assert_same(out, expected, f"{name}{args} {options}")
                assert out.flags.writeable


@pytest.mark.parametrize("name", TAKES_OUT)
def test_out_is_given_by_keyword_alone(name: str) -> None:
    by_place = [
        p for p in inspect.signature(getattr(AttentionCache, name)).parameters.values() if p.kind != p.KEYWORD_ONLY
    ]
    out = other_numbers((17,))
    with pytest.raises(TypeError):
        getattr(cache_of(layers()), name)(*[0] * (len(by_place) - 1), out)
    assert (out == -77.5).all()


NOT_ARRAYS = [[0.0] * 17, 0.0, np.float32(0), "out", bytearray(68), memoryview(bytearray(68)), (), False, 0]


UNFIT: dict[str, Callable[[tuple[int, ...]], Array]] = {
    "float64": lambda shape: np.zeros(shape, np.float64),
    "float16": lambda shape: np.zeros(shape, np.float16),
    "int32, as large as float32": lambda shape: np.zeros(shape, np.int32),
    "the other byte order": lambda shape: np.zeros(shape, np.dtype(np.float32).newbyteorder()),
    "an axis more in front": lambda shape: np.zeros((1, *shape), np.float32),
    "an axis more at the end": lambda shape: np.zeros((*shape, 1), np.float32),
    "longer": lambda shape: np.zeros((*shape[:-1], shape[-1] + 1), np.float32),
    "shorter": lambda shape: np.zeros((*shape[:-1], shape[-1] - 1), np.float32),
    "flat": lambda shape: np.zeros(int(np.prod(shape)) + 1, np.float32),
    "read-only": lambda shape: locked(np.zeros(shape, np.float32)),
    "every second item": lambda shape: np.zeros((*shape[:-1], 2 * shape[-1]), np.float32)[..., ::2],
    "backwards": lambda shape: np.zeros(shape, np.float32)[..., ::-1],
    "unaligned": lambda shape: unaligned(np.zeros(shape, np.float32)),
}
UNFIT_MATRICES: dict[str, Callable[[tuple[int, ...]], Array]] = {
    "one axis": lambda shape: np.zeros(int(np.prod(shape)), np.float32),
    "transposed": lambda shape: np.zeros(shape[::-1], np.float32),
    "fortran": lambda shape: np.zeros(shape, np.float32, order="F"),
    "broadcast": lambda shape: np.broadcast_to(np.zeros(shape[-1], np.float32), shape),
}
SOME_CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "attention_from_position": ((0, 4), {}),
    "attention_to_position": ((0, 16), {}),
    "head_mean": ((0,), {}),
    "rows": ((0, [4, 0]), {"heads": "mean"}),
    "columns": ((0, [16, 0]), {"heads": "mean"}),
    "edges": (([4, 0], [16, 0, 3]), {"layers": 0, "heads": "mean"}),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", SOME_CALLS)
def test_an_out_that_is_no_array_is_a_type_error(name: str, policy: str) -> None:
    args, options = SOME_CALLS[name]
    cache = cache_of(layers(), index=policy)
    for wrong in NOT_ARRAYS:
        with pytest.raises(TypeError, match=f"out must be a NumPy array, got .*{type(wrong).__name__}"):
            getattr(cache, name)(*args, **options, out=wrong)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("unfit", [*UNFIT, *UNFIT_MATRICES])
@pytest.mark.parametrize("name", SOME_CALLS)
def test_an_out_that_does_not_fit_is_a_value_error_and_left_alone(name: str, unfit: str, policy: str) -> None:
    args, options = SOME_CALLS[name]
    cache = cache_of(layers(), index=policy)
    shape = getattr(cache, name)(*args, **options).shape
    if unfit in UNFIT_MATRICES and len(shape) == 1:
        return
    out = {**UNFIT, **UNFIT_MATRICES}[unfit](shape)
    before = out.copy()
    with pytest.raises(ValueError, match="out must be a writable, aligned, C-contiguous float32 array") as raised:
        getattr(cache, name)(*args, **options, out=out)
    assert str(shape)[:-1].rstrip(",") in str(raised.value), "the message says which shape would fit"
    assert (out == before).all()


WRONG_INDICES: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception]]] = [
    ("attention_from_position", (0, 5), {}, IndexError),
    ("attention_from_position", (2, 0), {}, IndexError),
    ("attention_from_position", (0, 0), {"batch": 2}, IndexError),
    ("attention_from_position", (0, 0.5), {}, TypeError),
    ("attention_to_position", (0, -18), {}, IndexError),
    ("attention_to_position", (0, 0), {"batch": -3}, IndexError),
    ("attention_to_position", (None, 0), {}, TypeError),
    ("head_mean", (2,), {}, IndexError),
    ("head_mean", (0,), {"batch": 2}, IndexError),
    ("rows", (0, [0, 5]), {}, IndexError),
    ("rows", (0, 0), {"heads": 3}, IndexError),
    ("rows", (0, 0), {"heads": "means"}, TypeError),
    ("columns", (0, [0, 17]), {}, IndexError),
    ("columns", ([0, 2], 0), {}, IndexError),
    ("columns", (0, 0), {"batch": [0, 2]}, IndexError),
    ("edges", ([0, 1], [0, 17]), {}, IndexError),
    ("edges", ([0, 5], [0, 1]), {}, IndexError),
    ("edges", ([0, 1], [0, 1]), {"layers": 0.0}, TypeError),
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("name", "args", "options", "error"), WRONG_INDICES, ids=str)
def test_out_is_left_alone_when_an_index_is_wrong(
    name: str, args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], policy: str
) -> None:
    cache = cache_of(layers(), index=policy)
    for shape in ((17,), (5,), (5, 17), (2, 17), (2, 5), (1, 1, 3, 2, 2), (2, 3, 2, 2), (3, 2, 2)):
        out = other_numbers(shape)
        with pytest.raises(error):
            getattr(cache, name)(*args, **options, out=out)
        assert (out == -77.5).all()


def test_a_wrong_index_is_told_before_an_out_that_does_not_fit() -> None:
    cache = cache_of(layers(), index="eager")
    for name, args, options, error in WRONG_INDICES:
        with pytest.raises(error):
            getattr(cache, name)(*args, **options, out=np.zeros(3, np.float64))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_query_whose_out_does_not_fit_counts_for_no_index(policy: str) -> None:
    cache = cache_of(layers(), index=policy)
    before = cache.index_nbytes
    for _ in range(100):
        with pytest.raises(ValueError, match="out"):
            cache.rows(0, out=np.zeros(3, np.float32))
    assert cache.index_nbytes == before


@pytest.mark.parametrize("policy", POLICIES)
def test_out_may_be_part_of_a_larger_array(policy: str) -> None:
    patterns = layers()
    cache = cache_of(patterns, index=policy)
    everything = np.full((2 + 2, SHAPE[2], SHAPE[3]), -77.5, np.float32)
    for layer in range(2):
        for position in range(SHAPE[2]):
            row = everything[layer + 1, position]
            assert cache.attention_from_position(layer, position, out=row) is row
    assert_same(everything[1:-1], meaning("rows", patterns))
    assert (everything[[0, -1]] == -77.5).all(), "nothing beside it is written"


def test_out_may_be_a_subclass_and_comes_back_as_that(tmp_path: Any) -> None:
    patterns = layers()
    cache = cache_of(patterns)
    on_disk = np.memmap(tmp_path / "out", np.float32, "w+", shape=(SHAPE[2], SHAPE[3]))
    for _ in range(3):
        on_disk[:] = 0
        result = cache.head_mean(0, out=on_disk)
        assert result is on_disk
        assert_same(np.asarray(on_disk), meaning("head_mean", patterns, 0))


@pytest.mark.parametrize("name", TAKES_OUT)
def test_an_empty_out_is_filled_with_nothing(name: str) -> None:
    shape = (1, 2, 0, 3) if name != "attention_from_position" else (1, 2, 3, 0)
    for policy in POLICIES:
        cache = cache_of([np.zeros(shape, np.float32)], index=policy)
        args = {"head_mean": (0,), "edges": (None, None), "rows": (), "columns": ()}.get(name, (0, 0))
        for _ in range(2):
            expected = getattr(cache, name)(*args)
            out = np.zeros(expected.shape, np.float32)
            assert expected.size == 0
            assert getattr(cache, name)(*args, out=out) is out


@pytest.mark.parametrize("policy", POLICIES)
def test_a_large_result_is_written_into_out_by_several_threads(policy: str, threads: int) -> None:
    cache, expected = cache_of([large()], index=policy), meaning_of_large("head_mean")
    square, turned = other_numbers(expected.shape), other_numbers(expected.T.shape)
    for _ in range(3):
        square.fill(0)
        turned.fill(0)
        assert_same(cache.head_mean(0, out=square), expected)
        assert_same(cache.rows(0, out=square), expected)
        assert_same(cache.edges(None, None, layers=0, heads="mean", out=square), expected)
        assert_same(cache.columns(0, out=turned), np.ascontiguousarray(expected.T))
        assert_same(cache.attention_from_position(0, 383, out=square[5]), expected[383])
        assert_same(cache.attention_to_position(0, 511, out=turned[5]), np.ascontiguousarray(expected[:, 511]))


@pytest.mark.parametrize("offset", [0, 1, 7, 15])
def test_a_result_too_large_for_the_caches_is_written_to_any_address(offset: int, simd_level: str, dtype: str) -> None:
    length = 2051  # odd, and 16 MiB of float32
    pattern = large_layer(dtype, length)
    memory = np.full(length * length + offset + 1, -77.5, np.float32)
    out = memory[offset:-1].reshape(1, length, length)
    expected = pattern[0].astype(np.float32)
    for cache, heads in ((cache_of([pattern], index="off"), None), (cache_of([pattern], index="eager"), "mean")):
        assert out.nbytes >= 16 << 20
        out.fill(0)
        assert cache.rows(0, heads=heads, out=out if heads is None else out[0]).size == out.size
        assert (out == expected).all()
        assert (memory[:offset] == -77.5).all()
        assert memory[-1] == -77.5


@functools.cache
def large_layer(dtype: str, length: int) -> Array:
    """One head of as many weights, each of which tells where it is."""
    weights = np.arange(length * length, dtype=np.float32) % 251 / 256
    return weights.reshape(1, 1, length, length).astype(DTYPES[dtype])
