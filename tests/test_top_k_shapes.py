"""The selection behind top_k against reference.heaviest, on rows that are hard for a threshold found in groups.

Rows: sorted, reversed, constant, zeros of both signs, NaN everywhere, here and there and among the heaviest, infinities,
negative, causal with few weights, few distinct values, many powers of two apart, all that is heavy in one group of
lanes, ties where the buffer fills. Sizes: every length to 40 and those around every vector, group and sort; every k
around a change of method. Every dtype, SIMD level, direction, one head and the mean, with and without the index.
Tolerance: none; positions are equal and weights have the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import attncache
from attncache import AttentionCache
from attncache.reference import heaviest
from tests.support.patterns import DTYPES, Array, bits, make, rng

SHORT = tuple(range(1, 41))
LONG = (64, 127, 128, 129, 130, 255, 256, 257, 258, 511, 512, 513, 1000, 1025, 2048, 5000)
COUNTS = (1, 2, 10, 16, 17, 31, 32, 33, 47, 48, 49, 100, 127, 128, 129, 511, 512, 513, 1023, 1024, 1025)


def with_values(row: Array, where: Any, values: Any) -> Array:
    changed = row.astype(np.float32)
    changed[where] = values
    return changed


def soft(n: int) -> Array:
    return np.asarray(make("soft", (1, 1, 1, n))[0, 0, 0])


def heaviest_of(row: Array, share: float) -> Array:
    return np.argsort(row)[-max(1, int(len(row) * share)) :]


def every(n: int, step: int) -> Array:
    """Heavy weights at every `step`-th place only, so that one group of lanes holds them all."""
    row = np.arange(n, dtype=np.float32) / (4 * n)
    row[step // 2 :: step] += 1
    return row


ROWS: dict[str, Callable[[int], Array]] = {
    "ascending": lambda n: np.arange(n) / n,
    "descending": lambda n: np.arange(n)[::-1] / n,
    "equal": lambda n: np.full(n, 1 / n),
    "zeros": np.zeros,
    "soft": soft,
    "NaN": lambda n: np.full(n, np.nan),
    "half NaN": lambda n: with_values(soft(n), rng(n).random(n) < 0.5, np.nan),
    "NaN at the heaviest": lambda n: with_values(soft(n), heaviest_of(soft(n), 0.02), np.nan),
    "one NaN": lambda n: with_values(soft(n), n // 2, np.nan),
    "one number among NaN": lambda n: with_values(np.full(n, np.nan), n // 3, 0.25),
    "infinities": lambda n: rng(n).choice([np.inf, -np.inf, 0.5, -0.5], n),
    "minus infinity": lambda n: np.full(n, -np.inf),
    "infinities and NaN": lambda n: rng(n).choice([np.inf, -np.inf, np.nan], n),
    "one above minus infinity": lambda n: with_values(np.full(n, -np.inf), n - 1, -3.0),
    "infinity in front": lambda n: with_values(soft(n), slice(0, 3), np.inf),
    "negative": lambda n: -soft(n),
    "one negative": lambda n: with_values(soft(n), n // 2, -1.0),
    "both signs": lambda n: rng(n).normal(size=n),
    "zeros of both signs": lambda n: np.where(rng(n).random(n) < 0.5, -0.0, 0.0),
    "zeros of both signs and few others": lambda n: with_values(
        np.where(rng(n).random(n) < 0.5, -0.0, 0.0), rng(n, 1).integers(0, n, 5), [0.5, -0.5, 2.0**-24, 0.5, -1.0]
    ),
    "causal, few": lambda n: with_values(np.zeros(n), slice(0, 1 + n // 40), soft(1 + n // 40)),
    "causal, few at the end": lambda n: with_values(np.zeros(n), slice(n - 1 - n // 40, n), soft(1 + n // 40)),
    "causal, half": lambda n: with_values(np.zeros(n), slice(0, 1 + n // 2), soft(1 + n // 2)),
    "two values": lambda n: rng(n).integers(0, 2, n) / 2,
    "five values": lambda n: rng(n).integers(0, 5, n) / 8,
    "five values of both signs": lambda n: rng(n).integers(-2, 3, n) / 8,
    "steps up": lambda n: np.arange(n) // 37 / 64,
    "steps down": lambda n: np.arange(n)[::-1] // 37 / 64,
    "powers of two": lambda n: np.exp2(-(np.arange(n) % 24)),
    "powers of two, up": lambda n: np.exp2(np.linspace(-24, 15, n)),
    "subnormals": lambda n: rng(n).integers(0, 1024, n) * 2.0**-24,
    "smallest floats": lambda n: rng(n).integers(0, 9, n) * 2.0**-149,
    "last bits": lambda n: (
        np.nextafter(np.float32(0.5), np.float32(1), dtype=np.float32) * (1 + rng(n).random(n) / 1e6)
    ),
    "ties, then the next number": lambda n: with_values(
        np.full(n, 0.5), slice(-1 - n // 90, None), np.nextafter(np.float32(0.5), np.float32(1))
    ),
    "zeros, then the smallest float": lambda n: with_values(np.zeros(n), slice(-1 - n // 90, None), 2.0**-149),
    "minus infinity, then the least number": lambda n: with_values(
        np.full(n, -np.inf), slice(-1 - n // 90, None), np.finfo(np.float32).min
    ),
    "NaN, then minus infinity": lambda n: with_values(np.full(n, np.nan), slice(-1 - n // 90, None), -np.inf),
    "every 4th": lambda n: every(n, 4),
    "every 32nd": lambda n: every(n, 32),
    "every 64th": lambda n: every(n, 64),
    "every 128th": lambda n: every(n, 128),
    "saw": lambda n: np.arange(n) % 128 / 128,
}


def counts_for(n: int) -> list[int]:
    return sorted({k for k in (*COUNTS, n // 2, n // 2 + 1, n - 1, n) if 1 <= k <= n})


@functools.cache
def rows_of(n: int, dtype: str) -> Array:
    """[2 heads, row, n]: every kind of row; the other head has them in another order."""
    with np.errstate(all="ignore"):
        rows = np.array([make_row(n) for make_row in ROWS.values()], np.float32).astype(DTYPES[dtype])
    return np.stack([rows, rows[::-1]])


def mean(rows: Array) -> Array:
    """The mean of the two heads, summed from +0 in their order."""
    with np.errstate(all="ignore"):
        return np.asarray(((0 + rows[0].astype(np.float32)) + rows[1].astype(np.float32)) / np.float32(2))


@functools.cache
def expected_of(n: int, dtype: str, is_mean: bool) -> tuple[Array, Array]:
    """All positions in order, and the weights there."""
    with np.errstate(all="ignore"):
        weights = mean(rows_of(n, dtype)) if is_mean else rows_of(n, dtype).astype(np.float32)
        positions = heaviest(weights, n)
    return positions, bits(np.take_along_axis(weights, positions, axis=-1))


def assert_heaviest(found: Any, positions: Array, weight_bits: Array, k: int, context: str) -> None:
    wrong = np.argwhere(found.positions != positions[..., :k])
    if len(wrong):
        *line, place = (int(index) for index in wrong[0])
        raise AssertionError(
            f"{context}, {list(ROWS)[line[-1]]}, line {line}, place {place}: got position "
            f"{found.positions[tuple(wrong[0])]}, expected {positions[tuple(wrong[0])]}"
        )
    assert (bits(found.weights) == weight_bits[..., :k]).all(), f"{context}: the weights differ"


def assert_ranks(n: int, dtype: str, heads: Any, index: Any = "off") -> None:
    rows = rows_of(n, dtype)
    cache = AttentionCache(index=index)
    cache.push(rows[None])
    cache.push(np.ascontiguousarray(rows.swapaxes(1, 2))[None])
    positions, weight_bits = expected_of(n, dtype, heads == "mean")
    for k in counts_for(n):
        for layer, direction in ((0, "from"), (1, "to")):
            found = cache.top_k(k, layers=layer, heads=heads, direction=direction)
            assert_heaviest(found, positions, weight_bits, k, f"{dtype}, n={n}, k={k}, {direction}, heads={heads}")


def test_the_rows_are_of_their_length_and_all_differ() -> None:
    for n in (1, 2, 40, 1000):
        assert {make_row(n).shape for make_row in ROWS.values()} == {(n,)}
    assert len({make_row(1000).astype(np.float32).tobytes() for make_row in ROWS.values()}) == len(ROWS)


def test_each_head_is_ranked_for_every_short_length(simd_level: str, dtype: str) -> None:
    for n in SHORT:
        assert_ranks(n, dtype, None)


@pytest.mark.parametrize("n", LONG)
def test_each_head_is_ranked_for_lengths_around_every_method(n: int, simd_level: str, dtype: str) -> None:
    assert_ranks(n, dtype, None)


def test_the_mean_is_ranked_with_and_without_the_index(simd_level: str, dtype: str) -> None:
    for n in (1, 5, 17, 31, 64, 130, 257, 513, 1000):
        for index in ("off", "eager"):
            assert_ranks(n, dtype, "mean", index)


def test_top_attended_positions_ranks_the_same_rows(simd_level: str) -> None:
    for n in (1, 2, 7, 33, 129, 512, 1000):
        positions, _ = expected_of(n, "float32", True)
        weights = mean(rows_of(n, "float32"))
        for index in ("off", "eager"):
            cache = AttentionCache(index=index)  # type: ignore[arg-type]
            cache.push(rows_of(n, "float32")[None])
            for k in counts_for(n):
                for line, name in enumerate(ROWS):
                    found = cache.top_attended_positions(0, line, k)
                    wanted = positions[line, :k]
                    assert [position for position, _ in found] == wanted.tolist(), f"{name}, n={n}, k={k}, {index}"
                    same = np.array([weight for _, weight in found], np.float32)
                    assert (bits(same) == bits(weights[line, wanted])).all(), f"{name}, n={n}, k={k}, {index}"


def test_a_count_of_none_gives_nothing_and_a_huge_one_gives_all(simd_level: str, dtype: str) -> None:
    n = 130
    cache = AttentionCache()
    cache.push(rows_of(n, dtype)[None])
    assert cache.top_k(0, layers=0, heads=None).positions.shape == (2, len(ROWS), 0)
    for k in (n + 1, 2**31, 2**32 + 1, 2**63 - 1, 2**63, 2**64, 10**30):
        found = cache.top_k(k, layers=0, heads=None)
        assert_heaviest(found, *expected_of(n, dtype, False), n, f"k={k}")
        assert len(cache.top_attended_positions(0, 0, k)) == n


def test_threads_rank_the_same(threads: int, dtype: str) -> None:
    for n in (129, 2048):
        assert_ranks(n, dtype, None)
        assert_ranks(n, dtype, "mean", "auto")


few = st.sampled_from([0.0, -0.0, 0.25, 0.5, -0.5, 1.0, float("inf"), float("-inf"), float("nan"), 2.0**-24, 2.0**-149])
lists = st.one_of(
    st.lists(few, min_size=1, max_size=400),
    st.lists(st.floats(width=32), min_size=1, max_size=400),
    st.lists(st.floats(0, 1, width=16) | few, min_size=1, max_size=200),
    st.tuples(st.lists(few, min_size=1, max_size=7), st.integers(1, 200)).map(lambda drawn: drawn[0] * drawn[1]),
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(values=lists, share=st.floats(0, 1), dtype=st.sampled_from(list(DTYPES)))
def test_any_row_is_ranked_as_the_reference_ranks_it(values: list[float], share: float, dtype: str) -> None:
    with np.errstate(all="ignore"):
        row = np.array(values, np.float32).astype(DTYPES[dtype])
        weights = row.astype(np.float32)
    k = max(1, round(share * len(values)))
    wanted = heaviest(weights, k)
    cache = AttentionCache(index="off")
    cache.push(row[None, None, None])
    cache.push(row[None, None, :, None])
    for level in attncache.simd.available():
        with attncache.simd.use(level):
            for layer, direction in ((0, "from"), (1, "to")):
                found = cache.top_k(k, layers=layer, positions=0, heads=0, direction=direction)  # type: ignore[arg-type]
                assert found.positions.tolist() == wanted.tolist(), f"{level}, {direction}"
                assert (bits(found.weights) == bits(weights[wanted])).all(), f"{level}, {direction}"
