"""Compares the layers of a captured cache with what the oracle heard; judging.py asks it after every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tests.sweep.oracle import Heard

ROUNDING = 2e-6  # of a weight, for each unit of its scores' size: float32 scores, added in another order


class Source(NamedTuple):
    """Where a layer of a cache comes from: a module's path, and which of its calls in one forward."""

    module: str
    call: int


@dataclass(frozen=True)
class Comparison:
    """What comparing one cache gave."""

    n_layers: int
    worst: float  # the largest difference of a weight from the truth
    wrong: tuple[str, ...]  # what differs by more than rounding, in words
    absent: tuple[str, ...]  # modules of which attention was heard that is in no layer


class _Truth(NamedTuple):
    """One layer as the oracle heard it, float64 [rows of heads, query, key], and the rows that see a key."""

    weights: npt.NDArray[np.float64]
    sees: npt.NDArray[np.bool_]
    largest: float


def compared(cache: Any, sources: Sequence[Source], heard: Sequence[Heard]) -> Comparison:
    """Compare every layer of a cache with the calls of its module, heard in the same run, in order."""
    wrong, used, worst = [], set(), 0.0
    for number, source in enumerate(sources):
        calls = calls_of(source, heard)
        used |= {id(call) for call in calls}
        name = f"layer {number} ({source.module})"
        if not calls:
            wrong.append(f"{name} holds what was never computed")
            continue
        layer = cache.edges(None, None, layers=number, heads=None, batch=slice(None))
        truth = merged([call for call in calls if call.weights.shape[-1]], layer.shape[0] * layer.shape[1])
        difference, word = _difference(layer, truth)
        worst = max(worst, difference)
        if word or not difference <= ROUNDING * (8 + truth.largest):
            wrong.append(f"{name}: {word or f'differs by {difference:.1e}'}")
    absent = dict.fromkeys(call.module for call in heard if id(call) not in used)
    return Comparison(len(sources), worst, tuple(wrong), tuple(absent))


def calls_of(source: Source, heard: Sequence[Heard]) -> list[Heard]:
    """The calls that made a layer: at every step of a run, the module's call of that number."""
    inside = f"{source.module}." if source.module else ""
    calls = [call for call in heard if call.module == source.module or call.module.startswith(inside)]
    if not calls:  # the layer may be named by a part of the module that multiplies
        calls = [call for call in heard if call.module and source.module.startswith(f"{call.module}.")]
    steps: dict[int, list[Heard]] = {}
    for call in calls:
        steps.setdefault(call.step, []).append(call)
    return [step[source.call] for step in steps.values() if source.call < len(step)]


def merged(calls: Sequence[Heard], n_heads: int) -> _Truth:
    """One layer of a module's calls in several steps: rows below each other, keys at their true position."""
    rows = [_by_head(call, n_heads) for call in calls]
    total = sum(weights.shape[1] for weights, _ in rows)
    keys = {call.weights.shape[-1] for call in calls}
    crosses = len(calls) > 1 and len(keys) == 1 and keys != {total}
    n_keys = max(keys) if crosses or len(calls) == 1 else max(total, calls[0].weights.shape[-1])
    pieces, n_seen = [], 0
    for weights, _ in rows:
        n_seen += weights.shape[1]
        piece = np.zeros((*weights.shape[:2], n_keys))
        first = 0 if crosses or len(calls) == 1 else max(0, n_seen - weights.shape[2])
        width = min(weights.shape[2], n_keys - first)
        piece[:, :, first : first + width] = weights[:, :, :width]
        pieces.append(piece)
    sees = np.concatenate([sees for _, sees in rows], 1)
    return _Truth(np.concatenate(pieces, 1), sees, max(call.largest for call in calls))


def _by_head(call: Heard, n_heads: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """A call's weights [heads times batch, query, key], and which of its rows see a key.

    For a single query, transformers gives SDPA the heads that share keys as if they were queries: they are unpacked.
    """
    weights, sees = call.weights.numpy(), call.sees.numpy()
    *_, n_queries, n_keys = weights.shape
    if sees.size == n_heads:
        n_queries = 1
    return weights.reshape(-1, n_queries, n_keys), sees.reshape(-1, n_queries)


def _difference(layer: npt.NDArray[Any], truth: _Truth) -> tuple[float, str]:
    """The largest difference, and what is wrong beyond numbers."""
    rows = layer.reshape(-1, *layer.shape[-2:]).astype(np.float64)
    true = truth.weights
    n_forgotten = max(rows.shape[2] - true.shape[2], 0)
    if not rows[..., :n_forgotten].any():  # keys that a window forgot before the run stand in front, without weight
        rows = rows[..., n_forgotten:]
    n_keys = rows.shape[2]
    if rows.shape[:2] != true.shape[:2] or n_keys > true.shape[2]:
        return 0.0, f"has shape {list(layer.shape)}, where {list(true.shape)} was computed"
    if true[..., n_keys:][truth.sees].any():
        return 0.0, f"has {n_keys} keys, where later ones of {true.shape[2]} have weight"
    difference = np.abs(rows - true[..., :n_keys])
    blind = np.fmin(difference, np.abs(rows))  # a row that sees no key may be zeros; torch has no number for some
    difference = np.where(truth.sees[..., None], difference, blind)
    if not np.isfinite(rows[truth.sees]).all():
        return 0.0, "has weights that are no numbers"
    return float(difference.max(initial=0)), ""
