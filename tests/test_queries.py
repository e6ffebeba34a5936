"""Every query of the registry against its plain NumPy meaning in attncache.reference, and the head mean against NumPy.

Sizes: one below, at and above every vector width up to 129, once along keys and once along queries, and one row of
4099; head counts 1 to 33; patterns of every kind in support/patterns.py; every SIMD level, dtype and thread count.
Tolerance: none. All queries here are of the exact family: same bits, -0.0 told from 0.0, NaN where NaN is expected.
Not covered: the payload and sign of NaN, errors (test_contracts.py), sources and layouts (test_push.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import attncache
from attncache.reference import QUERIES
from tests.support import strategies
from tests.support.patterns import DTYPES, KINDS, LONG, SIZES, Array, Shape, assert_same, bits, cache_of, make, meaning

Call = tuple[tuple[Any, ...], dict[str, Any]]


def calls_of_attention(n_layers: int, size: int) -> list[Call]:
    last = size - 1
    return [((0, 0), {}), ((n_layers - 1, last), {"batch": 1}), ((-1, -size), {"batch": -1}), ((0, size // 2), {})]


def calls_of_lines(n_layers: int, size: int) -> list[Call]:
    some = [size - 1, 0, -1, size // 2, 0]
    return [
        ((), {}),
        ((0, 0), {}),
        ((None, size - 1), {"heads": None}),
        ((slice(None, None, -1), some), {"heads": [2, 0, 2], "batch": None}),
        (([0, 0, -1], slice(None, None, 2)), {"heads": ("mean", [2, 0]), "batch": [1, 0, 1]}),
        ((0, [0]), {"heads": 1}),
        ((range(n_layers), np.array(some)), {"heads": ("mean", slice(1, None)), "batch": -1}),
        ((0, []), {}),
    ]


CASES: dict[str, Callable[[Shape], list[Call]]] = {
    "attention_from_position": lambda shape: calls_of_attention(2, shape[2]),
    "attention_to_position": lambda shape: calls_of_attention(2, shape[3]),
    "top_attended_positions": lambda shape: [
        ((layer, position, k), {"batch": batch})
        for layer, position, batch in ((0, 0, 0), (1, -1, 1))
        for k in {0, 1, 2, 3, 10, shape[3] - 1, shape[3], shape[3] + 100}
    ],
    "head_mean": lambda _: [((0,), {}), ((-1,), {"batch": 1})],
    "rows": lambda shape: calls_of_lines(2, shape[2]),
    "columns": lambda shape: calls_of_lines(2, shape[3]),
    "edges": lambda shape: [
        ((0, -1), {}),
        ((None, None), {"heads": "mean"}),
        ((range(shape[2]), [shape[3] - 1, 0, 0]), {"layers": 1, "heads": [1, 0], "batch": None}),
        ((slice(None, None, -1), slice(0, None, 3)), {"layers": [1, 0], "heads": ("mean", [1]), "batch": [0]}),
        (([0, -1], 0), {"layers": slice(None), "heads": 2}),
    ],
    "top_k": lambda shape: [
        ((k,), {"direction": direction, **options})
        for direction in ("from", "to")
        for k in (0, 1, 3, 10, max(shape[2:]) + 1)
        for options in (
            {},
            {"layers": 0, "positions": -1, "heads": 1},
            {"layers": [1, 0], "positions": slice(None, None, 2), "heads": None, "batch": None},
            {"heads": ("mean", [0, 2]), "positions": [0, 0]},
        )
    ],
}


@cache
def two_layers(kind: str, shape: Shape, dtype: str) -> tuple[Array, Array]:
    return make(kind, shape, dtype, 0), make(kind, shape, dtype, 1)


@cache
def meanings(name: str, kind: str, shape: Shape, dtype: str) -> list[tuple[Call, Any]]:
    """Every case of one query with what the reference answers."""
    patterns = two_layers(kind, shape, dtype)
    return [((args, options), meaning(name, patterns, *args, **options)) for args, options in CASES[name](shape)]


def assert_answers(name: str, kind: str, shape: Shape, dtype: str) -> None:
    cache = cache_of(two_layers(kind, shape, dtype))
    for (args, options), expected in meanings(name, kind, shape, dtype):
        actual = getattr(cache, name)(*args, **options)
        assert_same(actual, expected, f"{name}{args} {options} of {dtype} {kind} {shape}")


def test_every_registered_query_has_cases_here() -> None:
    assert sorted(QUERIES) == sorted(CASES), "reference.QUERIES and test_queries.CASES must name the same queries"


@pytest.mark.parametrize("name", QUERIES)
def test_every_registered_query_takes_the_arguments_of_its_meaning(name: str) -> None:
    expected = list(inspect.signature(QUERIES[name].meaning).parameters.values())[1:]
    actual = list(inspect.signature(getattr(attncache.AttentionCache, name)).parameters.values())[1:]
    delivery = {"out": None, "device_result": False}  # how a result is delivered, not what it means (test_out.py)
    meant = [p for p in actual if p.name not in delivery]
    assert [(p.name, p.kind, p.default) for p in meant] == [(p.name, p.kind, p.default) for p in expected]
    bound = inspect.signature(getattr(attncache.AttentionCache(), name)).parameters
    assert list(bound) == [parameter.name for parameter in actual]
    delivering = [p for p in actual if p.name in delivery]
    assert all((p.kind, p.default) == (p.KEYWORD_ONLY, delivery[p.name]) for p in delivering)
    assert any(p.name == "device_result" for p in delivering) == (name != "top_attended_positions")


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
def test_every_query_is_exact_on_every_thread_count(name: str, threads: int, dtype: str) -> None:
    assert_answers(name, "extremes", (2, 3, 129, 517), dtype)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 8, 1, 1), (1, 2, 1, 5), (3, 1, 5, 1)], ids=str)
@pytest.mark.parametrize("name", QUERIES)
def test_every_query_answers_the_smallest_patterns(name: str, shape: Shape, dtype: str) -> None:
    batches, n_heads = shape[:2]
    pattern = make("extremes", (2, 3, *shape[2:]), dtype, 0), make("extremes", (2, 3, *shape[2:]), dtype, 1)
    assert_answers(name, "extremes", (2, 3, *shape[2:]), dtype)
    narrow = [np.ascontiguousarray(layer[:batches, : min(n_heads, 3)]) for layer in pattern]
    cache = cache_of(narrow)
    assert_same(cache.rows(), meaning("rows", narrow), "rows of the smallest")


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


@pytest.mark.parametrize("name", QUERIES)
def test_levels_and_thread_counts_give_the_same_bits(name: str, dtype: str) -> None:
    shape = (2, 3, 65, 259)
    cache = cache_of(two_layers("infinities", shape, dtype))
    before = attncache.get_num_threads()
    answers: dict[str, list[Any]] = {}
    try:
        for level in attncache.simd.available():
            for count in (1, 2, 3):
                attncache.set_num_threads(count)
                with attncache.simd.use(level):
                    found = [getattr(cache, name)(*args, **options) for args, options in CASES[name](shape)]
                answers[f"{level}, {count} threads"] = found
    finally:
        attncache.set_num_threads(before)
    (first_setting, first), *others = answers.items()
    for setting, other in others:
        for one, two in zip(first, other, strict=True):
            assert_same(two, tuple(one) if isinstance(one, tuple) else one, f"{setting} against {first_setting}")


def test_repeated_queries_give_the_same_bits_as_the_first(dtype: str) -> None:
    pattern = make("extremes", (1, 5, 33, 65), dtype)
    cache = cache_of([pattern])
    for _ in range(40):  # often enough for an index to be built in between
        for name in ("attention_from_position", "attention_to_position"):
            for position in (0, 32):
                assert_same(getattr(cache, name)(0, position), meaning(name, [pattern], 0, position))
        assert_same(cache.top_attended_positions(0, 7, 5), meaning("top_attended_positions", [pattern], 0, 7, 5))
    assert_same(cache.head_mean(0), meaning("head_mean", [pattern], 0))


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


def picks_none(selector: Any, size: int) -> bool:
    """Whether a selector picks nothing: of layers, the reference has no meaning for that (test_contracts.py has)."""
    if isinstance(selector, slice):
        return len(range(size)[selector]) == 0
    return np.ndim(selector) == 1 and len(selector) == 0


def test_exact_comparison_tells_zeros_apart_and_nan_equal() -> None:
    assert_same(np.array([np.nan, 0.0], np.float32), np.array([-np.nan, 0.0], np.float32))
    with pytest.raises(AssertionError, match="1 of 1 differ"):
        assert_same(np.array([0.0], np.float32), np.array([-0.0], np.float32))
    assert bits(np.array([1.0], np.float32))[0] == 0x3F800000
