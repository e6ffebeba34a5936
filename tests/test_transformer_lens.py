"""What TransformerLens records, as a cache: patterns and projections under each of their names.

Covered: hook names and tuple names with and without the batch axis; each error with its words. Values compare by equality;
weights computed from projections within 2^-20, because they may be added in another order. Sizes: layers of [2, 3, 4, 4].
Not covered: TransformerLens itself (its names and shapes were checked by hand, version 4.3).
"""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, LayerSource
from tests.support.patterns import Array, assert_same, make, rng, softmax

BATCH, HEADS = 2, 3
LAYERS = [make("causal", (BATCH, HEADS, 4, 4), "float32", layer) for layer in range(3)]
QUERY = rng("query").normal(size=(BATCH, 5, 4, 8)).astype(np.float32)  # [batch, position, head, d_head]


class RecordedHooks:
    """Like an ActivationCache: keys and items, a model, and no Mapping."""

    def __init__(self, hooks: dict[Any, Any], positions: str = "standard") -> None:
        self._hooks = hooks
        self.model = SimpleNamespace(cfg=SimpleNamespace(positional_embedding_type=positions))

    def keys(self) -> Any:
        return self._hooks.keys()

    def __getitem__(self, key: Any) -> Any:
        return self._hooks[key]


def hook_names(layers: list[Array]) -> dict[Any, Any]:
    return {f"blocks.{layer}.attn.hook_pattern": pattern for layer, pattern in enumerate(layers)}


@pytest.mark.parametrize("kind", [dict, OrderedDict, RecordedHooks])
@pytest.mark.parametrize(
    "name",
    [
        lambda layer: f"blocks.{layer}.attn.hook_pattern",
        lambda layer: ("pattern", layer),
        lambda layer: ("pattern", layer, "attn"),
        lambda layer: ("attn", layer),
    ],
    ids=["hook name", "pair", "triple", "alias"],
)
def test_patterns_come_in_under_each_of_their_names(kind: Any, name: Any) -> None:
    layers = [make("causal", (1, 2, 3, 3), "float32", layer) for layer in range(12)]  # so that 10 sorts after 9
    others = {"hook_embed": np.zeros((1, 3, 8)), "blocks.0.attn.hook_attn_scores": layers[0], ("z", 0): layers[0]}
    hooks = {**others, **{name(layer): layers[layer] for layer in reversed(range(12))}}
    assert_same(AttentionCache.from_transformer_lens(kind(hooks)).patterns, tuple(layers))


def test_a_missing_batch_axis_becomes_a_batch_of_one() -> None:
    hooks = hook_names([LAYERS[0][0], LAYERS[1][0]])
    assert_same(AttentionCache.from_transformer_lens(hooks).patterns, (LAYERS[0][:1], LAYERS[1][:1]))


def test_recorded_layers_keep_their_numbers_and_some_may_be_missing() -> None:
    hooks = {"blocks.7.attn.hook_pattern": LAYERS[1], ("pattern", 2): LAYERS[0], ("q", 11): QUERY, ("k", 11): KEY}
    cache = AttentionCache.from_transformer_lens(hooks)
    assert_same(cache.patterns[:2], tuple(LAYERS[:2]))
    assert cache.sources == tuple(LayerSource(f"blocks.{number}.attn", layer=number) for number in (2, 7, 11))


def test_the_axes_of_recorded_patterns_may_be_named() -> None:
    hooks = {("pattern", 0): LAYERS[0].transpose(2, 3, 1, 0)}
    cache = AttentionCache.from_transformer_lens(hooks, axes="query key head batch")
    assert_same(cache.patterns, (LAYERS[0],))
    with pytest.raises(ValueError, match="axes must not name layer"):
        AttentionCache.from_transformer_lens(hooks, axes="layer query key head")


def test_dtype_index_and_tokens_hold_for_recorded_patterns(dtype: str) -> None:
    words = ("the", "cat", "sat", "down")
    cache = AttentionCache.from_transformer_lens(hook_names(LAYERS), dtype=dtype, index="eager", tokens=words)
    assert (cache.dtypes, cache.index, cache.tokens) == ((dtype,) * 3, "eager", words)


KEY = rng("key").normal(size=(BATCH, 5, 2, 8)).astype(np.float32)  # two heads share a key


ROTARY = {"blocks.0.attn.hook_rot_q": QUERY, "blocks.0.attn.hook_rot_k": KEY}


UNROTATED = {"blocks.0.attn.hook_q": QUERY + 1, "blocks.0.attn.hook_k": KEY + 1}


@pytest.mark.parametrize(
    ("hooks", "added"),
    [
        ({**UNROTATED, **ROTARY}, 0),
        (UNROTATED, 1),
        ({("q", 0): QUERY, ("k", 0): KEY}, 0),
        ({("rot_q", 0, "attn"): QUERY, ("rot_k", 0, "attn"): KEY}, 0),
    ],
    ids=["rotary", "no rotary", "pairs", "triples"],
)
def test_layers_without_a_pattern_are_pushed_as_projections(
    hooks: dict[Any, Any], added: int, pushed: list[Any]
) -> None:
    AttentionCache.from_transformer_lens(RecordedHooks(hooks))
    ((query, key, options),) = pushed
    assert_same(query, (QUERY + added).transpose(0, 2, 1, 3))
    assert_same(key, (KEY + added).transpose(0, 2, 1, 3))
    source = LayerSource("blocks.0.attn", layer=0)
    assert options == {
        "scale": None,
        "causal": True,
        "window": None,
        "softcap": None,
        "key_mask": None,
        "source": source,
    }


