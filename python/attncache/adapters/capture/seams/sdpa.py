"""Reads a call of scaled_dot_product_attention, whose definition is PyTorch's; for functions.py."""

from __future__ import annotations

from itertools import zip_longest
from math import prod
from typing import TYPE_CHECKING, Any

from attncache.adapters.capture.calls import Call
from attncache.adapters.capture.heads import batch_and_heads

if TYPE_CHECKING:
    import torch

_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def leading_axes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    """The sizes of the axes of its scores before [query, key]: those of the queries, with which those of the keys broadcast."""
    given = dict(zip(_NAMES, args, strict=False)) | kwargs
    if given["query"].is_nested:
        return ()
    of_query, of_key = (tuple(given[name].shape[:-2]) for name in ("query", "key"))
    shared = len(of_key) > 1 and len(of_query) > 1 and 1 not in (of_query[-1], of_key[-1])  # heads in groups
    of_key = (*of_key[:-1], of_query[-1]) if shared else of_key
    pairs = zip_longest(reversed(of_query), reversed(of_key), fillvalue=1)
    return tuple(one if other == 1 else other for one, other in pairs)[::-1]


def read_sdpa(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, n_heads: int | None) -> Call:
    """The call, whose axes before query and key become batch and heads; key heads that are shared stay shared.

    Raises:
        ValueError: its tensors are nested, or its values have other axes than its scores; or n_heads does not divide its axis.
    """
    given = dict(zip(_NAMES, args, strict=False)) | kwargs
    query, key, value = (given[name].detach() for name in _NAMES[:3])
    if query.is_nested or key.is_nested:
        raise ValueError("its queries and keys are nested tensors, of which no text has the length of the others")
    leading = leading_axes(args, kwargs)
    if tuple(getattr(output, "shape", ()))[:-1] != (*leading, query.shape[-2]):
        raise ValueError(
            f"its values of shape {list(value.shape)} gave an output other than {[*leading, query.shape[-2]]} and an item, the "
            "axes of its scores and its queries"
        )
    axes = _Axes(leading, *batch_and_heads(leading, n_heads))
    mask, causal = given.get("attn_mask"), bool(given.get("is_causal"))
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    if mask is not None and hasattr(mask, "_materialize"):  # a rule of torch.nn.attention.bias
        causal, mask = (True, None) if n_queries == n_keys else (False, mask._materialize(query.device))
    if causal and n_queries != n_keys:
        causal, mask = False, _from_the_first(n_queries, n_keys, query.device)
    scale = given.get("scale")
    return Call(
        query=axes.of(query),
        key=axes.of_keys(key),
        value=axes.of_keys(value),
        mask=None if mask is None else axes.of_mask(mask.detach(), n_queries, n_keys),
        causal=causal,
        window=None,
        applies_window=False,
        scale=float(max(query.shape[-1], 1) ** -0.5 if scale is None else scale),
        output=axes.of(output.detach()).transpose(1, 2),
        has_dropout=(given.get("dropout_p") or 0) > 0,
        mask_object=mask,
    )


class _Axes:
    """Gives tensors the axes [batch, head or key head, ..], where their axes before the last two broadcast to ``leading``."""

    def __init__(self, leading: tuple[int, ...], n_batch: int, n_heads: int) -> None:
        self._leading, self._n_batch, self._n_heads = leading, n_batch, n_heads

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """[batch, head, position, item]."""
        return self._as(tensor, self._leading, self._n_heads)

    def of_keys(self, tensor: torch.Tensor) -> torch.Tensor:
        """[batch, key head, position, item]: as many key heads as there are."""
        if tensor.ndim < 4 or self._n_heads != self._leading[-1]:
            return self.of(tensor)
        return self._as(tensor, (*self._leading[:-1], tensor.shape[-3]), tensor.shape[-3])

    def _as(self, tensor: torch.Tensor, leading: tuple[int, ...], n_heads: int) -> torch.Tensor:
        return tensor.expand(*leading, *tensor.shape[-2:]).reshape(self._n_batch, n_heads, *tensor.shape[-2:])

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
