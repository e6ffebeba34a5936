"""Where captured layers come from: numbers, names, heads, stacks and kinds, of encoder-decoders and their generations too.

Sizes: 2 to 10 layers, 4 heads, 12 tokens. Tolerance: 1e-5 between two float32 computations of one weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.capturing import IDS, capture_of, dense, llama

pytest.importorskip("torch", reason="capture needs torch")
pytest.importorskip("transformers", reason="capture needs transformers")

import torch
import transformers

from attncache import AttentionCache, LayerSource, capture
from tests.support.capturing import MAKERS, SIZES, inputs, make

pytestmark = pytest.mark.usefixtures("without_gradients")


def whisper() -> Any:
    torch.manual_seed(0)
    sides = {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 4))
    }
    widths = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_mel_bins": 16, "vocab_size": 99}
    limits = {"max_source_positions": 30, "max_target_positions": 32, "suppress_tokens": None}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    config = transformers.WhisperConfig(**sides, **widths, **limits, **ids, begin_suppress_tokens=None)
    return transformers.WhisperForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()


def by_kind(cache: AttentionCache, stack: str, kind: str) -> list[np.ndarray]:
    found = zip(dense(cache), cache.sources, strict=True)
    return [weights for weights, source in found if source and (source.stack, source.kind) == (stack, kind)]


def t5() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0)).eval()


def bart() -> Any:
    torch.manual_seed(0)
    sides = {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 4))
    }
    widths = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 99}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**sides, **widths)).eval()


@pytest.mark.parametrize("maker", [t5, bart])
def test_an_encoder_decoder_is_captured_whole(maker: Callable[[], Any]) -> None:
    model = maker()
    given = {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}
    with capture(model, dtype="float32") as cache:
        model(**given)
    model.set_attn_implementation("eager")
    outputs = model(**given, output_attentions=True)
    for stack, kind, field in (
        ("encoder", "self", "encoder_attentions"),
        ("decoder", "self", "decoder_attentions"),
        ("decoder", "cross", "cross_attentions"),
    ):
        for ours, theirs in zip(by_kind(cache, stack, kind), getattr(outputs, field), strict=True):
            assert np.abs(ours - theirs.numpy()).max() <= 1e-5


@pytest.mark.parametrize("store", ["pattern", "qk"])
@pytest.mark.filterwarnings("ignore")  # transformers' advice about generation
def test_the_cross_attention_of_a_generation_keeps_its_keys(store: Any) -> None:
    model = whisper()
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    sound = {"input_features": torch.randn(1, 16, 60, generator=torch.Generator().manual_seed(0))}
    with capture(model, store, dtype="float32") as cache:
        model.generate(**sound, **options)
    model.set_attn_implementation("eager")
    steps = model.generate(**sound, **options, return_dict_in_generate=True, output_attentions=True)
    for kind, field in (("cross", "cross_attentions"), ("self", "decoder_attentions")):
        theirs = AttentionCache.from_attentions(getattr(steps, field))
        for ours, other in zip(by_kind(cache, "decoder", kind), theirs, strict=True):
            assert ours.shape == other.shape
            assert np.abs(ours - other).max() <= 1e-5


def test_layers_keep_the_numbers_names_and_heads_of_the_model(tmp_path: Any) -> None:
    model = llama(10)
    cache = capture_of(model, lambda: model(IDS), layers=[5, 9], heads=[2, 3])
    assert cache.sources == tuple(
        LayerSource(f"model.layers.{layer}.self_attn", layer, heads=(2, 3), kind="self") for layer in (5, 9)
    )
    with AttentionCache.create(tmp_path / "run") as on_disk:
        pass
    with capture(model, layers=[5, 9], into=tmp_path / "run") as on_disk:
        model(IDS)
    on_disk.close()
    assert [source.layer for source in on_disk.sources if source] == [5, 9]


def test_self_and_cross_attention_of_a_decoder_are_told_apart() -> None:
    model = bart()
    cache = capture_of(model, lambda: model(input_ids=IDS, decoder_input_ids=IDS))
    places = [(source.stack, source.kind, source.layer) for source in cache.sources if source]
    encoder = [("encoder", "self", 0), ("encoder", "self", 1)]
    decoder = [("decoder", kind, layer) for layer in (0, 1) for kind in ("self", "cross")]
    assert places == encoder + decoder


def test_vision_and_text_of_one_model_are_told_apart() -> None:
    vision = {name: SIZES[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    vision |= {"num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    text = SIZES | {"num_hidden_layers": 3, "eos_token_id": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    model = transformers.CLIPModel(config).eval()
    cache = capture_of(model, lambda: model(input_ids=IDS, pixel_values=torch.zeros(1, 3, 32, 32)))
    places = sorted((source.stack or "", source.layer or 0) for source in cache.sources if source)
    assert places == [("text", 0), ("text", 1), ("text", 2), ("vision", 0), ("vision", 1)]


@pytest.mark.parametrize("name", MAKERS)
def test_a_model_with_one_stack_has_one_number_for_each_layer(name: str) -> None:
    model = make(name)
    cache = capture_of(model, lambda: model(**inputs()))
    assert [(source.layer, source.kind, source.stack) for source in cache.sources if source] == [
        (layer, "self", None) for layer in range(4)
    ]
