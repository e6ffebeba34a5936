"""Where layers come from: what a LayerSource takes, how a cache keeps it and says it.

Covered: every attribute and its bounds; push and push_qk; replaced and shared layers, cpu, clear; the words of repr.
Not covered here: files (test_save_load.py, test_disk_cache.py, test_malformed_caches.py), parts (test_part.py), captures
(test_capture.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, LayerSource
from tests.support.patterns import make

FIRST = LayerSource("model.layers.3.self_attn", layer=3, heads=(1, 0), kind="self")
PATTERN = make("soft", (1, 2, 3, 3))
ROWS = np.ones((1, 2, 3, 4), np.float32)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"module": 1}, TypeError, "module must be a string, got int"),
        ({"module": "a" * 1001}, ValueError, "module must have at most 1,000 characters, got 1,001"),
        ({"layer": True}, TypeError, "layer must be an int, got bool"),
        ({"layer": 2.0}, TypeError, "layer must be an int, got float"),
        ({"layer": -1}, ValueError, r"layer must be from 0 to 2\*\*31 - 1, got -1"),
        ({"heads": (0, 2**31)}, ValueError, r"heads must be from 0 to 2\*\*31 - 1, got 2147483648"),
        ({"heads": ("0",)}, TypeError, "heads must be an int, got str"),
        ({"call": -1}, ValueError, "call must be from 0"),
        ({"kind": "selfish"}, ValueError, "kind must be one of 'self', 'cross', None, got 'selfish'"),
        ({"kind": ["self"]}, TypeError, "kind must be a string or None, got list"),
        ({"stack": "tower"}, ValueError, "stack must be one of 'encoder', .*, got 'tower'"),
        ({"stack": 1}, TypeError, "stack must be a string or None, got int"),
    ],
)
def test_a_source_that_no_layer_has_is_refused(values: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LayerSource(**values)


@pytest.mark.parametrize(
    "source", [FIRST, LayerSource(), LayerSource("a" * 1000, 2**31 - 1, (), "cross", "audio", 2**31 - 1)], ids=str
)
def test_a_dictionary_says_all_of_a_source(source: LayerSource) -> None:
    assert LayerSource.from_dict(source.to_dict()) == source
    assert LayerSource.from_dict({**source.to_dict(), "of a later version": [1]}) == source


def test_heads_of_another_number_leave_the_cache_as_it_was() -> None:
    cache = AttentionCache()
    message = "one head of the model for each head of the layer, n_heads=4, got 2"
    with pytest.raises(ValueError, match=message):
        cache.push(make("soft", (1, 4, 2, 2)), source=FIRST)
    with pytest.raises(ValueError, match=message):
        cache.push_qk(np.ones((1, 4, 2, 3), np.float32), np.ones((1, 1, 2, 3), np.float32), source=FIRST)
    with pytest.raises(TypeError, match="source must be None or a LayerSource, got str"):
        cache.push(PATTERN, source="model.layers.3.self_attn")  # type: ignore[arg-type]
    assert cache.is_empty
    assert cache.sources == ()


def test_a_layer_keeps_its_source_while_its_weights_change() -> None:
    cache = AttentionCache()
    cache.push(PATTERN)
    cache.push_qk(ROWS, ROWS, source=FIRST)
    cache.append_qk(1, ROWS, ROWS)
    assert cache.sources == (None, FIRST)
    assert cache.sources == cache.cpu().sources == (None, FIRST)


def of(*sources: LayerSource | None) -> str:
    """What repr says of layers that come from there."""
    cache = AttentionCache()
    for source in sources:
        cache.push(PATTERN, source=source)
    return repr(cache).partition(" of [1, 2, 3, 3] float32")[0].removeprefix("AttentionCache(")


def numbered(*numbers: int | None, **values: Any) -> list[LayerSource]:
    return [LayerSource(layer=number, **values) for number in numbers]


def test_a_cache_says_which_layers_of_the_model_it_has() -> None:
    assert of(*numbered(5, 9)) == "2 layers (5 and 9 of the model)"
    assert of(*numbered(3)) == "1 layer (3 of the model)"
    assert of(*numbered(2, 3, 4, 5)) == "4 layers (2 to 5 of the model)"
    assert of(*numbered(*range(3, 32, 4), kind="self")) == "8 layers (3, 7, 11, .., 31 of the model)"
    assert of(*numbered(0, 0, 1, 1)) == "4 layers (0, 0, 1 and 1 of the model)"


def test_a_cache_says_which_stacks_it_has() -> None:
    decoder, cross = ({"kind": kind, "stack": "decoder"} for kind in ("self", "cross"))
    layers = [*numbered(0, **decoder), *numbered(0, **cross), *numbered(1, **decoder), *numbered(1, **cross)]
    assert of(*layers) == "4 layers (2 decoder, 2 cross)"
    assert of(*numbered(0, 1, stack="vision"), *numbered(0)) == "3 layers (2 vision, 1 other)"


def test_a_cache_says_nothing_where_its_layers_are_those_of_the_model_or_not_known() -> None:
    assert of(*numbered(0, 1, 2, kind="self")) == "3 layers"
    assert of(*numbered(0)) == "1 layer"
    assert of(None, *numbered(5)) == "2 layers"
    assert of(*numbered(None, 5)) == "2 layers"
    assert repr(AttentionCache()) == "AttentionCache(0 layers, 0 bytes)"
