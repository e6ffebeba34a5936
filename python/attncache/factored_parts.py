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


def push_factored_part(part: _core.Store, whole: _core.Store, number: int, chosen: Chosen) -> None:
    """Append a part of a factored layer, whose weights are those of the whole layer to the last bit.

    Where a row of the part sees keys that are not in it, or their blocks are others, its sum is taken from the whole layer.

    Args:
        part: where to.
        whole, number: which layer.
        chosen: what of it.

    Raises:
        ValueError: the layer has no such part that can be stored as queries and keys.
    """
    layer = _read(whole, number)
    if not len(chosen.heads):
        raise ValueError(f"heads must choose at least one of a layer of queries and keys, got none of layer {number}")
    kept = as_slice(chosen.keys)
    if (layer.causal or layer.window) and (kept is None or kept.step != 1):
        raise ValueError(
            f"positions must be neighbours in ascending order, such as a slice without a step, for layer {number}, which "
            f"computes its weights by causality or a window; push its pattern, cache[{number}], to select others"
        )
    _push(part, layer, chosen)
    loses = _loses_visible_keys(layer, chosen)
    moves = len(chosen.keys) > 0 and (kept is None or kept.step != 1 or kept.start % _BLOCK != 0)
    sums = layer.sums
    if sums is not None:
        sums = _rows(sums, chosen.batch, chosen.heads, chosen.queries)
    elif loses or moves:
        sums = _computed_sums(layer, chosen)
    if loses or layer.has_given_sums:
        assert sums is not None
        part._give_row_sums(-1, *sums)
    elif sums is not None:
        part._set_row_sums(-1, *sums)


def _read(whole: _core.Store, number: int) -> _Layer:
    scale, softcap, causal, window, hidden, sinks, has_given_sums = whole._options(number)
    query, key = whole._memory(number)
    shown = np.ones((key.shape[0], key.shape[2]), np.bool_)
    for row, ranges in zip(shown, hidden, strict=False):  # no ranges at all if no key is hidden
        for begin, end in ranges:
            row[begin:end] = False
    sums = whole._row_sums(number)
    dtype = whole.dtypes[number]
    return _Layer(query, key, dtype, scale, softcap, causal, window, shown, sinks, has_given_sums, sums)


def _push(store: _core.Store, layer: _Layer, chosen: Chosen) -> None:
    """Append chosen queries and keys with the options of their layer."""
    n_heads, n_key_heads = layer.query.shape[1], layer.key.shape[1]
    key_heads = key_heads_for(list(chosen.heads), n_heads, n_key_heads)
    shown = taken(layer.shown, chosen.batch, chosen.keys)
    store._push_qk_over(
        taken(layer.query, chosen.batch, chosen.heads, chosen.queries),
        taken(layer.key, chosen.batch, key_heads, chosen.keys),
        layer.dtype,
        layer.scale,
        layer.softcap,
        layer.causal,
        layer.window,
        hidden_ranges(shown, shown.shape),
        [layer.sinks[head] for head in chosen.heads] if layer.sinks else [],
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
    alone = _core.Store()
    _push(alone, layer, Chosen(chosen.batch, chosen.heads, queries, keys))
    alone._lse(0, None)
    sums = alone._row_sums(0)
    assert sums is not None
    return _rows(sums, range(len(chosen.batch)), range(len(chosen.heads)), range(len(chosen.queries)))


def _rows(sums: _Sums, batch: Sequence[int], heads: Sequence[int], queries: Sequence[int]) -> _Sums:
    greatest, total = (np.ascontiguousarray(taken(each, batch, heads, queries)) for each in sums)
    return greatest, total
