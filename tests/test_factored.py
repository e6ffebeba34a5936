"""The weights of factored layers: every option of push_qk against float64, every query against the rows of the same layer.

Sizes: head_dim 1 to 130 around every vector width and multiple of 8, sequences around the panel of 32 and the block of 256
keys, groups of 1 to 9 heads, sequences that differ. Tolerance of weights: the bound written in factored.hpp and computed by
reference.factored, nothing more. Everything that compares one query with another, one level with another or one thread
count with another compares bits.
Not covered: real models (test_models.py), speed (benchmarks/).
"""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import attncache
from attncache import reference
from tests.support.factored import (
    OPTIONS,
    Options,
    all_rows,
    assert_queries_have_the_bits_of,
    assert_within_bound,
    factored_of,
    layer,
    normal,
    options_of,
)
from tests.support.patterns import Array, assert_same

SEQUENCES = ((1, 1), (31, 31), (33, 33), (40, 40), (1, 40), (7, 300), (300, 7), (255, 255), (257, 513), (16, 1000))


@pytest.mark.parametrize("option", OPTIONS)
def test_weights_and_sums_lie_within_the_written_bound_for_every_option(option: str, simd_level: str) -> None:
    for seq_q, seq_k in SEQUENCES if simd_level != "scalar" else SEQUENCES[:6]:
        query, key = layer(seq_q, seq_k)
        options = options_of(option, 2, 6, seq_k)
        assert_within_bound(factored_of(query, key, **options), reference.factored(query, key, **options))


@pytest.mark.parametrize("head_dim", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 80, 96, 128, 130])
def test_weights_lie_within_the_bound_for_every_head_dim(head_dim: int, dtype: str, simd_level: str) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    query, key = layer(35, 70, batch=1, heads=3, key_heads=1, head_dim=head_dim, dtype=kind)
    assert_within_bound(factored_of(query, key), reference.factored(query, key))


