"""Where captured layers come from: numbers, names, heads, stacks and kinds, of encoder-decoders and their generations too.

Sizes: 2 to 10 layers, 4 heads, 12 tokens. Tolerance: 1e-5 between two float32 computations of one weight.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.capturing import IDS, capture_of, llama

pytest.importorskip("torch", reason="capture needs torch")
pytest.importorskip("transformers", reason="capture needs transformers")

import torch
import transformers

from attncache import AttentionCache, LayerSource, capture
from tests.support.capturing import MAKERS, SIZES, inputs, make

pytestmark = pytest.mark.usefixtures("without_gradients")


def bart() -> Any:
    torch.manual_seed(0)
    sides = {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 4))
    }
    widths = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 99}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**sides, **widths)).eval()


def test_layers_keep_the_numbers_names_and_heads_of_the_model(tmp_path: Any) -> None:
    model = llama(10)
    cache = capture_of(model, lambda: model(IDS), layers=[5, 9], heads=[2, 3])
    assert cache.sources == tuple(
        LayerSource(f"model.layers.{layer}.self_attn", layer, heads=(2, 3), kind="self", seam="interface")
        for layer in (5, 9)
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
