"""What a seam hears of one attention, read into one value: queries, keys and what they were given, or its weights alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Call:
    """One call of an attention function; every tensor without a gradient.

    Attributes:
        query: tensor of shape [batch, head, query, head_dim], after rotary embedding.
        key: tensor of shape [batch, key head, key, head_dim], all keys that the function was given.
        value: tensor of shape [batch, key head, key, item].
        mask: None, a bool or additive mask of shape [batch or 1, head or 1, query or 1, key], or [batch, key].
        bias: None, or what is added to the scores beside the mask, [batch or 1, head, query, key].
        causal: whether the function masks by itself where ``mask`` is None.
        window: what the module calls its sliding window, whether or not it has an effect.
        applies_window: whether the function itself narrows to the window, so that no mask need say so.
        scale, softcap: how scores come from products.
        sinks: None, or the score of each head's sink [head].
        output: what the function returned, [batch, query, head, item]; None if it has another shape.
        weights: the weights that the function returned, [batch, head, query, key]; None if it returned none.
        has_dropout: whether weights were dropped at random, so that output and weights are not those of the queries.
        is_trusted: whether the function is PyTorch's or transformers' own, so that some rows of a long call are compared.
        mask_object: the mask as it was given, which many layers share; None where it is ``mask`` itself.
        reason: what makes the attention more than queries, keys and a mask, if the arguments tell; or None.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    causal: bool
    window: int | None
    applies_window: bool
    scale: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    output: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    has_dropout: bool = False
    is_trusted: bool = True
    mask_object: torch.Tensor | None = None
    reason: str | None = None

    @property
    def n_queries(self) -> int:
        return int(self.query.shape[2])

    @property
    def n_given(self) -> int:
        """How many keys the function was given."""
        return int(self.key.shape[2])

    @property
    def n_batch(self) -> int:
        return int(self.query.shape[0])

    @property
    def n_heads(self) -> int:
        return int(self.query.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        return self.query.dtype


@dataclass(frozen=True)
class Weights:
    """One attention of which only the weights pass by: the result of a softmax that multiplies; without a gradient.

    Attributes:
        weights: tensor of shape [batch, head, query, key], as they multiply.
        values: what they multiply, [.., key, item]: who goes on with a layer has the same ones for the same keys.
        has_dropout: whether dropout came after the softmax; then they are those before it.
    """

    weights: torch.Tensor
    values: torch.Tensor
    has_dropout: bool = False

    @property
    def n_queries(self) -> int:
        return int(self.weights.shape[2])

    @property
    def n_given(self) -> int:
        """How many keys they lie over."""
        return int(self.weights.shape[3])

    @property
    def n_batch(self) -> int:
        return int(self.weights.shape[0])

    @property
    def n_heads(self) -> int:
        return int(self.weights.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.dtype


def with_batch_first(call: Call | Weights) -> Call | Weights:
    """The same call of tensors [head, batch, ..]."""
    if isinstance(call, Weights):
        return replace(call, weights=call.weights.transpose(0, 1))
    key, value = (each.expand(*call.query.shape[:2], *each.shape[2:]) for each in (call.key, call.value))
    return replace(
        call,
        query=call.query.transpose(0, 1),
        key=key.transpose(0, 1),
        value=value.transpose(0, 1),
        mask=None if call.mask is None else call.mask.transpose(0, 1),
        output=None if call.output is None else call.output.transpose(0, 2),
    )
