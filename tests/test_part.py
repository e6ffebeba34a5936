"""``cache.part``: every weight of a part has the bits that it has in the whole cache.

Covered: dense layers of every dtype and kind of weights, factored ones of every option and grouping of heads, with sums
known and not, over any selector; rows, columns, edges, top-k and the pattern; shared memory; kinds of attention, sources,
tokens; files; a captured model; refusals. Sizes: up to 600 keys, which are three blocks of the sums, and one layer of 131,072.
Not covered: layers on a device (tests/cuda).
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncache import AttentionCache, LayerSource, capture, reference
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
OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {},
    "bidirectional": {"causal": False},
    "causal window": {"window": 4},
    "causal window of a block": {"window": 256},
    "window on both sides": {"causal": False, "window": 3},
    "cap and scale": {"softcap": 2.0, "scale": 0.7},
}


def factored(size: tuple[int, int], heads: tuple[int, int], dtype: str, **options: Any) -> AttentionCache:
    """A cache of one factored layer of three texts, one padded on the left, one on the right."""
    random = rng("part", size, heads, sorted(options))
    query, key = (
        random.normal(size=(3, n_heads, n, 6)).astype(DTYPES[dtype]) for n_heads, n in zip(heads, size, strict=True)
    )
    if options.pop("padding", False):
        mask = np.ones((3, size[1]), bool)
        mask[0, : size[1] // 3] = mask[1, -(size[1] // 4) :] = mask[2, size[1] // 2] = False
        options["key_mask"] = mask
    if options.pop("sinks", False):
        options["sinks"] = random.normal(size=heads[0]).astype(np.float32)
    if options.pop("lse", False):
        options["lse"] = random.normal(size=(3, heads[0], size[0])).astype(np.float32) + 3
    cache = AttentionCache()
    cache.push_qk(query, key, **options)
    return cache


@st.composite
def factored_parts(draw: st.DrawFn) -> tuple[AttentionCache, dict[str, Any]]:
    """One factored layer, its sums known or not, and what to take of it."""
    size, heads = draw(st.sampled_from(SIZES)), draw(st.sampled_from([(4, 2), (6, 1), (3, 3), (4, 4)]))
    options = draw(st.sampled_from(list(OPTIONS.values())))
    more = draw(st.sampled_from([{}, {"sinks": True}, {"lse": True}]))
    padding = draw(st.booleans())
    cache = factored(size, heads, draw(st.sampled_from(list(DTYPES))), padding=padding, **options, **more)
    if draw(st.booleans()):
        cache.lse(0)
    is_free = options == OPTIONS["bidirectional"]
    bound = st.none() | st.integers(-size[1], size[1] + 1)
    positions = (
        selectors(size[1]) if is_free else st.none() | st.builds(slice, bound, bound) | st.integers(0, size[1] - 1)
    )
    chosen = selectors(heads[0]).filter(lambda selector: len(reference.chosen(heads[0], selector)[0]) > 0)
    return cache, {"heads": draw(chosen), "batch": draw(selectors(3)), "positions": draw(positions)}


@settings(max_examples=300)
@given(factored_parts())
def test_a_part_of_a_factored_layer_has_its_bits(drawn: tuple[AttentionCache, dict[str, Any]]) -> None:
    cache, options = drawn
    part = cache.part(**options)
    assert part.kinds == ("factored",)
    assert part.dtypes == cache.dtypes
    assert_answers_as(part, reference.part([cache[0]], **options))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("padding", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("positions", [slice(0, 290), slice(256, None), slice(100, 400), slice(599, None)], ids=str)
def test_parts_of_a_part_and_of_its_file_have_the_same_bits(
    options: dict[str, Any], padding: bool, positions: slice, tmp_path: Path
) -> None:
    cache = factored((500, 600), (4, 2), "float16", sinks=True, padding=padding, **options)
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
    part = factored((300, 300), (4, 2), "float32", sinks=True).part(positions=slice(3, 290))
    part.save(tmp_path / "part.safetensors")
    assert_same(AttentionCache.load(tmp_path / "part.safetensors")[0], part[0])
    assert_same(AttentionCache.load(tmp_path / "part.safetensors", mmap=False).lse(0), part.lse(0))


def test_a_text_without_its_padding_goes_on_as_the_whole_does() -> None:
    cache = factored((12, 12), (4, 2), "float32", padding=True, window=8)
    part = cache.part(batch=0, positions=slice(4, None))
    assert_same(part[0], cache[0][:1, :, 4:, 4:])
    assert_same(part[0].sum(-1).round(5), np.ones((1, 4, 8), np.float32))
    query, key = (rng(n).normal(size=(3, n, 1, 6)).astype(np.float32) for n in (4, 2))
    cache.append_qk(0, query, key)
    part.append_qk(0, query[:1], key[:1])
    np.testing.assert_allclose(part[0], cache[0][:1, :, 4:, 4:], rtol=1e-5)


def test_a_long_text_without_its_padding_keeps_every_bit() -> None:
    cache = factored((600, 600), (4, 2), "float32", padding=True, sinks=True)
    for batch, positions in ((0, slice(200, None)), (0, slice(77, 599)), (1, slice(0, 450)), (1, slice(0, 333))):
        part = cache.part(batch=batch, positions=positions)
        assert_same(part[0], reference.part([cache[0]], batch=batch, positions=positions)[0])
        assert part._options(0)[-2:] == (cache._options(0)[-2], False)  # it has its sinks, and no given sums


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
    cache = factored((3, 9), (4, 2), "float32", **options)  # the first query stands at key 6
    for first in range(7):
        assert cache.part(positions=slice(first, None))._options(0)[-1] is (first > first_seen)
    for end in (7, 8, 9):
        sees_behind = not options.get("causal", True) and end < 9
        assert cache.part(positions=slice(0, end))._options(0)[-1] is sees_behind


def test_a_text_without_its_beginning_takes_no_more_positions() -> None:
    part = factored((12, 12), (4, 2), "float32").part(positions=slice(4, None))
    with pytest.raises(ValueError, match="pushed without lse"):
        part.append_qk(0, np.ones((3, 4, 1, 6), np.float32), np.ones((3, 2, 1, 6), np.float32))


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
    cache = factored((9, 12), (4, 2), "float32")
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


def test_sources_follow_layers_and_heads() -> None:
    cache = AttentionCache()
    pattern = make("soft", (2, 3, 2, 2))
    cache.push(pattern, source=LayerSource("a.0.attn", layer=4))
    cache.push(pattern)
    cache.push(pattern, source=LayerSource("a.1.attn", layer=8, heads=(7, 5, 6)))
    part = cache.part(layers=[2, 1, 0], heads=[2, 0], batch=0)
    assert part.sources == (
        LayerSource("a.1.attn", layer=8, heads=(6, 7)),
        None,
        LayerSource("a.0.attn", layer=4, heads=(2, 0)),
    )
    assert cache.part(batch=1, heads=[0, 1, 2]).sources == cache.sources
    assert part.part(layers=0, heads=1).sources == (LayerSource("a.1.attn", layer=8, heads=(7,)),)


def translator() -> AttentionCache:
    """Two layers of an encoder over 5 tokens, and two of a decoder over 3, each followed by its cross-attention."""
    cache = AttentionCache()
    for layer in range(2):
        cache.push(
            make("soft", (1, 2, 5, 5)), source=LayerSource(f"encoder.{layer}", layer, kind="self", stack="encoder")
        )
    for layer in range(2):
        cache.push(
            make("soft", (1, 2, 3, 3)), source=LayerSource(f"decoder.{layer}", layer, kind="self", stack="decoder")
        )
        cross = LayerSource(f"decoder.{layer}.cross", layer, kind="cross", stack="decoder")
        cache.push(make("soft", (1, 2, 3, 5)), source=cross)
    return cache


def test_a_kind_chooses_layers_as_transformers_names_them() -> None:
    cache = translator()
    numbers = {"encoder": [0, 1], "decoder": [2, 4], "cross": [3, 5], "self": [0, 1, 2, 4]}
    for kind, layers in numbers.items():
        part = cache.part(kind=kind)  # type: ignore[arg-type]
        assert part.sources == tuple(cache.sources[layer] for layer in layers)
        assert all(np.shares_memory(view, cache[layer]) for view, layer in zip(part, layers, strict=True))
        last = cache.part(kind=kind, layers=-1, heads=0)  # type: ignore[arg-type]
        assert_same(last[0], cache[layers[-1]][:, :1].copy())


@pytest.mark.parametrize("store", ["pattern", "qk"])
def test_kinds_of_a_capture_on_disk_are_the_attentions_of_the_model(store: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="capture needs torch")
    transformers = pytest.importorskip("transformers", reason="capture needs transformers")
    torch.manual_seed(0)
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 8))}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 2}
    model = transformers.BartModel(transformers.BartConfig(vocab_size=99, d_model=16, **sizes, **heads)).eval()
    inputs = {"input_ids": torch.randint(3, 99, (2, 9)), "decoder_input_ids": torch.randint(3, 99, (2, 5))}
    with torch.no_grad():
        with capture(model, into=tmp_path / "run", store=store, dtype="float32") as disk:
            model(**inputs)
        disk.close()
        model.set_attn_implementation("eager")
        expected = model(**inputs, output_attentions=True)
    cache = AttentionCache.load(tmp_path / "run", mmap=False)
    assert cache.sources == disk.sources
    for kind in ("encoder", "decoder", "cross"):
        part = cache.part(kind=kind, batch=1)  # type: ignore[arg-type]
        assert part.n_layers == 2
        for layer, pattern in enumerate(expected[f"{kind}_attentions"]):
            np.testing.assert_allclose(part.rows(layer, heads=None), pattern[1], atol=1e-6)


def test_a_kind_that_no_layer_has_is_refused_with_those_there_are() -> None:
    cache = translator()
    with pytest.raises(
        ValueError, match="kind must be that of a layer, 'self' or 'cross' or 'encoder' or 'decoder', got 'text'"
    ):
        cache.part(kind="text")
    with pytest.raises(ValueError, match=r"kind must be one of 'self', .*, got 'decoders'"):
        cache.part(kind="decoders")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="kind must be None or a string, got int"):
        cache.part(kind=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no layer's is known"):
        cache_of([make("soft", (1, 1, 2, 2))]).part(kind="cross")


def test_positions_of_cross_attention_are_refused() -> None:
    cache = translator()
    with pytest.raises(ValueError, match=r"layer 3 \(decoder.0.cross\) is; part\(kind='self'\) leaves it out"):
        cache.part(positions=slice(2))
    assert cache.part(kind="cross", heads=0).shapes == ((1, 1, 3, 5),) * 2
    assert cache.part(kind="self", positions=slice(2)).shapes == ((1, 2, 2, 2),) * 4


def test_tokens_follow_batch_and_positions() -> None:
    cache = cache_of([make("soft", (2, 1, 3, 4))])
    cache.metadata = {"model": "m"}
    cache.tokens = ["a", "b", "c", "d"]
    assert cache.part(batch=1, positions=[3, 1]).tokens == ("d", "b")
    assert cache.part(heads=0).tokens == ("a", "b", "c", "d")
    cache.tokens = [["a", "b", "c", "d"], ["e", "f", "g", "h"]]
    part = cache.part(batch=-1, positions=slice(1, 3))
    assert part.tokens == (("f", "g"),)
    assert part.metadata == {"model": "m"}
    assert part.top_k(1, layers=0).tokens() == [[["f"], ["g"]][int(k)] for k in part.top_k(1, layers=0).positions[:, 0]]
    assert cache.part(positions=[]).tokens == ((), ())


def test_tokens_of_queries_follow_batch_and_positions() -> None:
    cache = cache_of([make("soft", (2, 1, 2, 4))])
    cache._query_tokens = (("a", "b"), ("c", "d"))
    assert cache.part(batch=1)._query_tokens == (("c", "d"),)
    assert cache.part(positions=slice(0, 3))._query_tokens == (("a",), ("c",))


def test_tokens_of_other_layers_are_not_those_of_the_part() -> None:
    cache = translator()
    cache._tokens, cache._query_tokens = ("a", "b", "c", "d", "e"), ("x", "y", "z")
    assert cache.part(kind="encoder").tokens == cache.tokens
    assert cache.part(kind="cross").tokens == cache.tokens
    assert cache.part(kind="decoder").tokens is None
    assert (cache.part(kind="cross")._query_tokens, cache.part(kind="encoder")._query_tokens) == (("x", "y", "z"), None)
    grown = AttentionCache()
    grown.tokens = ["a", "b"]
    grown.push(make("soft", (1, 1, 3, 3)))
    assert grown.part(layers=0).tokens == ("a", "b")
    assert grown.part(positions=slice(2)).tokens is None


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


@pytest.mark.parametrize("options", [{}, {"causal": False, "window": 2}], ids=["causal", "window"])
@pytest.mark.parametrize("positions", [[0, 2], [1, 0], slice(None, None, -1), [1, 1]], ids=str)
def test_positions_apart_from_each_other_need_the_dense_pattern(options: Any, positions: Any) -> None:
    cache = factored((5, 5), (4, 2), "float32", **options)
    with pytest.raises(
        ValueError, match=r"such as a slice without a step, for layer 0.*; push its pattern, cache\[0\]"
    ):
        cache.part(positions=positions)
    assert_answers_as(cache_of([cache[0]]).part(positions=positions), reference.part([cache[0]], positions=positions))


def test_a_selector_that_does_not_fit_is_refused_as_by_rows() -> None:
    cache = factored((5, 5), (4, 2), "float32")
    for options, error, message in (
        ({"layers": 1}, IndexError, "layer 1 is out of range for n_layers=1"),
        ({"heads": [0, 4]}, IndexError, "head 4 is out of range for n_heads=4"),
        ({"batch": -4}, IndexError, "batch -4 is out of range for batch_size=3"),
        ({"positions": 5}, IndexError, "position 5 is out of range for seq_k=5"),
        ({"heads": "mean"}, TypeError, "heads must be None, an int, a slice or a sequence of ints, got str"),
        ({"layers": 1.0}, TypeError, "layers must be None, an int, a slice or a sequence of ints, got float"),
        ({"batch": [True]}, TypeError, "batch must be None, an int, a slice or a sequence of ints, got bool"),
        ({"heads": []}, ValueError, "heads must choose at least one"),
    ):
        with pytest.raises(error, match=message):
            cache.part(**options)
    assert cache.part(layers=[]).is_empty


def test_an_empty_cache_has_an_empty_part() -> None:
    assert AttentionCache().part().is_empty
    with pytest.raises(IndexError, match="layer 0 is out of range for n_layers=0"):
        AttentionCache().part(layers=0)
