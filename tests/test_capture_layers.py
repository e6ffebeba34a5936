"""Which modules of a model of one's own a capture takes, what their layers are called, and how they grow call by call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, CaptureWarning, capture

pytest.importorskip("torch", reason="capture needs torch")

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.attending import STORES, Array, B, D, H, K, by_hand, drawn, patterns

WIDTH = H * D


class Attention(nn.Module):
    """Causal attention that keeps its keys, by SDPA or a softmax."""

    def __init__(self, by: str = "sdpa") -> None:
        super().__init__()
        self.num_heads, self.by = H, by
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.past: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor, keeps: bool = False) -> torch.Tensor:
        query, key, value = self.split(x)
        if keeps and self.past is not None:
            key, value = (torch.cat([old, new], 2) for old, new in zip(self.past, (key, value), strict=True))
        self.past = (key, value) if keeps else None
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
        if self.by == "softmax":
            scores = (query @ key.mT * D**-0.5).masked_fill(~mask, -torch.inf)
            found = scores.softmax(-1) @ value
        else:
            found = F.scaled_dot_product_attention(query, key, value, mask)
        return found.transpose(1, 2).flatten(2)

    def split(self, x: torch.Tensor) -> Any:
        return self.qkv(x).unflatten(-1, (3, H, D)).permute(2, 0, 3, 1, 4)

    def expected(self, x: torch.Tensor) -> Array:
        with torch.no_grad():
            query, key, _ = self.split(x)
            return by_hand(query, key, torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril())


class Block(nn.Module):
    def __init__(self, by: str) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(by), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, keeps: bool = False) -> torch.Tensor:
        return x + self.mlp(x + self.attn(x, keeps))


class Decoder(nn.Module):
    """Three blocks, of which the last can be left out, and one that never runs."""

    def __init__(self, by: str = "sdpa") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(by) for _ in range(3))
        self.idle = Attention(by)

    def forward(self, x: torch.Tensor, keeps: bool = False, depth: int = 3) -> torch.Tensor:
        for block in self.blocks[:depth]:
            x = block(x, keeps)
        return x

    def inputs(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What each attention is given."""
        found = []
        with torch.no_grad():
            for block in self.blocks:
                found.append(x)
                x = block(x)
        return found


BYS = pytest.mark.parametrize("by", ["sdpa", "softmax"])
X = drawn(B, K, WIDTH)


def taken(layers: Any, by: str = "sdpa", **options: Any) -> AttentionCache:
    model = Decoder(by)
    with torch.no_grad(), capture(model, layers=layers, dtype="float32") as cache:
        model(X, **options)
    for source, pattern in zip(cache.sources, patterns(cache), strict=True):
        number = int(source.module.split(".")[1])
        expected = model.blocks[number].attn.expected(model.inputs(X)[number])
        np.testing.assert_allclose(pattern, expected, rtol=0, atol=2e-6)
    return cache


