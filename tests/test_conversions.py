"""Every conversion of a push, and the widening of every query: the bits of NumPy and ml_dtypes.

Sizes: all 65536 float16 and bfloat16 values; float32 to float16 at every float16 value, its neighbours and midpoints,
every binade, subnormals and overflow; rows of 1 to 129 for the vector tails. Tolerance: none. Not covered: float64 to
bfloat16 where rounding twice would differ (ml_dtypes rounds twice itself); the payload of NaN.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.support.patterns import (
    DTYPES,
    KINDS,
    SIZES,
    Array,
    as_stored,
    assert_same,
    cache_of,
    make,
    meaning,
    rng,
    strided,
)


def every_float16() -> Array:
    return np.arange(65536, dtype=np.uint16).view(np.float16)


def every_bfloat16() -> Array:
    return np.arange(65536, dtype=np.uint16).view(ml_dtypes.bfloat16)


def hard_float32() -> Array:
    """Every float16 value, its float32 neighbours, the midpoints and theirs, and every binade: both signs."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    above = np.append(halves[1:], np.float32(65536))
    middles = ((halves.astype(np.float64) + above) / 2).astype(np.float32)
    exact = np.concatenate([halves, middles])
    near = np.concatenate([exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(0))])
    exponents = np.arange(256, dtype=np.uint32) << 23
    mantissas = rng("binades").integers(0, 1 << 23, 64, dtype=np.uint32)
    edges = np.array([0, 1, 2, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x3000, 0x7FFFFF, 0x7FE000, 0x7FF000], np.uint32)
    binades = (exponents[:, None] | np.concatenate([mantissas, edges])).ravel().view(np.float32)
    values = np.concatenate([near, binades])
    return np.concatenate([values, -values])


@pytest.mark.parametrize("size", [*range(1, 18), 31, 32, 33, 65])
def test_widening_is_exact_in_every_tail(size: int, simd_level: str) -> None:
    for values in (every_float16(), every_bfloat16()):
        pattern = values[rng("tail", size).integers(0, 65536, 64 * size)].reshape(1, 1, 64, size)
        with np.errstate(invalid="ignore"):
            assert_same(cache_of([pattern]).rows(0, heads=0), pattern[0, 0].astype(np.float32))


