"""`out=`: the six queries that write their result where the caller wants it.

Covered: the result is `out` itself with the bits of the result without it, under every index policy, also from threads
that share nothing but the cache; every array that does not fit (dtype, byte order, shape, strides, alignment, flag);
`out` is left as it was by every error. Sizes: a few items, and a layer large enough to be answered by several threads.
Tolerance: none. Not covered: an `out` over memory that the cache reads (a borrowed layer), which the caller must not do.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attncache
from attncache import AttentionCache
from tests.support.patterns import DTYPES, Array, assert_same, make, meaning

SHAPE = (2, 3, 5, 17)
N_LAYERS = 2
POLICIES = ("off", "auto", "eager")
CALLS: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "attention_from_position": [((0, 4), {}), ((-1, -5), {"batch": 1})],
    "attention_to_position": [((0, 16), {}), ((-1, -17), {"batch": 1})],
    "head_mean": [((0,), {}), ((-1,), {"batch": 1})],
    "rows": [
        ((), {}),
        ((0, 4), {}),
        ((0, [4, 0]), {"heads": None, "batch": None}),
        ((1, None), {"heads": ("mean", [2, 0])}),
        ((0, []), {}),
    ],
    "columns": [
        ((), {}),
        ((0, 16), {}),
        ((0, [16, 0]), {"heads": None, "batch": None}),
        ((1, None), {"heads": ("mean", [2, 0])}),
        ((0, []), {}),
    ],
    "edges": [
        ((None, None), {}),
        ((4, 16), {"layers": 0, "heads": 0}),
        (([4, 0], [16, 0, 3]), {"heads": "mean", "batch": None}),
        ((0, []), {}),
    ],
}
EVERY_CALL = [(name, *call) for name, calls in CALLS.items() for call in calls]
every_call = pytest.mark.parametrize(("name", "args", "options"), EVERY_CALL, ids=str)


def layers(kind: str = "extremes", dtype: str = "float16") -> list[Array]:
    return [make(kind, SHAPE, dtype, layer) for layer in range(N_LAYERS)]


def cache_with(policy: Any, patterns: list[Array]) -> AttentionCache:
    cache = AttentionCache(index=policy)
    for pattern in patterns:
        cache.push(pattern)
    return cache


def other_numbers(expected: Array) -> Array:
    """An array that the result fits into, holding something else."""
    return np.full(expected.shape, -77.5, np.float32)


def test_exactly_the_queries_that_return_one_array_take_out() -> None:
    takes_out = [
        name
        for name in attncache.reference.QUERIES
        if "out" in inspect.signature(getattr(AttentionCache, name)).parameters
    ]
    assert sorted(takes_out) == sorted(CALLS)


@pytest.mark.parametrize("kind", ["extremes", "infinities", "signed_zeros"])
@pytest.mark.parametrize("policy", POLICIES)
@every_call
def test_the_result_is_out_with_the_same_bits(
    name: str, args: tuple[Any, ...], options: dict[str, Any], policy: str, kind: str
) -> None:
    patterns = layers(kind)
    cache, expected = cache_with(policy, patterns), meaning(name, patterns, *args, **options)
    out = other_numbers(np.asarray(expected))
    for _ in range(40):  # under "auto" an index is built in between
        out.fill(-77.5)
        result = getattr(cache, name)(*args, **options, out=out)
        assert result is out
        assert_same(out, np.asarray(expected))
    assert out.flags.writeable
    assert_same(np.asarray(getattr(cache, name)(*args, **options)), out)


@pytest.mark.parametrize("policy", POLICIES)
@every_call
def test_out_none_gives_a_new_array(name: str, args: tuple[Any, ...], options: dict[str, Any], policy: str) -> None:
    patterns = layers()
    cache = cache_with(policy, patterns)
    assert_same(
        np.asarray(getattr(cache, name)(*args, **options, out=None)),
        np.asarray(meaning(name, patterns, *args, **options)),
    )


@every_call
def test_out_is_given_by_keyword_alone(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    cache = cache_with("off", layers())
    out = other_numbers(np.asarray(getattr(cache, name)(*args, **options)))
    everything = {"attention_from_position": 3, "attention_to_position": 3, "head_mean": 2}.get(name, 2)
    filled = [*args, *[0] * (everything - len(args))]
    with pytest.raises(TypeError):
        getattr(cache, name)(*filled, out)
    assert (out == -77.5).all()


NOT_ARRAYS = [[0.0] * 17, 0.0, np.float32(0), "out", bytearray(68), memoryview(bytearray(68)), (), False, 0]


def unaligned(shape: tuple[int, ...]) -> Array:
    size = int(np.prod(shape)) * 4
    return np.zeros(size + 8, np.uint8)[1 : 1 + size].view(np.float32).reshape(shape)


def read_only(shape: tuple[int, ...]) -> Array:
    array = np.zeros(shape, np.float32)
    array.setflags(write=False)
    return array


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
    "read-only": read_only,
    "every second item": lambda shape: np.zeros((*shape[:-1], 2 * shape[-1]), np.float32)[..., ::2],
    "backwards": lambda shape: np.zeros(shape, np.float32)[..., ::-1],
    "unaligned": unaligned,
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
@pytest.mark.parametrize("not_an_array", NOT_ARRAYS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", SOME_CALLS)
def test_an_out_that_is_no_array_is_a_type_error(name: str, not_an_array: Any, policy: str) -> None:
    args, options = SOME_CALLS[name]
    cache = cache_with(policy, layers())
    with pytest.raises(TypeError, match=f"out must be a NumPy array, got .*{type(not_an_array).__name__}"):
        getattr(cache, name)(*args, **options, out=not_an_array)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("unfit", [*UNFIT, *UNFIT_MATRICES])
@pytest.mark.parametrize("name", SOME_CALLS)
def test_an_out_that_does_not_fit_is_a_value_error_and_left_alone(name: str, unfit: str, policy: str) -> None:
    args, options = SOME_CALLS[name]
    cache = cache_with(policy, layers())
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
    cache = cache_with(policy, layers())
    for shape in ((17,), (5,), (5, 17), (2, 17), (2, 5), (1, 1, 3, 2, 2), (2, 3, 2, 2), (3, 2, 2)):
        out = other_numbers(np.empty(shape))
        with pytest.raises(error):
            getattr(cache, name)(*args, **options, out=out)
        assert (out == -77.5).all()


def test_a_wrong_index_is_told_before_an_out_that_does_not_fit() -> None:
    cache = cache_with("eager", layers())
    for name, args, options, error in WRONG_INDICES:
        with pytest.raises(error):
            getattr(cache, name)(*args, **options, out=np.zeros(3, np.float64))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_query_whose_out_does_not_fit_counts_for_no_index(policy: str) -> None:
    cache = cache_with(policy, layers())
    before = cache.index_nbytes
    for _ in range(100):
        with pytest.raises(ValueError, match="out"):
            cache.rows(0, out=np.zeros(3, np.float32))
    assert cache.index_nbytes == before


@pytest.mark.parametrize("policy", POLICIES)
def test_out_may_be_part_of_a_larger_array(policy: str) -> None:
    patterns = layers()
    cache = cache_with(policy, patterns)
    everything = np.full((N_LAYERS + 2, SHAPE[2], SHAPE[3]), -77.5, np.float32)
    for layer in range(N_LAYERS):
        for position in range(SHAPE[2]):
            row = everything[layer + 1, position]
            assert cache.attention_from_position(layer, position, out=row) is row
    assert_same(everything[1:-1], meaning("rows", patterns))
    assert (everything[[0, -1]] == -77.5).all(), "nothing beside it is written"


def test_out_may_be_a_subclass_and_comes_back_as_that(tmp_path: Any) -> None:
    patterns = layers()
    cache = cache_with("auto", patterns)
    on_disk = np.memmap(tmp_path / "out", np.float32, "w+", shape=(SHAPE[2], SHAPE[3]))
    for _ in range(3):
        on_disk[:] = 0
        result = cache.head_mean(0, out=on_disk)
        assert result is on_disk
        assert_same(np.asarray(on_disk), meaning("head_mean", patterns, 0))


@pytest.mark.parametrize("name", CALLS)
def test_an_empty_out_is_filled_with_nothing(name: str) -> None:
    shape = (1, 2, 0, 3) if name != "attention_from_position" else (1, 2, 3, 0)
    for policy in POLICIES:
        cache = cache_with(policy, [np.zeros(shape, np.float32)])
        args = {"head_mean": (0,), "edges": (None, None), "rows": (), "columns": ()}.get(name, (0, 0))
        for _ in range(2):
            expected = getattr(cache, name)(*args)
            out = np.zeros(expected.shape, np.float32)
            assert expected.size == 0
            assert getattr(cache, name)(*args, out=out) is out


@pytest.mark.parametrize("policy", POLICIES)
def test_a_large_result_is_written_into_out_by_several_threads(policy: str, threads: int) -> None:
    pattern = make("extremes", (1, 4, 384, 512), "float16")
    cache = cache_with(policy, [pattern])
    expected = meaning("head_mean", [pattern], 0)
    square, turned = other_numbers(expected), other_numbers(expected.T)
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
    for cache, heads in ((cache_with("off", [pattern]), None), (cache_with("eager", [pattern]), "mean")):
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
