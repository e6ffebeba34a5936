"""What a part of a cache keeps of words: sources, kinds of attention, tokens and metadata.

Sizes: two layers of an encoder over 5 tokens, two of a decoder over 3. Not covered: weights (test_part.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, LayerSource, reference
from tests.support.factored import three_texts
from tests.support.patterns import assert_same, cache_of, make


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


def translator(tokens: Any = None, query_tokens: Any = None) -> AttentionCache:
    """Two layers of an encoder over 5 tokens, and two of a decoder over 3, each followed by its cross-attention."""
    cache = AttentionCache()
    cache.tokens, cache.query_tokens = tokens, query_tokens
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
    cache.query_tokens = (("a", "b", "c"), ("d", "e", "f"))
    assert cache.part(batch=1).query_tokens == (("d", "e", "f"),)
    assert cache.part(positions=slice(0, 3)).query_tokens == (("a", "b"), ("d", "e"))


def test_tokens_of_other_layers_are_not_those_of_the_part() -> None:
    cache = translator(("a", "b", "c", "d", "e"), ("x", "y", "z"))
    assert cache.part(kind="encoder").tokens == cache.tokens
    assert cache.part(kind="cross").tokens == cache.tokens
    assert cache.part(kind="decoder").tokens is None
    assert (cache.part(kind="cross").query_tokens, cache.part(kind="encoder").query_tokens) == (("x", "y", "z"), None)
    grown = AttentionCache()
    grown.tokens = ["a", "b"]
    grown.push(make("soft", (1, 1, 3, 3)))
    assert grown.part(layers=0).tokens == ("a", "b")
    assert grown.part(positions=slice(2)).tokens is None


@pytest.mark.parametrize("options", [{}, {"causal": False, "window": 2}], ids=["causal", "window"])
@pytest.mark.parametrize("positions", [[0, 2], [1, 0], slice(None, None, -1), [1, 1]], ids=str)
def test_positions_apart_from_each_other_need_the_dense_pattern(options: Any, positions: Any) -> None:
    cache = three_texts((5, 5), (4, 2), "float32", **options)
    with pytest.raises(
        ValueError, match=r"such as a slice without a step, for layer 0.*; push its pattern, cache\[0\]"
    ):
        cache.part(positions=positions)
    whole = cache_of([cache[0]])
    assert_same(whole.part(positions=positions)[0], reference.part([cache[0]], positions=positions)[0])


def test_a_selector_that_does_not_fit_is_refused_as_by_rows() -> None:
    cache = three_texts((5, 5), (4, 2), "float32")
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
    assert AttentionCache().part().is_empty
    with pytest.raises(IndexError, match="layer 0 is out of range for n_layers=0"):
        AttentionCache().part(layers=0)