@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (2, 1), (3, 3), (4, 2), (9, 3), (12, 1), (13, 13), (300, 1)])
def test_heads_in_groups_read_their_key_head(heads: int, key_heads: int) -> None:
    query, key = layer(20, 30, heads=heads, key_heads=key_heads)
    assert_within_bound(factored_of(query, key), reference.factored(query, key))
    repeated = np.repeat(key, heads // key_heads, axis=1)
    assert_same(all_rows(factored_of(query, key)), all_rows(factored_of(query, repeated)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layer_with_any_options_lies_within_the_bound(data: st.DataObject) -> None:
    draw = data.draw
    key_heads, group, batch = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 2))
    seq_q, seq_k, head_dim = draw(st.integers(1, 70)), draw(st.integers(1, 600)), draw(st.integers(1, 40))
    size = draw(st.sampled_from([0.01, 1.0, 4.0, 30.0]))
    dtype = draw(st.sampled_from([np.float16, np.float32, ml_dtypes.bfloat16]))
    query = (size * normal((batch, key_heads * group, seq_q, head_dim), seed=draw(st.integers(0, 9)))).astype(dtype)
    key = normal((batch, key_heads, seq_k, head_dim), dtype, draw(st.integers(0, 9)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    options: Options = {"causal": draw(st.booleans())}
    if draw(st.booleans()):
        options["window"] = draw(st.integers(1, 650))
    if draw(st.booleans()):
        options["scale"] = draw(st.sampled_from([1e-3, 0.5, -0.25, 2.0]))
    if draw(st.booleans()):
        options["softcap"] = draw(st.sampled_from([0.05, 1.0, 50.0]))
    if draw(st.booleans()):
        options["key_mask"] = rng.random((batch, seq_k)) > draw(st.sampled_from([0.05, 0.5, 1.1]))
    sums = draw(st.sampled_from(["computed", "given", "with sinks"]))
    if sums == "given":
        right = reference.factored(query, key, **options).lse
        options["lse"] = (right + rng.normal(size=right.shape)).astype(np.float32)  # a little off: taken as it is
    elif sums == "with sinks":
        options["sinks"] = (size * rng.standard_normal(key_heads * group)).astype(np.float32)
    assert_within_bound(factored_of(query, key, **options), reference.factored(query, key, **options))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("sums_known", [False, True], ids=["sums unknown", "sums known"])
def test_every_query_has_the_bits_of_the_rows(option: str, sums_known: bool, simd_level: str) -> None:
    for seq_q, seq_k in ((40, 40), (7, 300), (70, 33)):
        query, key = layer(seq_q, seq_k)
        options = options_of(option, 2, 6, seq_k)
        rows = all_rows(factored_of(query, key, **options))
        cache = factored_of(query, key, **options)
        if sums_known:
            cache.lse(0)
        assert_queries_have_the_bits_of(cache, rows)


def test_levels_and_thread_counts_give_the_same_bits(dtype: str) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    query, key = layer(150, 290, head_dim=20, dtype=kind)
    options = options_of("everything", 2, 6, 290)
    before = attncache.get_num_threads()
    found: list[tuple[str, list[Array]]] = []
    try:
        for level, n_threads in itertools.product(attncache.simd.available(), (1, 2, 3)):
            attncache.set_num_threads(n_threads)
            with attncache.simd.use(level):
                cache = factored_of(query, key, **options)
                answers = [all_rows(cache), cache.columns(0, heads=None), cache.lse(0), cache.head_mean(0)]
            found.append((f"{level}, {n_threads} threads", answers))
    finally:
        attncache.set_num_threads(before)
    for setting, answers in found[1:]:
        for answer, first in zip(answers, found[0][1], strict=True):
            assert_same(answer, first, f"{setting} against {found[0][0]}")


def test_given_sums_are_used_as_they_are() -> None:
    query, key = layer()
    sums = factored_of(query, key).lse(0) + np.float32(0.5)
    cache = factored_of(query, key, lse=sums)
    expected = reference.factored(query, key)
    np.testing.assert_allclose(all_rows(cache), expected.pattern * np.exp(-0.5), rtol=4e-6, atol=1e-30)
    assert_same(cache.lse(0), sums)
    assert_queries_have_the_bits_of(cache, all_rows(cache))


def test_weights_far_beyond_given_sums_stop_at_e_to_the_88th(simd_level: str) -> None:
    query, key = layer()
    lse = np.full(query.shape[:3], -100, np.float32)
    weights = all_rows(factored_of(query, key, lse=lse))
    expected = reference.factored(query, key, lse=lse)
    assert expected.pattern.max() == np.exp(88)
    assert (np.abs(weights - expected.pattern) <= expected.bound).all()


@pytest.mark.parametrize("infinity", [np.inf, -np.inf])
def test_given_sums_that_are_infinite_mean_a_row_of_zeros(infinity: float) -> None:
    query, key = layer()
    sums = factored_of(query, key).lse(0).copy()
    sums[:, :, 3] = infinity
    cache = factored_of(query, key, lse=sums)
    assert (all_rows(cache)[:, :, 3] == 0).all()
    assert np.isneginf(cache.lse(0)[:, :, 3]).all()


def test_a_row_without_a_visible_key_is_all_zeros_and_leaves_the_mean_alone() -> None:
    query, key = layer()
    cache = factored_of(query, key, key_mask=np.arange(40) >= np.array([[10], [40]]))
    assert (cache.rows(0, 9) == 0).all()
    assert (cache.rows(0, 10) != 0).any()
    assert (cache.rows(0, batch=1) == 0).all()
    assert np.isneginf(cache.lse(0)[0, :, :10]).all()


def test_causal_queries_before_the_first_key_see_nothing() -> None:
    query, key = layer(seq_q=10, seq_k=4)
    rows = all_rows(factored_of(query, key))
    assert (rows[:, :, :6] == 0).all()
    assert_same(rows[:, :, 6, 0], np.ones((2, 6), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_spoils_the_rows_that_see_it_as_in_numpy(value: float, simd_level: str) -> None:
    query, key = layer()
    key[0, 0, 20, 3] = value
    meaning = reference.factored(query, key)
    cache = factored_of(query, key)
    assert (np.isnan(all_rows(cache)) == np.isnan(meaning.pattern)).all()
    assert np.isfinite(all_rows(cache)[0, :, :20]).all()
    assert_queries_have_the_bits_of(cache, all_rows(cache))


def test_a_number_that_is_none_in_a_hidden_key_spoils_nothing() -> None:
    query, key = layer()
    mask = np.ones((2, 40), bool)
    mask[:, 20] = False
    clean = all_rows(factored_of(query, key, key_mask=mask))
    key[:, :, 20] = np.nan
    assert_same(all_rows(factored_of(query, key, key_mask=mask)), clean)


def test_large_scores_do_not_overflow() -> None:
    query, key = layer()
    rows = all_rows(factored_of(100 * query, 100 * key, scale=1.0))
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(rows.sum(axis=-1), 1, rtol=1e-5)
