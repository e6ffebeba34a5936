"""Models that need PyTorch alone: its own classes of attention, and modules as people write them; CI judges them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend

from tests.matrix.entry import BATCH, Built, Entry, calling, random

WIDTH, HEADS, LENGTH, KEYS = 32, 4, 9, 7
HIDES = torch.rand(LENGTH, LENGTH, generator=torch.Generator().manual_seed(6)).fill_diagonal_(0) > 0.6
PADDED = torch.arange(LENGTH).expand(BATCH, LENGTH) >= torch.tensor([[LENGTH], [LENGTH - 3]])

Attend = Callable[[Any, Any, Any], Any]


class Attention(nn.Module):  # type: ignore[misc]
    """Attention as one writes it oneself; ``how`` makes the result of queries, keys and values [batch, head, token, width]."""

    def __init__(self, how: Attend, key_heads: int = HEADS, hides: Any = None) -> None:
        super().__init__()
        self.how, self.heads, self.key_heads, self.hides = how, HEADS, key_heads, hides
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k, self.v = (nn.Linear(WIDTH, WIDTH // HEADS * key_heads) for _ in range(2))

    def forward(self, x: Any) -> Any:
        parts = ((self.q, HEADS), (self.k, self.key_heads), (self.v, self.key_heads))
        query, key, value = (part(x).unflatten(-1, (heads, -1)).transpose(1, 2) for part, heads in parts)
        return x + self.how(query, key, value).transpose(1, 2).flatten(2)


def softmax_and_product(query: Any, key: Any, value: Any) -> Any:
    """The formula of the textbook."""
    weights = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)
    return F.dropout(weights, 0.1, training=False) @ value


def three_axes(query: Any, key: Any, value: Any) -> Any:
    """Batch and heads in one axis, as fairseq writes it."""
    query, key, value = (part.flatten(0, 1) for part in (query, key, value))
    weights = F.softmax(torch.bmm(query * query.shape[-1] ** -0.5, key.transpose(1, 2)), dim=-1)
    return torch.bmm(weights, value).unflatten(0, (BATCH, HEADS))


def einsums(query: Any, key: Any, value: Any) -> Any:
    """Einstein sums, and hidden keys filled in."""
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bhqk,bhkd->bhqd", scores.masked_fill(HIDES, -torch.inf).softmax(-1), value)


def grouped(query: Any, key: Any, value: Any) -> Any:
    """Heads that share keys."""
    return attend(query, key, value, is_causal=True, enable_gqa=True)


def own(how: Attend, key_heads: int = HEADS, hides: Any = None, compiled: bool = False) -> Built:
    """Two such layers."""
    model = nn.Sequential(*(Attention(how, key_heads, hides) for _ in range(2)))
    return calling(torch.compile(model, backend="eager") if compiled else model, random(BATCH, LENGTH, WIDTH))


def encoder(padding: Any = None) -> Built:
    """What it gives of tokens; of padding, the fused path gives zeros, and the other path does not."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=True)
    model, call = calling(nn.TransformerEncoder(layer, 2), random(BATCH, LENGTH, WIDTH), src_key_padding_mask=padding)
    return model, call if padding is None else lambda: call()[~padding]


def encoder_and_decoder() -> Built:
    """The decoder is causal, and attends to the encoder."""
    model = nn.Transformer(WIDTH, HEADS, 2, 2, 64, batch_first=True)
    causal = model.generate_square_subsequent_mask(LENGTH)
    return calling(model, random(BATCH, KEYS, WIDTH), random(BATCH, LENGTH, WIDTH), tgt_mask=causal, tgt_is_causal=True)


def attention(need_weights: bool, cross: bool = True) -> Built:
    """One module, without a model around it."""
    tokens = random(BATCH, LENGTH, WIDTH)
    other = random(BATCH, KEYS, WIDTH) if cross else tokens
    model = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    return calling(model, tokens, other, other, need_weights=need_weights)


CAUSAL = torch.ones(LENGTH, LENGTH).triu(1).bool()
ENTRIES = [
    Entry("torch", "nn.TransformerEncoder", encoder, fused=True),
    Entry("torch", "nn.TransformerEncoder, padded", lambda: encoder(PADDED), fused=True),
    Entry("torch", "nn.Transformer", encoder_and_decoder, fused=True),
    Entry("torch", "nn.MultiheadAttention", lambda: attention(need_weights=False, cross=False), fused=True),
    Entry("torch", "nn.MultiheadAttention, cross", lambda: attention(need_weights=False)),
    Entry("torch", "nn.MultiheadAttention, need_weights", lambda: attention(need_weights=True)),
    Entry("torch", "own: SDPA by name", lambda: own(attend)),
    Entry("torch", "own: causal, grouped heads", lambda: own(grouped, 2, CAUSAL)),
    Entry("torch", "own: boolean mask", lambda: own(lambda q, k, v: attend(q, k, v, ~HIDES), hides=HIDES)),
    Entry("torch", "own: torch.compile", lambda: own(attend, compiled=True)),
    Entry("torch", "own: softmax and product", lambda: own(softmax_and_product)),
    Entry("torch", "own: softmax of three axes", lambda: own(three_axes)),
    Entry("torch", "own: einsum, masked_fill", lambda: own(einsums, hides=HIDES)),
]
