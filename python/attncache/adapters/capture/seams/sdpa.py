"""Reads a call of scaled_dot_product_attention, whose definition is PyTorch's; for functions.py."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from attncache.adapters.capture.calls import Call
from attncache.adapters.capture.heads import batch_and_heads

if TYPE_CHECKING:
    import torch

_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def leading_axes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    """The sizes of the axes of its queries before [query, head_dim]."""
    return tuple((args[0] if args else kwargs["query"]).shape[:-2])


def read_sdpa(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, n_heads: int | None) -> Call:
    """The call, whose axes before query and key become batch and heads; key heads that are shared stay shared.

    Raises:
        ValueError: its tensors are nested, or not of this device; or n_heads does not divide its axis.
    """
    given = dict(zip(_NAMES, args, strict=False)) | kwargs
    query, key, value = (given[name].detach() for name in _NAMES[:3])
    if query.is_nested or key.is_nested:
        raise ValueError("its queries and keys are nested tensors, of which no text has the length of the others")
    leading = tuple(query.shape[:-2])
    axes = _Axes(leading, *batch_and_heads(leading, n_heads))
    mask, causal = given.get("attn_mask"), bool(given.get("is_causal"))
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    if mask is not None and hasattr(
        mask, "_materialize"
    ):  # torch.nn.attention.bias, which is a rule rather than a tensor
        causal, mask = (True, None) if n_queries == n_keys else (False, mask._materialize(query.device))
    if causal and n_queries != n_keys:
        causal, mask = False, _from_the_first(n_queries, n_keys, query.device)
    scale = given.get("scale")
    return Call(
        query=axes.of(query),
        key=axes.of(key),
        value=axes.of(value),
        mask=None if mask is None else axes.of_mask(mask.detach(), n_queries, n_keys),
        causal=causal,
        window=None,
        applies_window=False,
        scale=float(query.shape[-1] ** -0.5 if scale is None else scale),
        output=axes.of(output.detach()).transpose(1, 2),
        has_dropout=(given.get("dropout_p") or 0) > 0,
        mask_object=mask,
    )


class _Axes:
    """Gives tensors the axes [batch, head or key head, ..], where their axes before the last two broadcast to ``leading``."""

    def __init__(self, leading: tuple[int, ...], n_batch: int, n_heads: int) -> None:
        self._leading, self._n_batch, self._n_heads = leading, n_batch, n_heads

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """[batch, head, position, item]; of shared heads as many as there are."""
        own = (1,) * (len(self._leading) + 2 - tensor.ndim) + tuple(tensor.shape[:-2])
        is_shared = bool(own) and len(own) > 1 and own[-1] != self._leading[-1] and self._n_heads == self._leading[-1]
        target = (*self._leading[:-1], own[-1]) if is_shared else self._leading
        n_heads = own[-1] if is_shared else self._n_heads
        return tensor.expand(*target, *tensor.shape[-2:]).reshape(self._n_batch, n_heads, *tensor.shape[-2:])

    def of_mask(self, mask: torch.Tensor, n_queries: int, n_keys: int) -> torch.Tensor:
        """[batch or 1, head or 1, query, key]."""
        mask = mask.expand(*mask.shape[:-2], n_queries, n_keys) if mask.ndim > 1 else mask.expand(n_queries, n_keys)
        own = tuple(mask.shape[:-2])
        if prod(own) == 1:
            return mask.reshape(1, 1, n_queries, n_keys)
        if len(self._leading) == 2:
            return mask.reshape(*(1,) * (2 - len(own)), *own, n_queries, n_keys)
        whole = mask.expand(*self._leading, n_queries, n_keys)
        return whole.reshape(self._n_batch, self._n_heads, n_queries, n_keys)


def _from_the_first(n_queries: int, n_keys: int, device: torch.device) -> torch.Tensor:
    """The causal mask of queries and keys that are aligned at the first of each."""
    import torch  # noqa: PLC0415 (loaded already: it made the tensors)

    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril()
