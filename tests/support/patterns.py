"""Attention patterns for the tests: made to be hard, the same in every run.

Covered: softmax rows, causal rows, ties, zeros, NaN, infinities, subnormals, negative zero, float32 extremes; sizes
around every vector width; strided layouts. Also the one comparison the tests use: equality of bits, NaN equal to NaN.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

import attncache
from attncache.reference import QUERIES

Array = npt.NDArray[Any]
Shape = tuple[int, int, int, int]

SEED = 20240817
DTYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 128, 129)
LONG = 4099  # more than 4096, and odd


def rng(*words: Any) -> np.random.Generator:
    """A generator of its own for every set of words; the same in every run."""
    return np.random.default_rng([SEED, zlib.crc32(repr(words).encode())])


def softmax(scores: Array) -> Array:
    """Softmax over the last axis, which may be empty."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-1e30))
    return np.asarray(weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-30), np.float32)


def soft(random: np.random.Generator, shape: Shape) -> Array:
    return softmax(random.normal(size=shape))


def causal(random: np.random.Generator, shape: Shape) -> Array:
    scores = random.normal(size=shape)
    scores[..., np.triu(np.ones(shape[2:], bool), k=1)] = -1e9
    return softmax(scores)


def ties(random: np.random.Generator, shape: Shape) -> Array:
    return np.asarray(random.integers(0, 3, size=shape) / 4, np.float32)


def zeros(random: np.random.Generator, shape: Shape) -> Array:
    return np.zeros(shape, np.float32)


def sprinkled(random: np.random.Generator, shape: Shape, specials: Sequence[float], share: float) -> Array:
    """Softmax rows in which about `share` of the weights are one of `specials`."""
    pattern = soft(random, shape)
    where = random.random(shape) < share
    pattern[where] = random.choice(np.array(specials, np.float32), size=int(where.sum()))
    return pattern


def nans(random: np.random.Generator, shape: Shape) -> Array:
    return sprinkled(random, shape, [np.nan], 0.1)


def infinities(random: np.random.Generator, shape: Shape) -> Array:
    return sprinkled(random, shape, [np.inf, -np.inf, np.nan, -1.0], 0.2)


def subnormals(random: np.random.Generator, shape: Shape) -> Array:
    tiny = [2.0**-24, 3 * 2.0**-24, 1023 * 2.0**-24, 2.0**-133, 2.0**-149, 2.0**-127, 2.0**-14, 0.0]
    return sprinkled(random, shape, tiny, 0.8)


def signed_zeros(random: np.random.Generator, shape: Shape) -> Array:
    return np.where(random.random(shape) < 0.5, np.float32(-0.0), np.float32(0.0)).astype(np.float32)


def extremes(random: np.random.Generator, shape: Shape) -> Array:
    """Weights of both signs over a wide range: the order of addition shows in the last bits."""
    return np.asarray(random.normal(size=shape) * np.exp2(random.integers(-14, 15, size=shape)), np.float32)


KINDS: dict[str, Callable[[np.random.Generator, Shape], Array]] = {
    "soft": soft,
    "causal": causal,
    "ties": ties,
    "zeros": zeros,
    "nans": nans,
    "infinities": infinities,
    "subnormals": subnormals,
    "signed_zeros": signed_zeros,
    "extremes": extremes,
}


def make(kind: str, shape: Shape, dtype: str = "float32", *words: Any) -> Array:
    """A pattern of one kind, shape and dtype; `words` vary it."""
    pattern = KINDS[kind](rng(kind, shape, *words), shape)
    with np.errstate(all="ignore"):
        return pattern.astype(DTYPES[dtype])


