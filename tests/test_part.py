"""``cache.part``: every weight of a part has the bits that it has in the whole cache.

Covered: dense layers of every dtype and kind of weights, factored ones of every option and grouping of heads, with sums
known and not, over any selector; rows, columns, edges, top-k and the pattern; shared memory; files; refusals.
Sizes: up to 600 keys, which are three blocks of the sums, and one layer of 131,072.
Not covered: layers on a device (tests/cuda), sources and tokens (test_part_labels.py).
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncache import AttentionCache, LayerSource, reference
from tests.support.factored import SIGHTS, three_texts
from tests.support.patterns import DTYPES, Array, assert_same, cache_of, make, meaning, rng
from tests.support.strategies import kinds, selectors, shapes


def assert_answers_as(part: AttentionCache, patterns: list[Array]) -> None:
    """A part holds these patterns and answers of them."""
    assert part.shapes == tuple(pattern.shape for pattern in patterns)
    for layer, pattern in enumerate(patterns):
        assert_same(part[layer], pattern, "pattern")
        for query in ("rows", "columns"):
            expected = meaning(query, [pattern], 0, heads=None, batch=None)
            assert_same(getattr(part, query)(layer, heads=None, batch=None), expected, query)
        if 0 in pattern.shape:
            continue
        for direction in ("from", "to"):
            options = {"layers": 0, "batch": -1, "direction": direction}
            expected = meaning("top_k", [pattern], 3, **options)
            assert_same(tuple(part.top_k(3, **{**options, "layers": layer})), expected, direction)
        assert_same(
            part.edges([-1, 0], 0, layers=layer, batch=-1), meaning("edges", [pattern], [-1, 0], 0, layers=0, batch=-1)
        )
        assert_same(part.head_mean(layer), meaning("head_mean", [pattern], 0))


@st.composite
def dense_parts(draw: st.DrawFn) -> tuple[list[Array], dict[str, Any]]:
    """Layers of one shape, and what to take of them."""
    shape, kind, dtype = draw(shapes), draw(kinds), draw(st.sampled_from(list(DTYPES)))
    layers = [make(kind, shape, dtype, number) for number in range(draw(st.integers(1, 3)))]
    sizes = {"layers": len(layers), "heads": shape[1], "batch": shape[0], "positions": shape[3]}
    return layers, {name: draw(selectors(size)) for name, size in sizes.items()}


@given(dense_parts())
def test_a_part_of_dense_layers_has_their_bits(drawn: tuple[list[Array], dict[str, Any]]) -> None:
    patterns, options = drawn
    assert_answers_as(cache_of(patterns).part(**options), reference.part(patterns, **options))


SIZES = ((5, 5), (3, 9), (9, 3), (12, 13), (40, 600), (300, 300))


@st.composite
def factored_parts(draw: st.DrawFn) -> tuple[AttentionCache, dict[str, Any]]:
    """One factored layer, its sums known or not, and what to take of it."""
    size, heads = draw(st.sampled_from(SIZES)), draw(st.sampled_from([(4, 2), (6, 1), (3, 3), (4, 4)]))
    options = draw(st.sampled_from(list(SIGHTS.values())))
    more = draw(st.sampled_from([{}, {"sinks": True}, {"lse": True}]))
    padding = draw(st.booleans())
    cache = three_texts(size, heads, draw(st.sampled_from(list(DTYPES))), padding=padding, **options, **more)
    if draw(st.booleans()):
        cache.lse(0)
    is_free = options == SIGHTS["bidirectional"]
    bound = st.none() | st.integers(-size[1], size[1] + 1)
    positions = (
        selectors(size[1]) if is_free else st.none() | st.builds(slice, bound, bound) | st.integers(0, size[1] - 1)
    )
    chosen = selectors(heads[0]).filter(lambda selector: len(reference.chosen(heads[0], selector)[0]) > 0)
    return cache, {"heads": draw(chosen), "batch": draw(selectors(3)), "positions": draw(positions)}


@settings(max_examples=150)
@given(factored_parts())
def test_a_part_of_a_factored_layer_has_its_bits(drawn: tuple[AttentionCache, dict[str, Any]]) -> None:
    cache, options = drawn
    part = cache.part(**options)
    assert part.kinds == ("factored",)
    assert part.dtypes == cache.dtypes
    assert_answers_as(part, reference.part([cache[0]], **options))


@pytest.mark.parametrize("options", SIGHTS.values(), ids=list(SIGHTS))
@pytest.mark.parametrize("padding", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("positions", [slice(0, 290), slice(256, None), slice(100, 400), slice(599, None)], ids=str)
def test_parts_of_a_part_and_of_its_file_have_the_same_bits(
    options: dict[str, Any], padding: bool, positions: slice, tmp_path: Path
) -> None:
    cache = three_texts((400, 600), (4, 2), "float16", sinks=True, padding=padding, **options)
    whole = cache[0]
    part = cache.part(positions=positions)
    part.save(tmp_path / "part.safetensors", index=True)
    loaded = AttentionCache.load(tmp_path / "part.safetensors")
    expected = reference.part([whole], positions=positions)
    for each in (part, loaded):
        assert_same(each[0], expected[0])
        again = reference.part(expected, positions=slice(None, -1), heads=[3, 1], batch=2)
        assert_same(each.part(positions=slice(None, -1), heads=[3, 1], batch=2)[0], again[0])


def test_sums_over_keys_that_are_left_out_are_kept_in_a_file_without_an_index(tmp_path: Path) -> None:
    part = three_texts((300, 300), (4, 2), "float32", sinks=True).part(positions=slice(3, 290))
    part.save(tmp_path / "part.safetensors")
    assert_same(AttentionCache.load(tmp_path / "part.safetensors")[0], part[0])
    assert_same(AttentionCache.load(tmp_path / "part.safetensors", mmap=False).lse(0), part.lse(0))


def test_a_text_without_its_padding_goes_on_as_the_whole_does() -> None:
    cache = three_texts((12, 12), (4, 2), "float32", padding=True, window=8)
    part = cache.part(batch=0, positions=slice(4, None))
    assert_same(part[0], cache[0][:1, :, 4:, 4:])
    assert_same(part[0].sum(-1).round(5), np.ones((1, 4, 8), np.float32))
    query, key = (rng(n).normal(size=(3, n, 1, 6)).astype(np.float32) for n in (4, 2))
    cache.append_qk(0, query, key)
    part.append_qk(0, query[:1], key[:1])
    np.testing.assert_allclose(part[0], cache[0][:1, :, 4:, 4:], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "first_seen"),
    [
        ({"window": 4}, 3),
        ({"causal": False, "window": 3}, 3),
        ({"causal": False, "window": 1}, 5),
        ({}, 0),
        ({"causal": False}, 0),
    ],
    ids=["causal window", "window on both sides", "neighbours", "causal", "bidirectional"],
)
def test_sums_are_kept_for_good_from_the_first_visible_key_that_is_left_out(options: Any, first_seen: int) -> None:
    cache = three_texts((3, 9), (4, 2), "float32", **options)  # the first query stands at key 6
    for first in range(7):
        assert is_for_good(cache.part(positions=slice(first, None))) is (first > first_seen)
    for end in (7, 8, 9):
        sees_behind = not options.get("causal", True) and end < 9
        assert is_for_good(cache.part(positions=slice(0, end))) is sees_behind


def is_for_good(part: AttentionCache) -> bool:
    """Whether a layer takes no more positions, because its sums hold keys that it has not."""
    try:
        part.append_qk(0, np.ones((3, 4, 1, 6), np.float32), np.ones((3, 2, 1, 6), np.float32))
    except ValueError as error:
        return "pushed without lse" in str(error)
    return False


def test_a_block_of_a_dense_layer_is_shared_and_any_other_part_is_copied() -> None:
    cache = cache_of([make("soft", (3, 4, 5, 5), "float16")])
    for options, is_shared in (
        ({"batch": slice(1, 3)}, True),
        ({"batch": 1}, True),
        ({"batch": [0, 1], "heads": slice(None)}, True),
        ({"batch": 2, "heads": slice(1, 3)}, True),
        ({"batch": [1], "heads": 3}, True),
        ({"batch": [0, 2]}, False),
        ({"heads": 1}, False),
        ({"batch": 0, "heads": [2, 1]}, False),
        ({"batch": 0, "heads": 0, "positions": slice(1, None)}, False),
    ):
        part = cache.part(**options)
        assert np.shares_memory(part[0], cache[0]) is is_shared, options
        assert_same(part[0], reference.part([cache[0]], **options)[0], str(options))
        assert not part[0].flags.writeable


def test_queries_and_keys_are_shared_wherever_indices_ascend_evenly() -> None:
    cache = three_texts((9, 12), (4, 2), "float32")
    for options, are_shared in (
        ({"batch": 1}, (True, True)),
        ({"heads": slice(2, 4)}, (True, True)),
        ({"heads": [0, 2]}, (True, True)),
        ({"positions": slice(2, 9)}, (True, True)),
        ({"batch": [0, 2], "heads": 1, "positions": slice(5, 6)}, (True, True)),
        ({"heads": [0, 1, 2]}, (True, False)),
        ({"heads": [3, 2]}, (False, True)),
        ({"batch": [1, 0]}, (False, False)),
    ):
        part = cache.part(**options)
        shared = (
            np.shares_memory(part.get_queries(0), cache.get_queries(0)),
            np.shares_memory(part.get_keys(0), cache.get_keys(0)),
        )
        assert shared == are_shared, options
        assert_same(part[0], reference.part([cache[0]], **options)[0], str(options))


def test_whole_layers_are_shared_with_their_index_and_their_sums() -> None:
    cache = AttentionCache("float16", index="eager")
    cache.push(make("soft", (2, 3, 4, 4)))
    cache.push_qk(np.ones((2, 2, 4, 3), np.float16), np.ones((2, 2, 4, 3), np.float16))
    cache.lse(1)
    part = cache.part(layers=[1, 0], heads=slice(None), batch=range(2), positions=slice(0, 9))
    assert np.shares_memory(part[1], cache[0])
    assert part.index_nbytes == cache.index_nbytes > 0
    assert part.nbytes == cache.nbytes
    assert (part.index, part.n_layers) == ("eager", 2)
    part.push(make("soft", (1, 1, 2, 2)))
    assert part.dtypes[-1] == "float16"
    assert cache.n_layers == 2


def test_a_part_of_a_long_factored_layer_takes_the_memory_of_its_result() -> None:
    n = 131_072
    query, key = (rng(n_heads).normal(size=(1, n_heads, n, 8)).astype(np.float16) for n_heads in (4, 2))
    cache = AttentionCache()
    cache.push_qk(query, key)
    tracemalloc.start()
    parts = {
        "heads": cache.part(heads=slice(2, 4)),
        "end": cache.part(positions=slice(n - 40, None)),
        "beginning": cache.part(positions=slice(0, 1000)),
    }
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    assert [part.nbytes for part in parts.values()] == [3 * n * 16, 6 * 40 * 16 + 8 * 160, 6 * 1000 * 16]
    assert_same(parts["heads"].rows(0, -1, heads=None), cache.rows(0, -1, heads=[2, 3]))
    assert_same(parts["end"].rows(0, -3), cache.rows(0, -3)[-40:].copy())
    assert_same(parts["beginning"].rows(0, 999), cache.rows(0, 999)[:1000].copy())


def test_layers_of_other_shapes_are_cut_each_by_its_own_sizes() -> None:
    patterns = [make("soft", (1, 2, 3, 3)), make("soft", (1, 4, 2, 6))]
    part = cache_of(patterns).part(heads=-1, positions=slice(-2, None))
    assert_answers_as(part, [patterns[0][:, 1:, 1:, 1:].copy(), patterns[1][:, 3:, :, 4:].copy()])


def test_a_part_of_a_file_stays_in_the_file(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as disk:
        disk.push(make("soft", (2, 3, 4, 4)), source=LayerSource("m", layer=1))
        disk.push_qk(*(rng(n).normal(size=(2, n, 4, 6)).astype(np.float32) for n in (4, 2)))
        part = disk.part(batch=1)
        assert type(part) is AttentionCache
        assert np.shares_memory(part[0], disk[0])
        assert np.shares_memory(part.get_keys(1), disk.get_keys(1))
        expected = reference.part([view.copy() for view in disk], batch=1)
    assert_answers_as(part, expected)
    part.push(make("soft", (1, 3, 4, 4)))
    assert AttentionCache.load(tmp_path / "run").n_layers == 2


def test_an_index_in_a_file_stays_out_of_a_part_that_has_other_heads(tmp_path: Path) -> None:
    cache = cache_of([make("soft", (1, 3, 4, 4))])
    cache.save(tmp_path / "a.safetensors", index=True)
    part = AttentionCache.load(tmp_path / "a.safetensors").part(heads=[0, 2])
    assert part.index_nbytes == 0
    assert_same(part.head_mean(0), meaning("head_mean", [cache[0][:, [0, 2]]], 0))
