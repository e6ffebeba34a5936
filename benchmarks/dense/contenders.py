"""The helpers that contenders' expressions call: what a careful user would write in NumPy or torch.

Each was the fastest of the usual spellings where this was written; see README.md for those that lost.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from attncache import AttentionCache

Array = npt.NDArray[Any]

nothing = operator.is_  # a compiled function of two arguments with next to nothing to do: the emptiest Python call


def mean_of_heads(heads: Array, out: Array | None = None) -> Array:
    """The float32 mean over the first axis, head after head: at times half the time of ``mean``."""
    total: Array = np.empty(heads.shape[1:], np.float32) if out is None else out
    total[...] = heads[0]
    for head in heads[1:]:
        total += head
    total /= len(heads)
    return total


def heaviest(lines: Array, k: int) -> tuple[Array, Array]:
    """Positions and float32 weights of the k heaviest of the last axis, heaviest first; ties as they come."""
    found = np.argpartition(lines, -k, axis=-1)[..., -k:]
    weights = np.take_along_axis(lines, found, axis=-1).astype(np.float32)
    order = np.argsort(-weights, axis=-1)
    return np.take_along_axis(found, order, axis=-1), np.take_along_axis(weights, order, axis=-1)


def heaviest_nan_last(lines: Array, k: int) -> tuple[Array, Array]:
    """``heaviest`` with NaN after every number; NumPy's order puts it before them."""
    found = np.argpartition(-lines, k - 1, axis=-1)[..., :k]
    weights = np.take_along_axis(lines, found, axis=-1).astype(np.float32)
    order = np.argsort(-weights, axis=-1)
    return np.take_along_axis(found, order, axis=-1), np.take_along_axis(weights, order, axis=-1)


def heaviest_pairs(line: Array, k: int) -> list[tuple[int, float]]:
    """The k heaviest of one line as a list of (position, weight)."""
    found = np.argpartition(line, -k)[-k:]
    found = found[np.argsort(-line[found])]
    return list(zip(found.tolist(), line[found].tolist(), strict=True))


def torch_heaviest(lines: Any, k: int) -> tuple[Any, Any]:
    """Positions and float32 weights of the k heaviest of a tensor's last axis."""
    weights, positions = lines.topk(k)
    return positions, weights.float()


def torch_heaviest_pairs(line: Any, k: int) -> list[tuple[int, float]]:
    """The k heaviest of a tensor's one axis as a list of (position, weight)."""
    weights, positions = line.topk(k)
    return list(zip(positions.tolist(), weights.tolist(), strict=True))


def widened(source: Array, out: Array) -> Array:
    """The weights as float32, written into an array that is there."""
    np.copyto(out, source)
    return out


def means_of(patterns: Sequence[Array]) -> list[Array]:
    """The head mean of each layer: what a user of NumPy keeps who will ask often."""
    return [mean_of_heads(pattern[0]) for pattern in patterns]


def mean_both_ways(pattern: Array) -> tuple[Array, Array]:
    """The head mean by query, and by key: what the index of a layer holds."""
    mean = mean_of_heads(pattern[0])
    return mean, np.ascontiguousarray(mean.T)


def torch_mean_of_heads(heads: Any, out: Any = None) -> Any:
    """The float32 mean over the first axis; for 16-bit weights head after head, in a third of the time of ``mean``."""
    if heads.element_size() == 4:
        return importlib.import_module("torch").mean(heads, 0, out=out)
    total = heads[0].float() if out is None else out.copy_(heads[0])
    for head in heads[1:]:
        total += head
    return total.div_(len(heads))


def torch_mean_both_ways(pattern: Any) -> tuple[Any, Any]:
    """The head mean by query, and by key, as tensors."""
    mean = torch_mean_of_heads(pattern[0])
    return mean, mean.T.contiguous()


def fresh(patterns: Sequence[Array], index: Literal["off", "auto", "eager"]) -> AttentionCache:
    """A new cache that borrows these layers."""
    cache = AttentionCache(index=index)
    for pattern in patterns:
        cache.push(pattern, copy=False)
    return cache


def first_and_last(question: Callable[[int, int], Any], questions: Sequence[tuple[int, int]]) -> Array:
    """Ask all of the questions; the answers to the first and the last, so that both can be checked."""
    first = last = question(*questions[0])
    for layer, position in questions[1:]:
        last = question(layer, position)
    return np.stack([first, last])


def pushed(pattern: Array, dtype: str | None = None, copy: bool | None = None) -> Array:
    """A fresh cache without an index, one layer pushed, and that layer as it is stored."""
    cache = AttentionCache(dtype, index="off")
    cache.push(pattern, copy=copy)
    return cache[0]


def pushed_and_indexed(pattern: Array, dtype: str | None = None, copy: bool | None = None) -> Array:
    """A fresh cache, one layer pushed and indexed, and its head mean, which then is a view."""
    cache = AttentionCache(dtype, index="eager")
    cache.push(pattern, copy=copy)
    return cache.head_mean(0)


def listed(pattern: Any) -> Any:
    """What borrowing is without a cache: a fresh list with one layer appended, and that layer."""
    layers = []
    layers.append(pattern)
    return layers[0]
