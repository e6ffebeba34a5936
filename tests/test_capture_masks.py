"""Masks that a capture reads back as what made them, and those that queries and keys cannot carry.

Sizes: 7 queries and keys. Tolerance: none. Not covered: patterns under any mask (test_capture_truth.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.capturing import became_patterns, dense

pytest.importorskip("torch", reason="capture needs torch")
pytest.importorskip("transformers", reason="capture needs transformers")

import torch
import transformers

from attncache import AttentionCache, capture
from attncache.adapters.capture.calls import Call
from attncache.adapters.capture.masks import continued, read_sight
from tests.support.capturing import BATCH, HEAD_DIM, LENGTH, inputs, make

pytestmark = pytest.mark.usefixtures("without_gradients")


def test_queries_and_keys_cannot_carry_a_position_bias() -> None:
    config = transformers.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    encoder = transformers.T5ForConditionalGeneration(config).eval().get_encoder()
    cache, words = became_patterns(encoder)
    assert cache.kinds == ("dense", "dense")
    assert words == (
        "layer 0 (block.0.layer.0.SelfAttention), layer 1 (block.1.layer.0.SelfAttention) are patterns, since queries and keys "
        "alone do not give the weights: it adds a position bias to the scores (position_bias)"
    )
    assert_same_as_patterns(cache, encoder)


def assert_same_as_patterns(cache: AttentionCache, model: Any, **options: Any) -> None:
    with capture(model, dtype="float32") as patterns:
        model(inputs()["input_ids"], **options)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(dense(cache), dense(patterns), strict=True))


def test_queries_and_keys_cannot_carry_chunked_attention_but_whole_layers_beside_it() -> None:
    options = {
        "attention_chunk_size": 4,
        "num_local_experts": 2,
        "intermediate_size_mlp": 32,
        "no_rope_layers": [1, 1, 1, 0],
    }
    model = transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**HEAD_DIM, **options)).eval()
    cache, words = became_patterns(model)
    assert "its mask must be causal or bidirectional" in words
    assert cache.kinds == ("dense", "dense", "dense", "factored")
    assert_same_as_patterns(cache, model)


def test_queries_and_keys_cannot_carry_packed_texts() -> None:
    packed = {"position_ids": torch.arange(LENGTH).expand(BATCH, -1) % 5, "use_cache": False}
    model = make("llama: grouped heads")
    cache, words = became_patterns(model, **packed)
    assert words.endswith("got another mask of shape [2, 1, 12, 12]")
    assert_same_as_patterns(cache, model, **packed)


def test_queries_and_keys_cannot_carry_a_biased_mask() -> None:
    mask = torch.zeros(BATCH, 1, LENGTH, LENGTH)
    mask[..., 3] = -1.5
    model = make("llama: grouped heads")
    cache, words = became_patterns(model, attention_mask=mask)
    assert "got a mask that adds other numbers to the scores than 0 and -inf" in words
    assert_same_as_patterns(cache, model, attention_mask=mask)


def call(
    mask: Any, *, queries: int = 7, keys: int = 7, window: int | None = None, causal: bool = True, flash: bool = False
) -> Call:
    key = torch.zeros(2, 2, keys, 8)
    return Call(torch.zeros(2, 4, queries, 8), key, key, mask, causal, window, flash, 1.0)


def mask_of(causal: bool, window: int | None, shown: Any, *, queries: int = 7, keys: int = 7) -> torch.Tensor:
    ahead = np.arange(keys) - (np.arange(queries) + keys - queries)[:, None]
    seen = ahead <= 0 if causal else np.ones(ahead.shape, bool)
    if window is not None:
        seen = seen & (ahead > -window if causal else np.abs(ahead) <= window)
    return torch.tensor(seen & np.asarray(shown, bool)[:, None, None])


SHOWN = {"none": [[1] * 7] * 2, "left": [[0, 0, 1, 1, 1, 1, 1], [1] * 7], "right": [[1] * 7, [1, 1, 1, 1, 0, 0, 0]]}


@pytest.mark.parametrize("additive", [False, True], ids=["bool", "additive"])
@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_a_mask_is_read_back_as_what_made_it(causal: bool, window: int | None, shown: str, additive: bool) -> None:
    mask = mask_of(causal, window, SHOWN[shown])
    given = torch.where(mask, 0.0, torch.finfo(torch.float32).min) if additive else mask
    sight = read_sight(call(given, window=window))
    assert (sight.causal, sight.window, sight.n_keys) == (causal, window, 7)
    assert (sight.key_mask is None) == (shown == "none")
    if sight.key_mask is not None:
        assert sight.key_mask.tolist() == torch.tensor(SHOWN[shown], dtype=torch.bool).tolist()


@pytest.mark.parametrize("shown", SHOWN)
def test_a_window_that_the_module_does_not_name_is_found_in_the_mask(shown: str) -> None:
    assert read_sight(call(mask_of(True, 3, SHOWN[shown]))).window == 3
    assert read_sight(call(mask_of(False, 2, SHOWN[shown]))).window == 2


def test_the_unused_slots_of_a_static_cache_are_left_out() -> None:
    mask = torch.zeros(2, 1, 7, 20, dtype=torch.bool)
    mask[..., :7] = mask_of(True, None, SHOWN["left"])
    sight = read_sight(call(mask, keys=20))
    assert sight.n_keys == 7
    assert read_sight(call(None, keys=20)).n_keys == 7
    step = torch.zeros(2, 1, 1, 20, dtype=torch.bool)
    step[..., :8] = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8], dtype=torch.bool)[:, None, None]
    grown, start = continued(sight, call(step, queries=1, keys=20))
    assert (grown.n_keys, start) == (8, 0)
    with pytest.raises(ValueError, match="got no mask at position 7 that shows other keys than before"):
        continued(sight, call(None, queries=1, keys=20))


@pytest.mark.parametrize("what", ["one more key", "one key less", "prefix", "per head", "integers", "nothing like it"])
def test_a_mask_that_differs_in_one_place_is_refused(what: str) -> None:
    mask = mask_of(True, None, SHOWN["none"])
    if what == "one more key":
        mask[1, 0, 2, 5] = True
    elif what == "one key less":
        mask[0, 0, 6, 3] = False
    elif what == "prefix":
        mask[:, :, :3, :3] = True
    elif what == "per head":
        mask = mask.repeat(1, 4, 1, 1)
        mask[0, 2, 3, 1] = False
    elif what == "integers":
        mask = mask.long()
    else:
        mask = torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    with pytest.raises(ValueError, match="its mask must be causal or bidirectional"):
        read_sight(call(mask))


def test_without_a_mask_the_backend_decides() -> None:
    assert read_sight(call(None)).causal
    assert not read_sight(call(None, causal=False)).causal
    assert read_sight(call(None, window=3)).window is None  # SDPA and eager narrow by their mask only
    assert read_sight(call(None, window=9)).window == 9  # without an effect so far
    assert read_sight(call(None, window=3, flash=True)).window == 3
    assert read_sight(call(None, window=3, flash=True, causal=False)).window == 2
    padding = torch.tensor(SHOWN["left"])
    flash = read_sight(call(padding, flash=True))
    assert flash.key_mask is not None
    grown, _ = continued(flash, call(torch.cat([padding, torch.ones(2, 1)], 1), queries=1, keys=8, flash=True))
    assert grown.key_mask is not None
    assert grown.key_mask.sum(dim=1).tolist() == [6, 8]
