"""What an attention function of transformers receives and returns, read into one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attncache.adapters.capture.interface import Heard

if TYPE_CHECKING:
    import torch

_NAMES = ("module", "query", "key", "value", "attention_mask")
_BEYOND_QUERIES_AND_KEYS = {
    "sinks": "its sinks depend on the input (sinks)",
    "indices": "it attends to a sparse choice of keys (indices)",
    "block_indices": "it attends to a sparse choice of blocks (block_indices)",
    "cu_seq_lens_q": "several sequences are packed into one (cu_seq_lens_q)",
    "cache": "its keys lie in a paged cache (cache)",
}


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
        is_of_transformers: whether the function is one of the library's own.
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
    is_of_transformers: bool = True
    reason: str | None = None

    @property
    def n_queries(self) -> int:
        return int(self.query.shape[2])


def read_call(heard: Heard) -> Call:
    """The call that was heard."""
    import torch  # noqa: PLC0415 (loaded already: it made the model)

    kwargs = heard.kwargs
    given = dict(zip(_NAMES, heard.args, strict=False)) | kwargs
    module, query, key = given["module"], given["query"].detach(), given["key"].detach()
    reason = next((text for name, text in _BEYOND_QUERIES_AND_KEYS.items() if given.get(name) is not None), None)
    mask = given.get("attention_mask")
    if mask is not None and not isinstance(mask, torch.Tensor):
        reason = (
            f"attention_mask must be None or a tensor, got {type(mask).__name__}; choose another backend, such as "
            'model.set_attn_implementation("sdpa")'
        )
        mask = None
    output, weights = _returned(heard.result, query, key)
    implementation = heard.implementation or "eager"
    is_causal, scale, window = given.get("is_causal"), given.get("scaling"), given.get("sliding_window")
    sinks, bias = given.get("s_aux"), given.get("position_bias")
    return Call(
        query=query,
        key=key,
        value=given["value"].detach(),
        mask=mask,
        bias=None if bias is None else bias.detach(),
        causal=implementation != "eager"
        and bool(getattr(module, "is_causal", True) if is_causal is None else is_causal),
        window=window if isinstance(window, int) and window > 0 else None,
        applies_window="flash" in implementation,
        scale=float(query.shape[-1] ** -0.5 if scale is None else scale),
        softcap=given.get("softcap"),
        sinks=None if sinks is None else sinks.detach(),
        output=output,
        weights=weights,
        has_dropout=bool(module.training and (given.get("dropout") or 0) > 0),
        is_of_transformers=getattr(heard.function, "__module__", "").partition(".")[0] == "transformers",
        reason=reason,
    )


def _returned(result: Any, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The output [batch, query, head, item] and the weights [batch, head, query, key], where they are that."""
    import torch  # noqa: PLC0415

    output, weights, *_ = (*result, None) if isinstance(result, tuple) else (result, None)
    batch, n_heads, n_queries, _ = query.shape
    if not isinstance(output, torch.Tensor) or output.shape[:-1] != (batch, n_queries, n_heads):
        output = None
    if (
        not isinstance(weights, torch.Tensor)
        or weights.ndim != 4
        or weights.shape[:3] != query.shape[:3]
        or weights.shape[3] < key.shape[2]
    ):
        weights = None
    return (
        None if output is None else output.detach(),
        None if weights is None else weights.detach()[..., : key.shape[2]],
    )