def strided(pattern: Array) -> dict[str, Array]:
    """The same values in layouts that are not C-contiguous, by name."""
    batch, heads, queries, keys = pattern.shape
    wide = np.zeros((batch, heads, queries, 2 * keys), pattern.dtype)
    wide[..., ::2] = pattern
    tall = np.zeros((batch, heads, 3 * queries, keys), pattern.dtype)
    tall[:, :, ::3] = pattern
    batch_last = np.ascontiguousarray(pattern.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2)
    heads_inside = np.ascontiguousarray(pattern.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    keys_first = np.ascontiguousarray(pattern.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    backwards = np.ascontiguousarray(pattern[:, ::-1, ::-1, ::-1])[:, ::-1, ::-1, ::-1]
    return {
        "every second key": wide[..., ::2],
        "every third query": tall[:, :, ::3],
        "batch last": batch_last,
        "heads inside queries": heads_inside,
        "keys before queries": keys_first,
        "fortran": np.asfortranarray(pattern),
        "backwards": backwards,
    }


def spread(pattern: Array, axis: int) -> Array:
    """The same values with 8 bytes of nobody after each item of an axis before the last."""
    items = pattern.reshape(*pattern.shape[: axis + 1], -1)
    wide = np.zeros((*items.shape[:-1], items.shape[-1] + 8 // pattern.itemsize), pattern.dtype)
    wide[..., : items.shape[-1]] = items
    return wide[..., : items.shape[-1]].reshape(pattern.shape)


def address(array: Array) -> int:
    """Where its items lie in memory."""
    return int(array.__array_interface__["data"][0])


def locked(array: Array) -> Array:
    """The array itself, read-only from now on."""
    array.flags.writeable = False
    return array


def unaligned(array: Array) -> Array:
    """The same values one byte beside where their dtype wants them."""
    memory = np.zeros(array.nbytes + 8, np.uint8)[1 : 1 + array.nbytes]
    memory[:] = np.frombuffer(array.tobytes(), np.uint8)
    return memory.view(array.dtype).reshape(array.shape)


def cache_of(patterns: Sequence[Any], dtype: Any = None, index: Any = "auto") -> attncache.AttentionCache:
    """A cache that holds these layers."""
    cache = attncache.AttentionCache(dtype=dtype, index=index)
    for pattern in patterns:
        cache.push(pattern)
    return cache


def as_stored(pattern: Any, dtype: str | None = None, copy: bool | None = None) -> Array:
    """What a cache holds after pushing the pattern."""
    cache = attncache.AttentionCache(dtype=dtype)
    cache.push(pattern, copy=copy)
    return cache[0]


def meaning(name: str, patterns: Sequence[Array], *args: Any, **options: Any) -> Any:
    """What the reference answers; NaN, infinities and overflow in the patterns are wanted here, not warned of."""
    with np.errstate(all="ignore"):
        return QUERIES[name].meaning(patterns, *args, **options)


def bits(array: Array) -> Array:
    """The array's bits as unsigned integers, every NaN as the same one."""
    array = np.ascontiguousarray(array)
    raw = array.view(f"u{array.dtype.itemsize}").copy()
    if array.dtype.kind not in "iu":
        with np.errstate(invalid="ignore"):
            raw[np.isnan(array)] = np.iinfo(raw.dtype).max
    return raw


def assert_same(actual: Any, expected: Any, context: str = "") -> None:
    """Same kind, dtype, shape and bits (so 0.0 is not -0.0); NaN equals NaN."""
    if isinstance(expected, tuple):
        assert isinstance(actual, tuple), context
        assert len(actual) == len(expected), context
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other, context)
    elif isinstance(expected, list):
        assert type(actual) is list, context
        assert len(actual) == len(expected), f"{context}: {actual} is not {expected}"
        assert all(type(pair) is tuple and type(pair[0]) is int and type(pair[1]) is float for pair in actual), context
        assert [position for position, _ in actual] == [position for position, _ in expected], context
        assert_same(np.array([w for _, w in actual]), np.array([w for _, w in expected]), context)
    else:
        assert isinstance(actual, np.ndarray), f"{context}: got {type(actual)}"
        assert actual.dtype == expected.dtype, f"{context}: got dtype {actual.dtype}, expected {expected.dtype}"
        assert actual.shape == expected.shape, f"{context}: got shape {actual.shape}, expected {expected.shape}"
        wrong = np.argwhere(bits(actual) != bits(expected))
        if len(wrong):
            first = tuple(wrong[0])
            raise AssertionError(
                f"{context}: {len(wrong)} of {expected.size} differ, first at {tuple(map(int, first))}: "
                f"got {actual[first]!r}, expected {expected[first]!r}"
            )
