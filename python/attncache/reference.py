"""The meaning of every query in plain NumPy: the oracle of the tests and the registry they enumerate.

Written for the eye, not for speed. Each function takes ``patterns``, a sequence with one array of shape
[batch, head, query, key] per layer (float16, bfloat16 or float32), and then exactly the arguments of the
method of the same name on :class:`attncache.AttentionCache`.

Registering a function here makes tests, benchmarks and documentation ask for it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Pattern: TypeAlias = npt.NDArray[Any]
Patterns: TypeAlias = Sequence[Pattern]
Weights: TypeAlias = npt.NDArray[np.float32]
Positions: TypeAlias = npt.NDArray[np.int64]
Family: TypeAlias = Literal["exact", "bounded"]
Kind: TypeAlias = Literal["dense", "factored"]


@dataclass(frozen=True)
class Query:
    """One query.

    Attributes:
        family: what its numbers promise.
        device: the kinds of layers on a device that answer it; all others refuse it by name.
    """

    name: str
    family: Family
    meaning: Callable[..., Any]
    device: Sequence[Kind]


QUERIES: dict[str, Query] = {}


def query(family: Family, *, device: Sequence[Kind] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the meaning of the query of its name."""

    def register(meaning: Callable[..., Any]) -> Callable[..., Any]:
        QUERIES[meaning.__name__] = Query(meaning.__name__, family, meaning, device)
        return meaning

    return register


def chosen(size: int, selector: Any) -> tuple[list[int], bool]:
    """The indices a selector picks out of ``size``, and whether it keeps the axis."""
    if selector is None:
        return list(range(size)), True
    if isinstance(selector, slice):
        return list(range(size))[selector], True
    if np.ndim(selector) == 0:
        return [range(size)[int(selector)]], False
    return [range(size)[int(index)] for index in selector], True


def mean_of_heads(heads: Pattern) -> Weights:
    """The mean over the first axis: widened to float32, added head by head, divided by the number of heads."""
    total = np.zeros(heads.shape[1:], np.float32)
    with np.errstate(all="ignore"):
        for head in heads:
            total = total + head.astype(np.float32)
        return total / np.float32(len(heads))


def heads_of(pattern: Pattern, batch: int, heads: Any) -> tuple[Weights, bool]:
    """The chosen heads of one batch item as float32 [head, query, key], and whether the head axis is kept."""
    if isinstance(heads, str):
        heads = ("mean", None)
    if isinstance(heads, tuple) and len(heads) == 2 and heads[0] == "mean":
        indices, _ = chosen(pattern.shape[1], heads[1])
        return mean_of_heads(pattern[batch][indices])[None], False
    indices, keeps = chosen(pattern.shape[1], heads)
    return pattern[batch][indices].astype(np.float32), keeps


def selected(patterns: Patterns, layers: Any, heads: Any, batch: Any) -> tuple[Weights, list[bool]]:
    """The selection as float32 [layer, batch, head, query, key], and which of the first three axes are kept."""
    layer_indices, keeps_layers = chosen(len(patterns), layers)
    shapes = {patterns[layer].shape for layer in layer_indices or range(len(patterns))}
    if len(shapes) != 1:
        raise ValueError(f"the selected layers must have one shape, got {sorted(shapes)}")
    (shape,) = shapes
    batch_indices, keeps_batch = chosen(shape[0], batch)
    _, keeps_heads = heads_of(np.zeros((1, shape[1], 0, 0)), 0, heads)
    blocks = [[heads_of(patterns[layer], item, heads)[0] for item in batch_indices] for layer in layer_indices]
    n_heads = 1 if not keeps_heads else len(chosen(shape[1], heads)[0])
    stacked = np.array(blocks, np.float32).reshape(len(layer_indices), len(batch_indices), n_heads, *shape[2:])
    return stacked, [keeps_layers, keeps_batch, keeps_heads]