@BYS
@pytest.mark.parametrize(
    ("layers", "numbers"),
    [
        (None, [0, 1, 2]),
        ("blocks.*.attn", [0, 1, 2]),
        ("blocks", [0, 1, 2]),
        ("*attn", [0, 1, 2]),
        ("blocks.1", [1]),
        ("blocks.[02].attn", [0, 2]),
        ("blocks.?", [0, 1, 2]),
        (["blocks.2.attn", "blocks.0"], [0, 2]),
        (["*.1.*", "blocks.1"], [1]),
        (("blocks.2",), [2]),
        (1, [1]),
        ([2, 0], [0, 2]),
        (slice(1, None), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        (range(2), [0, 1]),
        (np.array([1]), [1]),
        (np.int64(2), [2]),
        ([], []),
    ],
)
def test_layers_are_chosen_by_name_or_number(layers: Any, numbers: list[int], by: str) -> None:
    cache = taken(layers, by)
    assert [source.module for source in cache.sources] == [f"blocks.{number}.attn" for number in numbers]
    assert [source.layer for source in cache.sources] == numbers


@pytest.mark.parametrize(
    ("layers", "error", "told"),
    [
        ("blocks.7", ValueError, r"layers must name modules of the model, got 'blocks\.7', which is none; one is"),
        (["blocks", "attention"], ValueError, "got 'attention', which is none"),
        ([0, "blocks"], TypeError, "got both"),
        (-1, ValueError, "must count from 0, or name modules"),
        ([0, -2], ValueError, "must count from 0, or name modules"),
        (slice(-2, None), ValueError, "must count from 0, or name modules"),
        (slice(None, None, -1), ValueError, "must count from 0, or name modules"),
        (np.array(-1), ValueError, "must count from 0, or name modules"),
        (True, TypeError, "bool"),
        ([True], TypeError, "bool"),
        (1.5, TypeError, "float"),
        (["blocks", None], TypeError, "got both"),
        ({"blocks"}, TypeError, "set"),
    ],
)
def test_layers_that_choose_nothing_are_refused_before_anything_runs(layers: Any, error: Any, told: str) -> None:
    with pytest.raises(error, match=told), capture(Decoder(), layers=layers):
        pytest.fail("the capture began")


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        (["blocks.0", "idle"], r"layers must name layers that the model runs, got none of idle"),
        ("idle", "got none of idle"),
        (["blocks.0.attn", "blocks.0.mlp"], r"got none of blocks\.0\.mlp"),
        ([0, 7], "got none of layer 7"),
        (7, "got none of layer 7"),
    ],
)
def test_layers_that_never_ran_are_named_at_the_end(layers: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        taken(layers)


def test_a_module_that_runs_twice_in_a_forward_has_a_layer_for_each() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = Attention()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attn(self.attn(x))

    model = Shared()
    with torch.no_grad(), capture(model, dtype="float32") as cache:
        model(X)
    assert [(source.module, source.call) for source in cache.sources] == [("attn", 0), ("attn", 1)]
    for pattern, x in zip(patterns(cache), (X, model.attn(X)), strict=True):
        np.testing.assert_allclose(pattern, model.attn.expected(x), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("by", "store"), [("sdpa", "pattern"), ("sdpa", "qk"), ("softmax", "pattern")])
@pytest.mark.parametrize("steps", [[K], [4, 1, 1, 1], [3, 2, 2], [1] * K])
def test_a_decoder_that_keeps_its_keys_gives_one_causal_pattern(by: str, store: Any, steps: list[int]) -> None:
    model = Decoder(by)
    with torch.no_grad(), capture(model, store, dtype="float32") as cache:
        for part in X.split(steps, dim=1):
            model(part, keeps=True)
    assert len(cache.sources) == 3
    for block, pattern, x in zip(model.blocks, patterns(cache), model.inputs(X), strict=True):
        np.testing.assert_allclose(pattern, block.attn.expected(x), rtol=0, atol=5e-6)


@BYS
@pytest.mark.parametrize("other", [X, X + 1, X[:, :4], drawn(B, K + 2, WIDTH)])
def test_a_second_forward_says_so(by: str, other: torch.Tensor) -> None:
    model = Decoder(by)
    told = r"blocks\.0\.attn\) cannot be captured: one capture holds one run.*attncache\.capture_runs"
    with torch.no_grad(), capture(model, dtype="float32") as cache:
        model(X)
        with pytest.raises(ValueError, match=told):
            model(other)
    assert cache.n_layers == 3
    np.testing.assert_allclose(patterns(cache)[0], model.blocks[0].attn.expected(X), rtol=0, atol=2e-6)


class Looks(nn.Module):
    """Queries of one sequence over keys of another, as a picture's over those of its words."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        if self.by == "softmax":
            return (x @ context.mT).softmax(-1) @ context
        return F.scaled_dot_product_attention(x, context, context)


@BYS
@STORES
@pytest.mark.parametrize("length", [K, 5])
def test_a_second_forward_over_the_same_words_says_so(by: str, store: Any, length: int) -> None:
    """A diffusion model's next step."""
    if (by, store) == ("softmax", "qk"):
        pytest.skip("a softmax alone has no queries")
    model, words = Looks(by), drawn(B, H, 5, D, seed=9)
    with capture(model, store, dtype="float32") as cache:
        model(drawn(B, H, length, D), context=words)
        with pytest.raises(ValueError, match=r"one capture holds one run.*attncache\.capture_runs"):
            model(drawn(B, H, length, D, seed=1), context=words)
    assert cache.sources[0].kind == "cross"


@pytest.mark.parametrize("store", ["pattern", "qk"])
def test_queries_that_look_at_the_same_words_one_by_one_are_one_pattern(store: Any) -> None:
    model, words, x = Looks("sdpa"), drawn(B, H, 5, D), drawn(B, H, K, D)
    with capture(model, store, dtype="float32") as cache:
        for part in x.split([4, 1, 1, 1], dim=2):
            model(part, context=words)
    np.testing.assert_allclose(patterns(cache)[0], by_hand(x, words), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (lambda x, words: {"x": x, "context": words}, "cross"),
        (lambda x, _: {"context": x, "x": x}, "self"),
        (lambda x, words: {"context": words, "x": x}, "cross"),
    ],
)
def test_another_sequence_is_told_from_the_same(given: Any, kind: str) -> None:
    x, words = drawn(B, H, 5, D), drawn(B, H, 5, D, seed=1)
    model = Looks("sdpa")
    with capture(model) as cache:
        model(**given(x, words))
    assert cache.sources[0].kind == kind


def test_a_model_that_is_the_attention_has_its_kind_for_a_name() -> None:
    model = Attention()
    with torch.no_grad(), capture(model) as cache:
        model(X)
    assert [(source.module, source.layer) for source in cache.sources] == [("Attention", 0)]


def test_modules_that_did_not_run_are_no_matter_where_all_are_wanted() -> None:
    model = Decoder()
    with torch.no_grad(), capture(model) as cache:
        model(X, depth=2)
    assert [source.module for source in cache.sources] == ["blocks.0.attn", "blocks.1.attn"]


def test_a_copy_that_ran_instead_is_told() -> None:
    import copy

    model = Decoder()
    other = copy.deepcopy(model)
    with pytest.warns(CaptureWarning, match="saw no attention of this Decoder: was it another object"), capture(model):
        other(X)


@BYS
def test_a_cache_whose_texts_change_places_is_no_text_that_goes_on(by: str) -> None:
    """As in the beam search of a library of one's own."""
    model = Attention(by)
    with torch.no_grad(), capture(model):
        model(X[:, :4], keeps=True)
        assert model.past is not None
        model.past = (model.past[0].flip(0), model.past[1].flip(0))
        with pytest.raises(ValueError, match=r"got other (keys|values) before position 4 than there were"):
            model(X[:, 4:5], keeps=True)


@BYS
def test_queries_over_other_words_as_many_as_before_are_another_run(by: str) -> None:
    model = Looks(by)
    with capture(model):
        model(drawn(B, H, 4, D), context=drawn(B, H, 5, D))
        with pytest.raises(ValueError, match=r"one capture holds one run.*attncache\.capture_runs"):
            model(drawn(B, H, 1, D), context=drawn(B, H, 5, D, seed=1))
