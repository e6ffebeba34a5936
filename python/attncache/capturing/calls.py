"""What an attention function of transformers receives, read into one value; refuses what attncache cannot express."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_NAMES = ("module", "query", "key", "value", "attention_mask")
_BEYOND_QUERIES_AND_KEYS = {
    "position_bias": "it adds a position bias to the scores",
    "sinks": "its sinks depend on the input",
    "indices": "it attends to a sparse choice of keys",
    "block_indices": "it attends to a sparse choice of blocks",
    "cu_seq_lens_q": "several sequences are packed into one",
    "cache": "its keys lie in a paged cache",
}


@dataclass(frozen=True)
class Call:
    """One call of an attention function.

    Attributes:
        query: tensor of shape [batch, head, query, head_dim], after rotary embedding, without a gradient.
        key: tensor of shape [batch, key head, key, head_dim], all keys that the function was given.
        mask: None, a bool or additive mask of shape [batch or 1, head or 1, query or 1, key], or [batch, key].
        causal: whether the function masks by itself where ``mask`` is None.
        window: what the module calls its sliding window, whether or not it has an effect.
        applies_window: whether the function itself narrows to the window, so that no mask need say so.
    """

    query: torch.Tensor
    key: torch.Tensor
    mask: torch.Tensor | None
    causal: bool
    window: int | None
    applies_window: bool
    scale: float
    softcap: float | None
    sinks: torch.Tensor | None


def read_call(args: tuple[Any, ...], kwargs: dict[str, Any], implementation: str | None) -> Call:
    """The call with these arguments.

    Args:
        args, kwargs: what the attention function got, the module first.
        implementation: the model's attention implementation, such as "sdpa"; None and "eager" mean the model's own.

    Raises:
        ValueError: the attention is more than queries, keys and a mask.
    """
    import torch  # noqa: PLC0415 (loaded already: it made the model)

    given = dict(zip(_NAMES, args, strict=False)) | kwargs
    for argument, reason in _BEYOND_QUERIES_AND_KEYS.items():
        if given.get(argument) is not None:
            raise ValueError(
                f"{reason} ({argument}). Run the model with output_attentions=True under eager attention and push the "
                "dense patterns instead"
            )
    module, query, key, mask = given["module"], given["query"].detach(), given["key"].detach(), given["attention_mask"]
    if mask is not None and not isinstance(mask, torch.Tensor):
        raise ValueError(
            f"attention_mask must be None or a tensor, got {type(mask).__name__}; "
            'choose another backend, such as model.set_attn_implementation("sdpa")'
        )
    implementation = implementation or "eager"
    is_causal = given.get("is_causal")
    scale = given.get("scaling")
    window = given.get("sliding_window")
    return Call(
        query=query,
        key=key,
        mask=mask,
        causal=implementation != "eager"
        and bool(getattr(module, "is_causal", True) if is_causal is None else is_causal),
        window=window if isinstance(window, int) and window > 0 else None,
        applies_window="flash" in implementation,
        scale=float(query.shape[-1] ** -0.5 if scale is None else scale),
        softcap=given.get("softcap"),
        sinks=None if given.get("s_aux") is None else given["s_aux"].detach(),
    )