def part(
    patterns: Patterns, *, layers: Any = None, heads: Any = None, batch: Any = None, positions: Any = None
) -> list[Pattern]:
    """The patterns of ``AttentionCache.part``: keys at these positions, and the queries that stand at them."""
    found = []
    for layer in chosen(len(patterns), layers)[0]:
        batch_size, n_heads, seq_q, seq_k = patterns[layer].shape
        queries, (keys, _) = list(range(seq_q)), chosen(seq_k, positions)
        if positions is not None:
            queries = [key - seq_k + seq_q for key in keys if 0 <= key - seq_k + seq_q < seq_q]
        taken = np.ix_(chosen(batch_size, batch)[0], chosen(n_heads, heads)[0], queries, keys)
        found.append(patterns[layer][taken])
    return found


def without_dropped_axes(array: npt.NDArray[Any], keeps: Sequence[bool]) -> npt.NDArray[Any]:
    """The array without the axes whose ``keeps`` is False; axes beyond ``keeps`` stay."""
    return array.squeeze(tuple(axis for axis, kept in enumerate(keeps) if not kept))


def heaviest(weights: Weights, k: int) -> Positions:
    """Positions of the k heaviest entries of the last axis: heaviest first, ties to the lower, NaN last."""
    if k < 0:
        raise ValueError(f"k must be at least 0, got {k}")
    by_weight = np.lexsort((-weights, np.isnan(weights)), axis=-1)  # stable: equal weights keep their order
    return by_weight[..., :k].astype(np.int64)


@dataclass(frozen=True)
class Factored:
    """The meaning of a factored layer in float64, and what float32 may be off.

    Attributes:
        pattern: float64 [batch, head, query, key], zero where a key is not visible.
        bound: the largest error of a weight, of the same shape; derived in cpp/include/attncache/factored.hpp.
        lse: float64 [batch, head, query]: log of the sum of e^score, sinks included; -inf of a row without visible keys.
        lse_bound: the largest error of these.
    """

    pattern: npt.NDArray[np.float64]
    bound: npt.NDArray[np.float64]
    lse: npt.NDArray[np.float64]
    lse_bound: npt.NDArray[np.float64]


def visible_keys(seq_q: int, seq_k: int, causal: bool, window: int | None) -> npt.NDArray[np.bool_]:
    """Which keys each query sees, [query, key]: the last query is aligned with the last key."""
    distance: npt.NDArray[np.int64] = (np.arange(seq_q)[:, None] + seq_k - seq_q) - np.arange(seq_k)
    reach = window or seq_k + seq_q
    return (distance >= 0) & (distance < reach) if causal else np.abs(distance) <= reach


