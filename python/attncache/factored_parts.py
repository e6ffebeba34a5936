"""Parts of factored layers that keep every weight: their queries and keys, and the sums of their rows; parts.py uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attncache import _core
from attncache.scoring import hidden_ranges, key_heads_for
from attncache.taking import Chosen, as_slice, taken

_BLOCK = 256  # keys whose exponentials the core sums together: other blocks would round a row's sum otherwise
_Sums: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


class _Layer(NamedTuple):
    """A factored layer that nobody changes."""

    query: npt.NDArray[Any]
    key: npt.NDArray[Any]
    dtype: str
    scale: float
    softcap: float
    causal: bool
    window: int
    shown: npt.NDArray[np.bool_]  # [batch, key]: False where the key mask hides a key
    sinks: list[float]
    has_given_sums: bool
    sums: _Sums | None

    @property
    def offset(self) -> int:
        """Query i stands at key i + offset."""
        offset: int = self.key.shape[2] - self.query.shape[2]
        return offset

    def visible(self, queries: Sequence[int]) -> range:
        """The keys that causality and the window show to any of these queries, neighbours in ascending order."""
        seq_k, window = self.key.shape[2], self.window
        first, last = queries[0] + self.offset, queries[-1] + self.offset
        end = last + 1 if self.causal else last + window + 1 if window else seq_k
        begin = first - window + (1 if self.causal else 0) if window else 0
        return range(min(max(begin, 0), seq_k), min(max(end, 0), seq_k))


def factored_part(whole: _core.Layer, number: int, chosen: Chosen) -> _core.Layer:
    """A part of a factored layer, whose weights are those of the whole layer to the last bit.

    Where a row of the part sees keys that are not in it, or their blocks are others, its sum is taken from the whole layer.

    Args:
        whole: the layer.
        number: how errors call it.
        chosen: what of it.

    Raises:
        ValueError: the layer has no such part that can be stored as queries and keys.
    """
    layer = _read(whole)
    if not len(chosen.heads):
        raise ValueError(f"heads must choose at least one of a layer of queries and keys, got none of layer {number}")
    kept = as_slice(chosen.keys)
    if (layer.causal or layer.window) and (kept is None or kept.step != 1):
        raise ValueError(
            f"positions must be neighbours in ascending order, such as a slice without a step, for layer {number}, which "
            f"computes its weights by causality or a window; push its pattern, cache[{number}], to select others"
        )
    part = _part(layer, chosen)
    loses = _loses_visible_keys(layer, chosen)
    moves = len(chosen.keys) > 0 and (kept is None or kept.step != 1 or kept.start % _BLOCK != 0)
    sums = layer.sums
    if sums is not None:
        sums = _rows(sums, chosen.batch, chosen.heads, chosen.queries)
    elif loses or moves:
        sums = _computed_sums(layer, chosen)
    if loses or layer.has_given_sums:
        assert sums is not None
        return part.with_row_sums(*sums)
    if sums is not None:
        part.adopt_row_sums(*sums)
    return part


def _read(whole: _core.Layer) -> _Layer:
    scale, softcap, causal, window, hidden, sinks = whole.scoring
    query, key = whole.memory
    shown = np.ones((key.shape[0], key.shape[2]), np.bool_)
    for row, ranges in zip(shown, hidden, strict=False):  # no ranges at all if no key is hidden
        for begin, end in ranges:
            row[begin:end] = False
    return _Layer(
        query, key, whole.dtype, scale, softcap, causal, window, shown, sinks, whole.has_given_lse, whole.row_sums
    )


def _part(layer: _Layer, chosen: Chosen) -> _core.Layer:
    """Chosen queries and keys with the options of their layer."""
    n_heads, n_key_heads = layer.query.shape[1], layer.key.shape[1]
    key_heads = key_heads_for(list(chosen.heads), n_heads, n_key_heads)
    shown = taken(layer.shown, chosen.batch, chosen.keys)
    sinks = [layer.sinks[head] for head in chosen.heads] if layer.sinks else []
    hidden = hidden_ranges(shown, shown.shape)
    return _core.Layer.factored_over(
        taken(layer.query, chosen.batch, chosen.heads, chosen.queries),
        taken(layer.key, chosen.batch, key_heads, chosen.keys),
        layer.dtype,
        (layer.scale, layer.softcap, layer.causal, layer.window, hidden, sinks),
    )


def _loses_visible_keys(layer: _Layer, chosen: Chosen) -> bool:
    """Whether a row of the part sees a key in the whole layer that is not in the part, or is in it more than once."""
    if not len(chosen.queries):
        return False
    visible = layer.visible(chosen.queries)
    seen, kept = slice(visible.start, visible.stop), as_slice(chosen.keys)
    is_once = np.zeros(layer.key.shape[2], np.bool_)
    if kept is None:
        is_once[:] = np.bincount(chosen.keys, minlength=len(is_once)) == 1
    else:
        is_once[kept] = True
    return bool((taken(layer.shown, chosen.batch)[:, seen] & ~is_once[seen]).any())


def _computed_sums(layer: _Layer, chosen: Chosen) -> _Sums:
    """The sums of the chosen rows over all keys of their layer, computed for as few others as its options allow."""
    seq_q, seq_k = layer.query.shape[2], layer.key.shape[2]
    queries: Sequence[int] = chosen.queries
    keys = range(seq_k)
    if layer.causal and len(queries):
        keys = range(queries[-1] + layer.offset + 1)
    elif layer.window and len(queries):
        queries = range(queries[0], seq_q)  # so that the last query stands at the last key
    part = _part(layer, Chosen(chosen.batch, chosen.heads, queries, keys))
    part.lse(None)
    sums = part.row_sums
    assert sums is not None
    return _rows(sums, range(len(chosen.batch)), range(len(chosen.heads)), range(len(chosen.queries)))


def _rows(sums: _Sums, batch: Sequence[int], heads: Sequence[int], queries: Sequence[int]) -> _Sums:
    greatest, total = (np.ascontiguousarray(taken(each, batch, heads, queries)) for each in sums)
    return greatest, total
