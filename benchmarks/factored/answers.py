"""Whether an answer of a factored layer is right: within its bound of float64 arithmetic on the same queries and keys.

Ours must keep the bound that cpp/include/attncache/factored.hpp states and derives. Others get the one that holds for
float32 sums in any order, with scores scaled before or after: twice the error of a score, n instead of n / 256 summands.
On float16 layers their exponentials may be as coarse as float16, which torch's attention forward makes use of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.core.answers import ranking
from benchmarks.core.case import OURS
from benchmarks.factored.contenders import Factors, hidden

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

ROUNDING, HALF_ROUNDING = 2.0**-24, 2.0**-11  # of float32 and float16, relative
SMALLEST = 2.0**-126


class ExactRows(NamedTuple):
    """Rows in float64 and how far float32 may lie from them; the second of each pair of bounds is for others."""

    weights: Doubles  # [head, position, key]
    bounds: tuple[Doubles, Doubles]
    lse: Doubles  # [head, position]
    lse_bounds: tuple[Doubles, Doubles]


def exact_rows(factors: Factors, positions: Array) -> ExactRows:
    """The weights and normalisers of some queries, in float64 from the stored items."""
    shape = (len(factors.query), len(positions), factors.key.shape[1])
    weights, distance = np.empty(shape), np.empty(shape)
    spread, lse = np.empty((*shape[:2], 1)), np.empty((*shape[:2], 1))
    unseen = hidden(factors, positions, np.arange(shape[2]))
    scale = float(np.float32(factors.scale))
    for heads, queries, keys in factors.by_key_head():
        wide_queries, wide_keys = queries[:, positions].astype(np.float64), keys.astype(np.float64)
        flat, grouped = wide_queries.reshape(-1, keys.shape[1]), (*wide_queries.shape[:2], len(keys))
        scores = scale * (flat @ wide_keys.T).reshape(grouped)
        magnitudes = abs(scale) * (np.abs(flat) @ np.abs(wide_keys, out=wide_keys).T).reshape(grouped)
        scores[:, unseen], magnitudes[:, unseen] = -np.inf, 0
        greatest = scores.max(axis=-1, keepdims=True)
        distance[heads] = np.where(np.isfinite(scores), greatest - scores, 0)
        exponentials = np.exp(scores - greatest)
        sums = exponentials.sum(axis=-1, keepdims=True)
        weights[heads], lse[heads] = exponentials / sums, greatest + np.log(sums)
        spread[heads] = (keys.shape[1] + 2) * ROUNDING * magnitudes.max(axis=-1, keepdims=True)

    def bound(times: float, summands: float, rounded: float) -> tuple[Doubles, Doubles]:
        sums = (summands + 60) * ROUNDING + rounded
        of_lse = times * spread + sums + ROUNDING * np.abs(lse)
        return weights * (np.expm1(2 * times * spread) + times * distance * ROUNDING + sums) + SMALLEST, of_lse[..., 0]

    ours = bound(1, shape[2] / 256, 0)
    others = bound(2, shape[2], HALF_ROUNDING if factors.query.dtype == np.float16 else 0)
    return ExactRows(weights, (ours[0], others[0]), lse[..., 0], (ours[1], others[1]))


@dataclass(frozen=True)
class Bounded:
    """Right numbers, the bounds of ours and of others, and which part of an answer they are about.

    part: the positions on the answer's axis ``axis`` that the numbers cover; None for all.
    is_ranking: the answer names positions of the last axis of ``values`` and their weights, heaviest first.
    """

    values: Doubles
    bounds: tuple[Doubles, Doubles]
    part: Array | None = None
    axis: int = -2
    is_ranking: bool = False

    def cut(self, how: Callable[[Doubles], Doubles]) -> Bounded:
        """The same numbers, cut or turned."""
        return replace(self, values=how(self.values), bounds=(how(self.bounds[0]), how(self.bounds[1])))

    def accepts(self, answer: Any, contender: str) -> bool:
        """Whether an answer is right."""
        bounds = self.bounds[0 if contender.startswith(OURS) else 1]
        if self.is_ranking:
            return self._accepts_ranking(*ranking(answer), bounds)
        found = np.asarray(answer)
        if self.part is not None:
            found = np.take(found, self.part, axis=self.axis)
        return found.shape == self.values.shape and bool(np.all(np.abs(found - self.values) <= bounds))

    def _accepts_ranking(self, positions: Array, weights: Array, bounds: Doubles) -> bool:
        """Positions that differ, weights that are theirs, and none heavier left out (beyond the bound)."""
        if positions.shape[:-1] != self.values.shape[:-1] or positions.shape != weights.shape:
            return False
        theirs = np.take_along_axis(self.values, positions, axis=-1)
        heaviest = -np.sort(-self.values, axis=-1)[..., : positions.shape[-1]]
        within = np.abs(weights - theirs) <= np.take_along_axis(bounds, positions, axis=-1)
        as_heavy = np.abs(weights - heaviest) <= bounds.max(axis=-1, keepdims=True)
        return bool(np.all(np.diff(np.sort(positions, axis=-1), axis=-1) > 0) and np.all(within) and np.all(as_heavy))


def of_heads(exact: ExactRows) -> Bounded:
    """The weights of each head."""
    return Bounded(exact.weights, exact.bounds)


def of_mean(exact: ExactRows) -> Bounded:
    """The mean over heads: the mean of the bounds, and a float32 sum of so many."""
    mean = exact.weights.mean(axis=0)
    added = len(exact.weights) * ROUNDING * mean
    return Bounded(mean, (exact.bounds[0].mean(axis=0) + added, exact.bounds[1].mean(axis=0) + added))


def rounded_to(dtype: str, bounded: Bounded) -> Bounded:
    """The same for an answer that is rounded once more to float16, whose smallest step is 2**-24."""
    if dtype == "float32":
        return bounded
    added = HALF_ROUNDING * bounded.values + 2.0**-25
    ours, others = (bound * (1 + 2.0**-10) + added for bound in bounded.bounds)
    return replace(bounded, bounds=(ours, others))


@dataclass(frozen=True)
class SameItems:
    """Queries and keys taken over: a cache that answers rows of them, or a pair of arrays that hold them."""

    factors: Factors
    row: Bounded

    def accepts(self, answer: Any, contender: str) -> bool:
        """Whether the last row is right, or the arrays are the same."""
        if contender == OURS:
            return self.row.accepts(answer.rows(0, -1, heads=None), OURS)
        items = (self.factors.query, self.factors.key)
        return all(np.array_equal(np.asarray(found)[0], right) for found, right in zip(answer, items, strict=True))


@dataclass(frozen=True)
class Longer:
    """Positions appended: the last row of a cache that is now so long, or arrays one position longer."""

    factors: Factors

    def accepts(self, answer: Any, contender: str) -> bool:
        """Whether the last row sees the last key as often as it was appended, or the arrays end with it."""
        items = [self.factors.query, self.factors.key]
        if contender != OURS:
            return all(
                np.array_equal(np.asarray(found)[0], np.concatenate([right, right[:, -1:]], axis=1))
                for found, right in zip(answer, items, strict=True)
            )
        times = answer.shapes[0][3] - items[1].shape[1]
        query, key = (np.concatenate([right, *[right[:, -1:]] * times], axis=1) for right in items)
        grown = self.factors._replace(query=query, key=key)
        row = of_heads(exact_rows(grown, np.array([query.shape[1] - 1])))
        return row.accepts(answer.rows(0, [-1], heads=None), OURS)
