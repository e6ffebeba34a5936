"""The attention of torch.nn, captured: each layer and setting against its own weights or float64, and what it is called."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from attncache import capture

pytest.importorskip("torch", reason="capture needs torch")

import torch
from torch import nn

from tests.support.attending import STORES, B, H, K, Q, drawn, patterns

WIDTH = 16
CAUSAL = torch.ones(K, K, dtype=torch.bool).triu(1)
PADDED = torch.zeros(B, K, dtype=torch.bool)
PADDED[0, -2:] = True
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"attn_mask": CAUSAL},
    "causal by name": {"attn_mask": CAUSAL, "is_causal": True},
    "additive": {"attn_mask": drawn(K, K)},
    "of each head": {"attn_mask": torch.rand(B * H, K, K, generator=torch.Generator().manual_seed(0)).round().bool().tril(-1)},
    "padding": {"key_padding_mask": PADDED},
    "both": {"attn_mask": CAUSAL, "key_padding_mask": PADDED},
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias_k": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True},
    "bias_k and zero_attn": {"add_bias_kv": True, "add_zero_attn": True},
}


def made(seed: int = 0, **options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(seed)
    module = nn.MultiheadAttention(WIDTH, H, **options).eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(3)
    return module


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_is_heard_by_head(masks: str, settings: str, batch_first: bool, need_weights: bool) -> None:
    if masks == "causal by name" and settings != "plain":
        pytest.skip("PyTorch drops the mask, and is causal over other keys")
    module = made(batch_first=batch_first, **SETTINGS[settings])
    x = drawn(B, K, WIDTH)
    x = x if batch_first else x.transpose(0, 1)
    options = {"need_weights": need_weights, **MASKS[masks]}
    with torch.no_grad():
        _, expected = module(
            x, x, x, average_attn_weights=False, **{**options, "need_weights": True, "is_causal": False}
        )
        plain = module(x, x, x, **options)
        with capture(module, dtype="float32") as cache:
            out = module(x, x, x, **options)
    (found,) = patterns(cache)
    np.testing.assert_allclose(found, expected.numpy()[..., : found.shape[3]], rtol=0, atol=1e-6)
    assert not expected[..., found.shape[3] :].any()
    np.testing.assert_allclose(out[0], plain[0], rtol=0, atol=2e-6)
    assert (out[1] is None) == (not need_weights)
    assert cache.sources[0].kind == "self"
    assert cache.sources[0].seam == ("softmax" if need_weights else "sdpa")


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("n_keys", [K, Q])
def test_another_sequence_makes_it_cross_attention(n_keys: int, need_weights: bool) -> None:
    module = made(kdim=5, vdim=6, batch_first=True)
    query, key, value = drawn(B, Q, WIDTH), drawn(B, n_keys, 5), drawn(B, n_keys, 6)
    with torch.no_grad(), capture(module, dtype="float32") as cache:
        module(query, key, value, need_weights=need_weights)
        assert cache.sources[0].kind == "cross"
    _, expected = module(query, key, value, average_attn_weights=False)
    np.testing.assert_allclose(patterns(cache)[0], expected.detach(), rtol=0, atol=1e-6)


def test_keys_that_are_the_queries_made_anew_are_of_one_sequence() -> None:
    """As where positions are added to each."""
    module, x = made(batch_first=True), drawn(B, K, WIDTH)
    with torch.no_grad(), capture(module) as cache:
        module(x + 1, x + 1, x)
    assert cache.sources[0].kind == "self"


def test_queries_first_and_as_many_as_items_and_heads() -> None:
    module, x = made(), drawn(B * H, B, WIDTH)
    with torch.no_grad(), capture(module, dtype="float32") as cache:
        _, expected = module(x, x, x, average_attn_weights=False)
    np.testing.assert_allclose(patterns(cache)[0], expected, rtol=0, atol=1e-6)


def test_one_text_without_a_batch() -> None:
    module, x = made(), drawn(K, WIDTH)
    with torch.no_grad(), capture(module, dtype="float32") as cache:
        _, expected = module(x, x, x, average_attn_weights=False)
    np.testing.assert_allclose(patterns(cache)[0], expected[None], rtol=0, atol=1e-6)


def layers_of(kind: type[nn.Module], **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind(WIDTH, H, 8, batch_first=True, **options)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("masks", ["none", "causal", "padding"])
@STORES
def test_an_encoder_is_heard_and_leaves_its_fused_path(masks: str, norm_first: bool, store: Any) -> None:
    encoder = nn.TransformerEncoder(
        layers_of(nn.TransformerEncoderLayer, norm_first=norm_first), 3, enable_nested_tensor=False
    ).eval()
    x = drawn(B, K, WIDTH)
    names = {"attn_mask": "mask", "key_padding_mask": "src_key_padding_mask"}
    options = {names[name]: mask for name, mask in MASKS[masks].items()}
    with torch.no_grad():
        plain = encoder(x, **options)
        with capture(encoder, store, dtype="float32") as cache:
            out = encoder(x, **options)
    seen = ~PADDED if masks == "padding" else torch.ones(B, K, dtype=torch.bool)
    np.testing.assert_allclose(out[seen], plain[seen], rtol=0, atol=5e-6)
    assert [source.module for source in cache.sources] == [f"layers.{n}.self_attn" for n in range(3)]
    assert [(source.layer, source.kind, source.seam) for source in cache.sources] == [
        (n, "self", "sdpa") for n in range(3)
    ]
    given = encoder.layers[0].norm1(x) if norm_first else x
    _, expected = encoder.layers[0].self_attn(given, given, given, average_attn_weights=False, **MASKS[masks])
    np.testing.assert_allclose(patterns(cache)[0], expected.detach()[..., : cache.shapes[0][3]], rtol=0, atol=1e-6)


def test_nested_tensors_of_an_encoder_stay_out_of_the_way() -> None:
    encoder = nn.TransformerEncoder(layers_of(nn.TransformerEncoderLayer), 2, enable_nested_tensor=True).eval()
    x = drawn(B, K, WIDTH)
    with torch.no_grad(), capture(encoder, dtype="float32") as cache:
        encoder(x, src_key_padding_mask=PADDED)
    assert len(cache.shapes) == 2
    assert not patterns(cache)[0][0, :, :, -2:].any()


@STORES
def test_a_whole_transformer_tells_its_stacks_and_kinds_apart(store: Any) -> None:
    torch.manual_seed(0)
    model = nn.Transformer(WIDTH, H, 2, 2, 8, batch_first=True).eval()
    source, target = drawn(B, K, WIDTH), drawn(B, Q, WIDTH)
    with torch.no_grad():
        mask = nn.Transformer.generate_square_subsequent_mask(Q)
        with capture(model, store, dtype="float32") as cache:
            model(source, target, tgt_mask=mask, tgt_is_causal=True)
    told = [
        (each.stack, each.kind, each.layer, shape[2:]) for each, shape in zip(cache.sources, cache.shapes, strict=True)
    ]
    encoder = [("encoder", "self", n, (K, K)) for n in range(2)]
    decoder = [[("decoder", "self", n, (Q, Q)), ("decoder", "cross", n, (Q, K))] for n in range(2)]
    assert told == [*encoder, *itertools.chain(*decoder)]
    memory = model.encoder(source)
    layer = model.decoder.layers[0]
    found = {each.module: pattern for each, pattern in zip(cache.sources, patterns(cache), strict=True)}
    _, expected = layer.self_attn(target, target, target, attn_mask=mask, average_attn_weights=False)
    np.testing.assert_allclose(found["decoder.layers.0.self_attn"], expected.detach(), rtol=0, atol=1e-6)
    x = layer.norm1(target + layer.self_attn(target, target, target, attn_mask=mask)[0])
    _, expected = layer.multihead_attn(x, memory, memory, average_attn_weights=False)
    np.testing.assert_allclose(found["decoder.layers.0.multihead_attn"], expected.detach(), rtol=0, atol=1e-6)


def test_training_keeps_its_random_numbers() -> None:
    layer = layers_of(nn.TransformerEncoderLayer).train()
    x = drawn(B, K, WIDTH)
    torch.manual_seed(0)
    plain = layer(x)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="ran with dropout"), capture(layer):
        out = layer(x)
    assert torch.equal(out, plain)
