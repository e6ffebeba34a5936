"""Every query of the registry against its plain NumPy meaning in attncache.reference, and the head mean against NumPy.

Sizes: one below, at and above every vector width up to 129, once along keys and once along queries, and one row of
4099; head counts 1 to 33; patterns of every kind in support/patterns.py; every kind of layer in support/layers.py; every
SIMD level, dtype, thread count and index policy. Tolerance: none. All queries here are of the exact family: same bits,
-0.0 told from 0.0, NaN where NaN is expected.
Not covered: the payload and sign of NaN, errors (test_errors.py), sources and layouts (test_push.py).
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import attncache
from attncache.reference import QUERIES
from tests.support import strategies
from tests.support.calls import CASES, LARGE_CALLS, large, meaning_of_large, meanings, picks_none, two_layers
from tests.support.layers import LAYERS
from tests.support.patterns import DTYPES, KINDS, LONG, SIZES, Shape, assert_same, bits, cache_of, make, meaning


def assert_answers(name: str, kind: str, shape: Shape, dtype: str) -> None:
    cache = cache_of(two_layers(kind, shape, dtype))
    for (args, options), expected in meanings(name, kind, shape, dtype):
        actual = getattr(cache, name)(*args, **options)
        assert_same(actual, expected, f"{name}{args} {options} of {dtype} {kind} {shape}")


def test_every_registered_query_has_cases_here() -> None:
    assert sorted(QUERIES) == sorted(CASES) == sorted(LARGE_CALLS)


@pytest.mark.parametrize("name", QUERIES)
def test_every_registered_query_takes_the_arguments_of_its_meaning(name: str) -> None:
    expected = list(inspect.signature(QUERIES[name].meaning).parameters.values())[1:]
    actual = list(inspect.signature(getattr(attncache.AttentionCache, name)).parameters.values())[1:]
    delivery = {"out": None}  # how a result is delivered, not what it means (test_out.py)
    meant = [p for p in actual if p.name not in delivery]
    assert [(p.name, p.kind, p.default) for p in meant] == [(p.name, p.kind, p.default) for p in expected]
    assert all(p.kind == p.KEYWORD_ONLY and p.default is delivery[p.name] for p in actual if p not in meant)
    bound = inspect.signature(getattr(attncache.AttentionCache(), name)).parameters
    assert list(bound) == [parameter.name for parameter in actual]


@pytest.mark.parametrize("layer", LAYERS)
def test_every_kind_of_layer_answers_every_query_with_the_bits_of_its_rows(layer: str, tmp_path: Path) -> None:
    cache = LAYERS[layer](tmp_path)
    rows = [np.array(pattern, np.float32) for pattern in cache.patterns]
    for turn in range(3):  # an index is built on the way
        for name in QUERIES:
            for args, options in CASES[name](rows[0].shape):  # type: ignore[arg-type]
                expected = meaning(name, rows, *args, **options)
                assert_same(getattr(cache, name)(*args, **options), expected, f"{name}{args} {options}, turn {turn}")


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_is_exact_at_sizes_around_every_vector_width(name: str, simd_level: str, dtype: str) -> None:
    for place, size in enumerate(SIZES):
        kind = list(KINDS)[place % len(KINDS)]
        assert_answers(name, kind, (2, 3, 3, size), dtype)
        assert_answers(name, "extremes", (2, 3, size, 3), dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", QUERIES)
def test_every_query_is_exact_for_every_kind_of_pattern(name: str, kind: str, simd_level: str, dtype: str) -> None:
    assert_answers(name, kind, (2, 3, 7, 37), dtype)


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_is_exact_for_long_rows_and_long_columns(name: str, simd_level: str, dtype: str) -> None:
    assert_answers(name, "infinities", (2, 3, 2, LONG), dtype)
    assert_answers(name, "ties", (2, 3, LONG, 2), dtype)


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_is_exact_on_every_thread_count_and_level(name: str, threads: int, dtype: str) -> None:
    for level in attncache.simd.available():
        with attncache.simd.use(level):
            assert_answers(name, "extremes", (2, 3, 129, 517), dtype)


@pytest.mark.parametrize("index", ["off", "auto", "eager"])
@pytest.mark.parametrize("name", QUERIES)
def test_every_query_of_a_large_layer_is_exact_on_every_thread_count(name: str, index: str, threads: int) -> None:
    cache = cache_of([large()], index=index)
    for _ in range(3):
        assert_same(LARGE_CALLS[name](cache), meaning_of_large(name))


AROUND_A_BLOCK = [
    (2, 3, 15, 17),
    (2, 3, 16, 16),
    (2, 3, 17, 15),
    (2, 3, 1, 33),
    (2, 3, 33, 1),
    (2, 3, 31, 32),
    (2, 3, 1, 1),
]


@pytest.mark.parametrize("kind", ["extremes", "infinities", "signed_zeros", "nans"])
def test_every_query_has_the_same_bits_under_every_index_policy(kind: str, simd_level: str, dtype: str) -> None:
    for shape in AROUND_A_BLOCK:
        patterns = two_layers(kind, shape, dtype)
        for index in ("off", "auto", "eager"):
            cache = cache_of(patterns, index=index)
            for name in [*QUERIES] * 3:
                for (args, options), expected in meanings(name, kind, shape, dtype):
                    actual = getattr(cache, name)(*args, **options)
                    assert_same(actual, expected, f"{name}{args} {options} of {dtype} {kind} {shape}, index {index}")
            assert (cache.index_nbytes > 0) == (index != "off"), "so many answers must have built it"


@pytest.mark.parametrize("n_heads", [1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 32, 33])
def test_head_mean_has_numpys_bits_for_every_head_count(n_heads: int, simd_level: str, dtype: str) -> None:
    for kind in ("soft", "extremes", "subnormals", "signed_zeros"):
        pattern = make(kind, (2, n_heads, 5, 67), dtype)
        cache = cache_of([pattern])
        for batch in range(2):
            expected = pattern[batch].mean(axis=0, dtype=np.float32)
            mean = cache.head_mean(0, batch=batch)
            assert_same(mean, expected, f"{kind} head_mean")
            assert (mean.view(np.uint32) == expected.view(np.uint32)).all()
            for position in range(5):
                row = cache.attention_from_position(0, position, batch)
                assert (row.view(np.uint32) == expected[position].view(np.uint32)).all()
            for position in (0, 15, 16, 31, 66):
                column = cache.attention_to_position(0, position, batch)
                assert (column.view(np.uint32) == np.ascontiguousarray(expected[:, position]).view(np.uint32)).all()


def test_head_mean_has_numpys_bits_where_the_sum_overflows_or_is_infinite(simd_level: str) -> None:
    pattern = np.full((1, 3, 2, 19), 3e38, np.float32)
    pattern[0, :, 1] = [[np.inf], [1.0], [-np.inf]]
    with np.errstate(all="ignore"):
        expected = pattern[0].mean(axis=0, dtype=np.float32)
    assert np.isinf(expected[0]).all()
    assert np.isnan(expected[1]).all()
    assert_same(cache_of([pattern]).head_mean(0), expected)


def test_layers_of_different_dtypes_answer_together() -> None:
    patterns = [make("soft", (1, 3, 9, 33), name, name) for name in DTYPES]
    cache = cache_of(patterns)
    for name, args in (("rows", ()), ("columns", ()), ("edges", (None, [0, 5])), ("top_k", (4,))):
        assert_same(getattr(cache, name)(*args, heads=[2, 0]), meaning(name, patterns, *args, heads=[2, 0]))


def test_a_layer_is_found_among_layers_of_different_shapes() -> None:
    patterns = [make("soft", shape, "float32") for shape in ((1, 2, 3, 5), (2, 4, 6, 7), (1, 1, 2, 2))]
    cache = cache_of(patterns)
    for layer, pattern in enumerate(patterns):
        for index in (layer, layer - 3):
            for position in range(pattern.shape[2]):
                assert_same(cache.attention_from_position(index, position), pattern[0].mean(axis=0)[position])
            assert_same(cache.rows(index, heads=None, batch=None), pattern)


@pytest.mark.parametrize("name", ["rows", "columns", "edges", "top_k"])
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_selectors_pick_what_the_reference_picks(name: str, simd_level: str, data: st.DataObject) -> None:
    shape, kind = data.draw(strategies.shapes), data.draw(strategies.kinds)
    n_layers = data.draw(st.integers(1, 3))
    patterns = [make(kind, shape, list(DTYPES)[layer], layer) for layer in range(n_layers)]
    positions = {"rows": shape[2], "columns": shape[3]}
    options: dict[str, Any] = {}
    args: tuple[Any, ...] = ()
    if name == "edges":
        args = data.draw(strategies.selectors(shape[2])), data.draw(strategies.selectors(shape[3]))
    elif name == "top_k":
        args = (data.draw(st.integers(0, 50)),)
        options["direction"] = data.draw(st.sampled_from(["from", "to"]))
        positions["top_k"] = shape[2] if options["direction"] == "from" else shape[3]
    if name != "edges":
        options["positions"] = data.draw(strategies.selectors(positions[name]))
    options["layers"] = data.draw(strategies.selectors(n_layers).filter(lambda s: not picks_none(s, n_layers)))
    options["heads"] = data.draw(strategies.heads_arguments(shape[1]))
    options["batch"] = data.draw(strategies.selectors(shape[0]))
    expected = meaning(name, patterns, *args, **options)
    assert_same(getattr(cache_of(patterns), name)(*args, **options), expected, f"{name}{args} {options}")


def test_exact_comparison_tells_zeros_apart_and_nan_equal() -> None:
    assert_same(np.array([np.nan, 0.0], np.float32), np.array([-np.nan, 0.0], np.float32))
    with pytest.raises(AssertionError, match="1 of 1 differ"):
        assert_same(np.array([0.0], np.float32), np.array([-0.0], np.float32))
    assert bits(np.array([1.0], np.float32))[0] == 0x3F800000