def test_float32_is_narrowed_to_float16_as_numpy_does(simd_level: str) -> None:
    values = hard_float32()
    pattern = values[: len(values) // 8 * 8].reshape(1, 1, 8, -1)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        assert_same(as_stored(pattern, "float16"), pattern.astype(np.float16))


def test_float32_is_narrowed_to_bfloat16_as_ml_dtypes_does(simd_level: str) -> None:
    tops = np.arange(65536, dtype=np.uint32) << 16
    bits = np.concatenate([tops | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    pattern = np.concatenate([bits.view(np.float32), hard_float32()[:4096]]).reshape(1, 2, 4, -1)
    with np.errstate(over="ignore", invalid="ignore"):
        assert_same(as_stored(pattern, "bfloat16"), pattern.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("target", ["float16", "bfloat16"])
def test_nan_stays_nan_when_its_payload_is_cut_off(target: str, simd_level: str) -> None:
    bits = np.array([0x7F800001, 0xFF800001, 0x7F801FFF, 0x7F80FFFF, 0x7FBFFFFF, 0x7FC00000, 0xFFFFFFFF], np.uint32)
    for size in SIZES:
        pattern = np.resize(bits, size).view(np.float32).reshape(1, 1, 1, size)
        assert np.isnan(as_stored(pattern, target)).all()
    doubles = np.array([0x7FF0000000000001, 0xFFF0000000000001, 0x7FF00000FFFFFFFF], np.uint64).view(np.float64)
    assert np.isnan(as_stored(doubles.reshape(1, 1, 1, 3), target)).all()
    assert np.isnan(as_stored(doubles.reshape(1, 1, 1, 3))).all()


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", [*DTYPES, "float64"])
def test_every_conversion_is_right_in_every_tail(source: str, target: str, simd_level: str) -> None:
    for size in SIZES:
        for kind in KINDS:
            if source == "float64":
                pattern = make(kind, (1, 2, 3, size)).astype(np.float64)
            else:
                pattern = make(kind, (1, 2, 3, size), source)
            with np.errstate(all="ignore"):
                expected = pattern.astype(np.float32).astype(DTYPES[target])  # exact here: each value is a float32
            assert_same(as_stored(pattern, target), expected, f"{kind} {size}")


def test_float64_is_stored_as_float32(simd_level: str) -> None:
    pattern = rng("doubles").normal(size=(1, 2, 33, 67)) * 10.0 ** rng("scales").integers(-50, 50, (1, 2, 33, 67))
    with np.errstate(over="ignore", under="ignore"):
        expected = pattern.astype(np.float32)
        assert np.isinf(expected).any()
        assert (expected == 0).any()
    assert_same(as_stored(pattern), expected)
    assert_same(as_stored(pattern, "float32"), expected)


def test_float64_is_rounded_to_float16_once(simd_level: str) -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    middles = (halves + np.append(halves[1:], 65536.0)) / 2
    values = np.concatenate([halves, middles, middles * (1 + 2.0**-40), middles * (1 - 2.0**-40), middles * 2.0**-30])
    pattern = np.concatenate([values, -values]).reshape(1, 1, 2, -1)
    with np.errstate(over="ignore", under="ignore"):
        once, twice = pattern.astype(np.float16), pattern.astype(np.float32).astype(np.float16)
    assert (once.view(np.uint16) != twice.view(np.uint16)).any(), "the values must tell the two apart"
    assert_same(as_stored(pattern, "float16"), once)
    for layout, source in strided(np.ascontiguousarray(pattern[..., :4096].reshape(1, 2, 64, 64))).items():
        with np.errstate(over="ignore", under="ignore"):
            assert_same(as_stored(source, "float16"), np.ascontiguousarray(source.astype(np.float16)), layout)


def test_the_same_dtype_keeps_every_bit_even_of_nan(dtype: str) -> None:
    if dtype == "float32":
        bits = np.concatenate([hard_float32().view(np.uint32), np.arange(0x7F800001, 0x7F800101, dtype=np.uint32)])
        pattern = bits[: len(bits) // 4 * 4].view(np.float32).reshape(1, 2, 2, -1)
    else:
        pattern = np.arange(65536, dtype=np.uint16).view(DTYPES[dtype]).reshape(1, 1, 256, 256)
    assert as_stored(pattern, copy=True).tobytes() == pattern.tobytes()
    assert as_stored(pattern, dtype).tobytes() == pattern.tobytes()


@pytest.mark.parametrize("values", [every_float16(), every_bfloat16()], ids=["float16", "bfloat16"])
def test_every_narrow_value_is_widened_exactly_by_every_query(values: Array, simd_level: str) -> None:
    pattern = values.reshape(1, 1, 256, 256)
    cache = cache_of([pattern])
    with np.errstate(invalid="ignore"):  # NumPy warns of signalling NaNs: in the sum, and on Arm already in the cast
        widened = pattern[0, 0].astype(np.float32)
        mean = widened + np.float32(0)
    assert_same(cache.rows(0, heads=0), widened)
    assert_same(cache.columns(0, heads=0), np.ascontiguousarray(widened.T))
    assert_same(cache.edges(None, None, layers=0, heads=0), widened)
    assert_same(tuple(cache.top_k(256, layers=0, heads=0)), meaning("top_k", [pattern], 256, layers=0, heads=0))
    for position in range(256):
        assert_same(cache.attention_from_position(0, position), mean[position])
        assert_same(cache.attention_to_position(0, position), np.ascontiguousarray(mean[:, position]))
    assert_same(cache.head_mean(0), mean)
    for dtype in DTYPES:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            assert_same(as_stored(pattern, dtype), pattern.astype(np.float32).astype(DTYPES[dtype]))
