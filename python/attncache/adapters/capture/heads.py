"""Splits the axes before query and key into batch and heads, by the number of heads that a module says it has."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_NAMES = (
    "num_heads", "n_heads", "num_attention_heads", "n_head", "nhead", "heads", "num_attn_heads", "n_attention_heads",
    "nheads", "attention_heads", "number_of_heads",
)  # fmt: skip


def heads_of(module: torch.nn.Module) -> int | None:
    """How many heads a module says it has, or the module itself holds in its settings; None if it does not say."""
    told = (getattr(module, name, None) for name in _NAMES)
    return next((number for number in told if type(number) is int and number > 0), None)


def batch_and_heads(leading: tuple[int, ...], n_heads: int | None) -> tuple[int, int]:
    """How many batch items and heads the axes before query and key hold.

    Args:
        leading: the sizes of these axes: [batch, head]; [batch * head], or [batch] of one head; more axes end with the heads.
        n_heads: how many heads there are, if that is known.

    Raises:
        ValueError: one axis does not hold a whole number of batch items.

    >>> batch_and_heads((2, 4), None), batch_and_heads((8,), 4), batch_and_heads((8,), None), batch_and_heads((), None)
    ((2, 4), (2, 4), (8, 1), (1, 1))
    >>> batch_and_heads((2, 3, 4), None), batch_and_heads((2, 2, 4), 8)  # windows; heads in groups
    ((6, 4), (2, 8))
    """
    if not leading:
        return 1, 1
    if len(leading) == 2:
        return leading[0], leading[1]
    total = prod(leading)
    if len(leading) == 1:
        heads = n_heads or 1
        if total % heads:
            raise ValueError(f"n_heads must divide the first of three axes, {total}, got {n_heads}")
        return total // heads, heads
    heads = n_heads if n_heads is not None and n_heads in _products_from_the_end(leading) else leading[-1]
    return total // heads, heads


def _products_from_the_end(sizes: tuple[int, ...]) -> Iterator[int]:
    return (prod(sizes[first:]) for first in range(1, len(sizes)))