def factored(
    query: Pattern,
    key: Pattern,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    key_mask: npt.NDArray[np.bool_] | None = None,
    lse: Weights | None = None,
    sinks: Weights | None = None,
) -> Factored:
    """What queries [batch, head, query, item] and keys [batch, key head, key, item] mean, as stored (float16 or wider)."""
    unit = 2.0**-24
    queries, keys = query.astype(np.float64), key.astype(np.float64)
    keys = keys.repeat(queries.shape[1] // keys.shape[1], axis=1)
    scale = np.float32(queries.shape[3] ** -0.5 if scale is None else scale).item()
    with np.errstate(all="ignore"):
        scores = scale * (queries @ keys.swapaxes(-1, -2))
        off = (queries.shape[3] + 2) * unit * abs(scale) * (np.abs(queries) @ np.abs(keys).swapaxes(-1, -2))
        if softcap is not None:
            scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
            off += 7 * unit * np.abs(scores)
        visible = np.broadcast_to(visible_keys(scores.shape[2], scores.shape[3], causal, window), scores.shape)
        if key_mask is not None:
            visible = visible & key_mask[:, None, None, :]
        scores = np.where(visible, scores, -np.inf)
        sink = np.full((1, scores.shape[1], 1, 1), -np.inf) if sinks is None else np.reshape(sinks, (1, -1, 1, 1))
        greatest = np.maximum(scores.max(axis=-1, keepdims=True, initial=-np.inf), sink)
        base = np.where(greatest == -np.inf, 0, greatest)
        total = np.exp(scores - base).sum(axis=-1, keepdims=True) + np.exp(sink - base)
        off = np.where(visible, off, 0).max(axis=-1, keepdims=True, initial=0)
        sums_off = off
        if lse is not None:  # given sums count as exact
            base = np.where(np.isinf(lse), 0, lse.astype(np.float64))[..., None]
            total, sums_off = np.where(np.isinf(lse), 0, 1)[..., None], np.zeros_like(off)
        powers = np.exp(np.minimum(scores - base, 88))  # only given sums can ask for more
        pattern = np.where(total == 0, 0, powers / np.where(total == 0, 1, total))
        steps = scores.shape[3] / 256 + 60
        distance = np.where(pattern > 0, np.abs(base - np.where(pattern > 0, scores, 0)), 0)
        bound = pattern * (np.expm1(off + sums_off) + (distance + steps) * unit) + 2.0**-126
        sums = np.log(total) + base
        lse_bound = sums_off + (steps + np.where(np.isfinite(sums), np.abs(sums), 0)) * unit
    return Factored(pattern, bound, sums[..., 0], lse_bound[..., 0])


@query("exact", device=["dense", "factored"])
def attention_from_position(patterns: Patterns, layer: int, position: int, batch: int = 0) -> Weights:
    """What one query attends to: float32 [seq_k], the mean over heads."""
    row: Weights = mean_of_heads(patterns[layer][batch])[position]
    return row


@query("exact", device=["dense"])
def attention_to_position(patterns: Patterns, layer: int, position: int, batch: int = 0) -> Weights:
    """Who attends to one key: float32 [seq_q], the mean over heads."""
    return mean_of_heads(patterns[layer][batch])[:, position]


@query("exact", device=["dense", "factored"])
def top_attended_positions(
    patterns: Patterns, layer: int, from_position: int, k: int, batch: int = 0
) -> list[tuple[int, float]]:
    """The k keys that one query attends to most on the mean over heads: [(position, weight)]."""
    row = attention_from_position(patterns, layer, from_position, batch)
    return [(int(position), float(row[position])) for position in heaviest(row, k)]


@query("exact", device=["dense", "factored"])
def head_mean(patterns: Patterns, layer: int, batch: int = 0) -> Weights:
    """The mean over heads of a whole layer: float32 [seq_q, seq_k]."""
    return mean_of_heads(patterns[layer][batch])


@query("exact", device=["dense", "factored"])
def rows(
    patterns: Patterns, layers: Any = None, positions: Any = None, *, heads: Any = "mean", batch: Any = 0
) -> Weights:
    """What the chosen queries attend to: float32 [layer, batch, head, position, key], dropped axes left out."""
    weights, keeps = selected(patterns, layers, heads, batch)
    indices, keeps_positions = chosen(weights.shape[3], positions)
    return without_dropped_axes(weights[..., indices, :], [*keeps, keeps_positions])


@query("exact", device=["dense"])
def columns(
    patterns: Patterns, layers: Any = None, positions: Any = None, *, heads: Any = "mean", batch: Any = 0
) -> Weights:
    """Who attends to the chosen keys: float32 [layer, batch, head, position, query], dropped axes left out."""
    weights, keeps = selected(patterns, layers, heads, batch)
    indices, keeps_positions = chosen(weights.shape[4], positions)
    return without_dropped_axes(weights[..., indices].swapaxes(-1, -2), [*keeps, keeps_positions])


@query("exact", device=["dense", "factored"])
def edges(
    patterns: Patterns, from_positions: Any, to_positions: Any, *, layers: Any = None, heads: Any = None, batch: Any = 0
) -> Weights:
    """The weights of chosen (query, key) pairs: float32 [layer, batch, head, from, to], dropped axes left out."""
    weights, keeps = selected(patterns, layers, heads, batch)
    from_indices, keeps_from = chosen(weights.shape[3], from_positions)
    to_indices, keeps_to = chosen(weights.shape[4], to_positions)
    return without_dropped_axes(weights[..., from_indices, :][..., to_indices], [*keeps, keeps_from, keeps_to])


@query("exact", device=["dense", "factored"])
def top_k(
    patterns: Patterns,
    k: int,
    layers: Any = None,
    positions: Any = None,
    *,
    heads: Any = "mean",
    batch: Any = 0,
    direction: Literal["from", "to"] = "from",
) -> tuple[Positions, Weights]:
    """The k heaviest keys of each chosen query ("from") or queries of each chosen key ("to"): [.., k] twice."""
    lines = {"from": rows, "to": columns}[direction](patterns, layers, positions, heads=heads, batch=batch)
    order = heaviest(lines, k)
    return order, np.take_along_axis(lines, order, axis=-1)