def test_projections_without_a_batch_axis_become_a_batch_of_one(pushed: list[Any]) -> None:
    AttentionCache.from_transformer_lens({name: value[0] for name, value in ROTARY.items()})
    ((query, key, _),) = pushed
    assert_same(query, QUERY[:1].transpose(0, 2, 1, 3))
    assert_same(key, KEY[:1].transpose(0, 2, 1, 3))


def test_a_recorded_pattern_wins_over_projections_of_its_layer(pushed: list[Any]) -> None:
    cache = AttentionCache.from_transformer_lens({**ROTARY, **hook_names(LAYERS[:1])})
    assert pushed == []
    assert_same(cache.patterns, (LAYERS[0],))


def test_the_options_describe_every_layer_and_the_window_may_differ(pushed: list[Any]) -> None:
    hooks = {**ROTARY, ("q", 1): QUERY, ("k", 1): KEY}
    mask = np.ones((BATCH, 5), bool)
    options = {"scale": 0.5, "causal": False, "softcap": 30.0, "key_mask": mask}
    AttentionCache.from_transformer_lens(hooks, window=[3, None], **options)
    AttentionCache.from_transformer_lens(hooks, window=2, **options)
    assert [found["window"] for _, _, found in pushed] == [3, None, 2, 2]
    for _, _, found in pushed:
        assert {name: value for name, value in found.items() if name not in ("window", "source")} == options


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What push_qk was given: query, key and options, in the order of the layers."""
    calls: list[Any] = []

    def push_qk(_: AttentionCache, query: Any, key: Any, **options: Any) -> None:
        calls.append((query, key, options))

    monkeypatch.setattr(AttentionCache, "push_qk", push_qk)
    return calls


def without(hooks: dict[Any, Any], name: str) -> dict[Any, Any]:
    return {key: value for key, value in hooks.items() if not key.endswith(name)}


@pytest.mark.parametrize(
    ("hooks", "error", "words"),
    [
        ({}, ValueError, "must hold blocks.N.attn.hook_pattern.*got nothing"),
        ({"hook_embed": QUERY}, ValueError, "got hook_embed"),
        ({"decoder.0.attn.hook_pattern": LAYERS[0]}, ValueError, "got decoder.0.attn.hook_pattern"),
        (LAYERS, TypeError, "must be a mapping of hook names, with keys.*got list"),
        ({("pattern", 0): LAYERS[0][0, 0]}, ValueError, r"blocks.0.attn.hook_pattern: a layer must be \[batch"),
        ({("pattern", 0): None}, ValueError, "blocks.0.attn.hook_pattern must be a pattern, got None"),
        (without(ROTARY, "k"), ValueError, "got no blocks.0.attn.hook_rot_k"),
        (without({**UNROTATED, **ROTARY}, "rot_q"), ValueError, "got no blocks.0.attn.hook_rot_q"),
        (without(UNROTATED, "q"), ValueError, "got no blocks.0.attn.hook_q"),
        ({**ROTARY, "blocks.0.attn.hook_rot_q": None}, ValueError, r"must be \[batch, position, .*got None"),
        ({**ROTARY, "blocks.0.attn.hook_rot_q": QUERY[0, 0]}, ValueError, r"must be \[batch, position, .*\(4, 8\)"),
        (RecordedHooks(UNROTATED, "rotary"), ValueError, "after rotary embedding.*record hook_rot_q"),
        (RecordedHooks(UNROTATED, "alibi"), ValueError, "got a model with alibi; record hook_pattern"),
    ],
)
def test_recorded_hooks_that_are_not_layers_are_refused_with_the_reason(
    hooks: Any, error: Any, words: str, pushed: list[Any]
) -> None:
    with pytest.raises(error, match=words):
        AttentionCache.from_transformer_lens(hooks)
    assert pushed == []


def test_an_error_of_push_qk_names_the_hooks() -> None:
    hooks = {**ROTARY, "blocks.0.attn.hook_rot_k": KEY[..., :7]}
    with pytest.raises(ValueError, match=r"blocks.0.attn.hook_rot_q and hook_rot_k: .*7"):
        AttentionCache.from_transformer_lens(hooks)
    with pytest.raises((TypeError, ValueError), match=r"blocks.0.attn.hook_rot_q and hook_rot_k: window"):
        AttentionCache.from_transformer_lens(ROTARY, window=0)


def test_recorded_projections_answer_as_their_pattern_would() -> None:
    query = QUERY.transpose(0, 2, 1, 3).astype(np.float64)
    key = KEY.transpose(0, 2, 1, 3).astype(np.float64).repeat(2, axis=1)
    scores = query @ key.swapaxes(-1, -2) / 8**0.5
    scores[..., np.triu(np.ones((5, 5), bool), k=1)] = -1e9
    cache = AttentionCache.from_transformer_lens(ROTARY, tokens=("a", "b", "c", "d", "e"))
    answer = cache.rows(0, heads=None, batch=None)
    assert cache.shapes == ((BATCH, 4, 5, 5),)
    np.testing.assert_allclose(answer, softmax(scores), rtol=0, atol=2**-20)


def test_windows_that_are_not_one_per_layer_are_refused(pushed: list[Any]) -> None:
    with pytest.raises(ValueError, match="window must be one for all layers or one for each of 1, got 2"):
        AttentionCache.from_transformer_lens(ROTARY, window=[1, 2])


def test_projections_of_torch_are_transposed_without_a_copy(pushed: list[Any]) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    query, key = torch.from_numpy(QUERY), torch.from_numpy(KEY)
    AttentionCache.from_transformer_lens({("q", 0): query, ("k", 0): key})
    ((given, _, _),) = pushed
    assert given.data_ptr() == query.data_ptr()
    assert_same(given.numpy(), QUERY.transpose(0, 2, 1, 3))
