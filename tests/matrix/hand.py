"""Computes the weights of attention modules in float64 from their inputs and parameters, by the formula of each class.

judging.py takes them as the truth where a model has such modules; what was computed at the seam plays no part here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tests.sweep.oracle import Heard

Tensor = Any


def split(tokens: Tensor, heads: int) -> Tensor:
    """[batch, token, head * width] as [batch, head, token, width]."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def linear(tokens: Tensor, layer: Any) -> Tensor:
    """A linear layer in float64."""
    return F.linear(tokens.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())


def scores(query: Tensor, key: Tensor, heads: int, hides: Tensor | None = None) -> Tensor:
    """Scores [batch, head, query, key] of projected tokens [batch, token, head * width], with hidden keys at -inf."""
    query, key = split(query, heads), split(key, key.shape[-1] * heads // query.shape[-1])
    key = key.repeat_interleave(heads // key.shape[1], 1)
    products = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return products if hides is None else products.masked_fill(hides, -torch.inf)


def of_multihead(module: Any, query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """nn.MultiheadAttention."""
    if not module.batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    weights, biases = (part.double().chunk(3) for part in (module.in_proj_weight, module.in_proj_bias))
    query, key = (F.linear(*each) for each in zip((query.double(), key.double()), weights, biases, strict=False))
    found = scores(query, key, module.num_heads)
    mask, padding = given.get("attn_mask"), given.get("key_padding_mask")
    for hides in (mask, None if padding is None else padding[:, None, None, :]):
        if hides is not None:
            found = found.masked_fill(hides, -torch.inf) if hides.dtype == torch.bool else found + hides.double()
    return found


def of_joined(module: Any, tokens: Tensor, mask: Tensor | None = None, **_: Any) -> Tensor:
    """timm's ViT, BEiT and Swin: queries, keys and values of one projection, with a bias for each pair of positions."""
    weight, bias = module.qkv.weight.double().chunk(3), getattr(module, "q_bias", None)
    biases = (None, None) if module.qkv.bias is None else module.qkv.bias.double().chunk(3)[:2]
    biases = biases if bias is None else (bias.double(), module.k_bias.double())
    query, key = (F.linear(tokens.double(), each, bias) for each, bias in zip(weight[:2], biases, strict=True))
    found = scores(query, key, module.num_heads)
    if getattr(module, "relative_position_bias_table", None) is not None:
        found = found + module._get_rel_pos_bias().double()
    if mask is not None:  # of Swin's windows [window, query, key], which are split from the batch
        found = found + mask.double()[:, None].repeat(len(tokens) // len(mask), 1, 1, 1)
    return found


def of_windows(module: Any, tokens: Tensor, **_: Any) -> Tensor:
    """timm's MaxViT: windows of a picture [batch, .., channel], with a bias for each pair of positions."""
    assert not module.head_first
    query, key, _ = linear(tokens, module.qkv).flatten(1, -2).chunk(3, -1)
    return scores(query, key, module.num_heads) + module.rel_pos.get_bias().double()


def of_class_token(module: Any, tokens: Tensor) -> Tensor:
    """timm's CaiT: the class token alone asks."""
    return scores(linear(tokens[:, :1], module.q), linear(tokens, module.k), module.num_heads)


def of_whisper(module: Any, tokens: Tensor, other: Tensor = None, mask: Tensor = None, kv_cache: Any = None) -> Tensor:
    """OpenAI's Whisper."""
    keys = linear(tokens if other is None else other, module.key)
    hides = None if mask is None else mask[: tokens.shape[1], : tokens.shape[1]] < 0
    return scores(linear(tokens, module.query), keys, module.n_head, hides)


def of_diffusers(
    module: Any, tokens: Tensor, encoder_hidden_states: Tensor = None, attention_mask: Tensor = None, **_: Any
) -> Tensor:
    """diffusers' UNet and PixArt; the mask is added to the scores [batch, 1, key]."""
    keys = tokens if encoder_hidden_states is None else encoder_hidden_states
    found = scores(linear(tokens, module.to_q), linear(keys, module.to_k), module.heads)
    return found if attention_mask is None else found + attention_mask.double()[:, None]


def of_esm(module: Any, query: Tensor, key_padding_mask: Tensor = None, **_: Any) -> Tensor:
    """fair-esm: tokens [token, batch, channel] that attend to themselves, and its own rotation of queries and keys in float64."""
    layers = (module.q_proj, module.k_proj)
    query, key = (split(linear(query.transpose(0, 1), layer), module.num_heads) for layer in layers)
    query, key = module.rot_emb(query.flatten(0, 1), key.flatten(0, 1))
    found = (query @ key.transpose(-2, -1) * module.scaling).unflatten(0, (-1, module.num_heads))
    return found if key_padding_mask is None else found.masked_fill(key_padding_mask[:, None, None], -torch.inf)


def of_attend(module: Any, query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
    """x-transformers' module of attention alone, causal: it is given queries and keys by head."""
    found = query.double() @ key.double().transpose(-2, -1) / query.shape[-1] ** 0.5
    return found.masked_fill(torch.ones(found.shape[-2:]).triu(1).bool(), -torch.inf)


def of_own(module: Any, tokens: Tensor) -> Tensor:
    """The own modules of torch_models.py."""
    return scores(linear(tokens, module.q), linear(tokens, module.k), module.heads, module.hides)


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "torch.nn.modules.activation.MultiheadAttention": of_multihead,
    "timm.layers.attention.Attention": of_joined,
    "timm.models.beit.Attention": of_joined,
    "timm.models.swin_transformer.WindowAttention": of_joined,
    "timm.models.maxxvit.AttentionCl": of_windows,
    "timm.models.cait.ClassAttn": of_class_token,
    "esm.multihead_attention.MultiheadAttention": of_esm,
    "x_transformers.attend.Attend": of_attend,
    "whisper.model.MultiHeadAttention": of_whisper,
    "tests.matrix.torch_models.Attention": of_own,
}
DIFFUSERS = "diffusers.models.attention_processor.Attention"  # its processor decides


@contextmanager
def computing_by_hand(model: Any) -> Iterator[list[Heard]]:
    """Compute the weights of every module whose formula is known, while the model runs; the list grows."""
    heard: list[Heard] = []

    def hear(formula: Any, path: str, module: Any, args: Any, kwargs: Any) -> None:
        found = formula(module, *args, **kwargs).detach()
        largest = float(found[found.isfinite()].abs().max())
        heard.append(Heard(path, 0, found.softmax(-1), found.isfinite().any(-1), largest, "hand"))

    with ExitStack() as stack:
        for path, module in model.named_modules():
            formula = FORMULAS.get(kind := f"{type(module).__module__}.{type(module).__qualname__}")
            if kind == DIFFUSERS and type(module.processor).__name__ == "AttnProcessor2_0" and module.norm_q is None:
                formula = of_diffusers
            if formula is not None:
                hook = partial(hear, formula, path)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield heard
