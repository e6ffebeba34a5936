"""Model families, each captured in every way and compared with an oracle: the sweep of one type of each, and tests of it.

Covered: that every run of a family is right or refused as it must; what the oracle hears of SDPA (masks, causal, grouped
heads, scale) and of softmax (sinks, dropped columns), against the formula written out; that the comparison finds a changed
weight, exchanged layers, and attention that is in no layer. Not covered: the other types, which ``python -m tests.sweep``
runs. Without torch and transformers everything here is skipped.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import pytest

from tests.support.patterns import cache_of

MISSING = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
if MISSING:
    pytest.skip(f"not installed: {', '.join(MISSING)}", allow_module_level=True)

import torch
import torch.nn.functional as F

from tests.sweep.building import model_types
from tests.sweep.comparing import Source, compared
from tests.sweep.judging import judge
from tests.sweep.oracle import Heard, listening_to
from tests.sweep.shrinking import FIRST_SPECIAL_ID, VOCABULARY, shrunk

FAMILIES = {
    "llama": "grouped heads",
    "qwen3": "grouped heads and a norm of the queries",
    "mistral": "a sliding window",
    "gemma2": "soft-capping",
    "gpt_oss": "sinks",
    "granite_swa": "sinks that the returned weights count",
    "llama4_text": "chunked attention",
    "gpt2": "learned positions",
    "bloom": "ALiBi",
    "bert": "an encoder",
    "modernbert": "a bidirectional window",
    "t5": "an encoder-decoder with a position bias",
    "bart": "an encoder-decoder",
    "vit": "pictures",
    "llava": "pictures and text",
    "whisper": "sounds and text",
    "jamba": "attention in some layers",
    "albert": "layers that share a module",
    "bitnet": "single queries packed for SDPA",
}
BATCH, HEADS, KEY_HEADS, LENGTH, WIDTH = 2, 4, 2, 5, 8


class Attention(torch.nn.Module):
    """Computes attention in the way that it is told."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.how = how

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.how(*tensors)


@pytest.fixture
def projections() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values [batch, head, token, width]; keys and values of fewer heads."""
    generator = torch.Generator().manual_seed(5)
    shapes = [(BATCH, heads, LENGTH, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


def scores_of(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    key = key.repeat_interleave(HEADS // KEY_HEADS, 1)
    return torch.einsum("bhqd,bhkd->bhqk", query.double(), key.double()) * scale


def heard_of(how: Any, *tensors: torch.Tensor) -> Heard:
    model = Attention(how)
    with listening_to(model) as oracle:
        model(*tensors)
    assert oracle.doubts == []
    (heard,) = oracle.heard
    return heard


def test_the_oracle_hears_sdpa_with_grouped_heads_a_scale_and_a_causal_mask(projections: Any) -> None:
    heard = heard_of(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, None, 0.0, True, scale=0.3, enable_gqa=True),
                     *projections)  # fmt: skip
    above = torch.ones(LENGTH, LENGTH).triu(1).bool()
    expected = scores_of(*projections[:2], 0.3).masked_fill(above, -torch.inf).softmax(-1)
    assert torch.allclose(heard.weights, expected, atol=1e-12)
    assert bool(heard.sees.all())


@pytest.mark.parametrize("additive", [False, True])
def test_the_oracle_knows_which_rows_of_a_mask_see_no_key(projections: Any, additive: bool) -> None:
    shown = torch.rand(BATCH, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(6)) > 0.4
    shown[0, :, 1] = False
    mask = torch.where(shown, 0.0, torch.finfo(torch.float32).min) if additive else shown
    heard = heard_of(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True), *projections)
    expected = scores_of(*projections[:2], 1 / math.sqrt(WIDTH)).masked_fill(~shown, -torch.inf).softmax(-1)
    assert torch.equal(heard.sees, shown.any(-1).expand(BATCH, HEADS, LENGTH))
    assert torch.allclose(heard.weights[heard.sees], expected[heard.sees], atol=1e-12)


def test_the_oracle_follows_a_softmax_with_sinks_to_its_product(projections: Any) -> None:
    sinks = torch.arange(HEADS).reshape(1, HEADS, 1, 1).expand(BATCH, HEADS, LENGTH, 1).float()

    def eager(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        scores = scores_of(query, key, 0.5).float()
        weights = F.softmax(torch.cat([scores, sinks], -1), dim=-1, dtype=torch.float32)[..., :-1]
        weights = F.dropout(weights, 0.5, training=False).to(query.dtype)
        return torch.matmul(weights, value.repeat_interleave(HEADS // KEY_HEADS, 1))

    heard = heard_of(eager, *projections)
    powers = scores_of(*projections[:2], 0.5).exp()
    expected = powers / (powers.sum(-1, keepdim=True) + sinks.double().exp())
    assert heard.weights.shape == expected.shape
    assert torch.allclose(heard.weights, expected, atol=1e-6)


def test_a_softmax_that_multiplies_nothing_is_no_attention() -> None:
    model = Attention(lambda scores: scores.softmax(-1).topk(2).values)
    with listening_to(model) as oracle:
        model(torch.randn(2, 3, 4))
    assert oracle.heard == []


def pattern(seed: int, n_queries: int = LENGTH, n_keys: int = LENGTH) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, HEADS, n_queries, n_keys, generator=generator).softmax(-1)


def told(module: str, weights: torch.Tensor, step: int = 0) -> Heard:
    return Heard(module, step, weights.double(), torch.ones(weights.shape[:-1], dtype=torch.bool), 1.0, "sdpa")


def test_what_was_heard_is_right_and_a_changed_weight_and_exchanged_layers_are_wrong() -> None:
    heard = [told("a", pattern(1)), told("b", pattern(2))]
    sources = [Source("a", 0), Source("b", 0)]
    changed = pattern(2)
    changed[1, 3, 2, 4] += 1e-3
    right = compared(cache_of([pattern(1), pattern(2)]), sources, heard)
    assert (right.n_layers, right.wrong, right.absent) == (2, (), ())
    assert right.worst < 1e-7
    assert compared(cache_of([pattern(1), changed]), sources, heard).wrong == ("layer 1 (b): differs by 1.0e-03",)
    assert len(compared(cache_of([pattern(2), pattern(1)]), sources, heard).wrong) == 2


def test_attention_in_no_layer_is_named_and_a_layer_of_no_call_is_wrong() -> None:
    heard = [told("a", pattern(1)), told("b", pattern(2))]
    assert compared(cache_of([pattern(1)]), [Source("a", 0)], heard).absent == ("b",)
    (wrong,) = compared(cache_of([pattern(1)]), [Source("c", 0)], heard).wrong
    assert "never computed" in wrong


def test_steps_become_one_layer_whose_keys_are_at_their_positions() -> None:
    steps = [pattern(1), pattern(2, 1, LENGTH + 1), pattern(3, 1, 3)]  # the last sees a window of three keys
    whole = np.zeros((BATCH, HEADS, LENGTH + 2, LENGTH + 2), np.float32)
    whole[:, :, :LENGTH, :LENGTH] = steps[0]
    whole[:, :, LENGTH, : LENGTH + 1] = steps[1][:, :, 0]
    whole[:, :, LENGTH + 1, -3:] = steps[2][:, :, 0]
    heard = [told("a", weights, step) for step, weights in enumerate(steps)]
    comparison = compared(cache_of([whole]), [Source("a", 0)], heard)
    assert (comparison.wrong, comparison.absent) == ((), ())


def test_small_configurations_keep_every_kind_of_layer_and_move_special_tokens_together() -> None:
    from transformers import Gemma3Config

    ids: dict[int, int] = {}
    config = shrunk(Gemma3Config(), "small", ids, {})
    assert set(config.text_config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.text_config.vocab_size == VOCABULARY
    assert FIRST_SPECIAL_ID <= config.image_token_id < VOCABULARY
    assert config.image_token_id == ids[Gemma3Config().image_token_id]
    assert config.text_config.hidden_size <= 64


@pytest.mark.parametrize("model_type", FAMILIES, ids=[f"{name}: {what}" for name, what in FAMILIES.items()])
def test_every_run_of_a_family_is_captured_right(model_type: str) -> None:
    """Both backends, padded and not, and a generation: each weight against the oracle, each output to the bit."""
    if model_type not in model_types():
        pytest.skip("this transformers has no such models")
    judged = judge(model_type)
    assert judged.outcomes, judged.reason
    found = {(outcome.verdict, outcome.reason) for outcome in judged.outcomes}
    assert {verdict for verdict, _ in found} == {"right"}, found
