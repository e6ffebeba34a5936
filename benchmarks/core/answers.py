"""Whether an answer about stored patterns is right: same bits for ours, a stated bound for the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.core.case import OURS

Array = npt.NDArray[Any]


def ranking(answer: Any) -> tuple[Array, Array]:
    """Positions and weights of a top-k answer: TopK, a pair of arrays, or a list of (position, weight)."""
    if isinstance(answer, list):
        return np.array([position for position, _ in answer]), np.array([weight for _, weight in answer], np.float32)
    if hasattr(answer, "positions"):
        return np.asarray(answer.positions), np.asarray(answer.weights)
    positions, weights = answer
    return np.asarray(positions), np.asarray(weights)


def relative_bound(heads: int) -> float:
    """How far two float32 means of ``heads`` non-negative weights may lie apart, relative to either.

    Each of heads - 1 additions and the division errs by at most 2**-24, on both sides.
    """
    return heads * 2.0**-23


def same(answer: Array, expected: Array) -> bool:
    """Same dtype, shape and bits."""
    if answer.dtype != expected.dtype or answer.shape != expected.shape:
        return False
    return np.ascontiguousarray(answer).tobytes() == np.ascontiguousarray(expected).tobytes()


def near(answer: Array, expected: Array, bound: float) -> bool:
    """Same shape, and every number within the relative bound."""
    return answer.shape == expected.shape and bool(
        np.allclose(answer.astype(np.float64), expected.astype(np.float64), rtol=bound, atol=0, equal_nan=True)
    )


@dataclass(frozen=True)
class Expected:
    """The reference's answer: ours must be it bit for bit, the others within ``relative_bound(heads)``.

    lines: for rankings (positions, weights) the lines that were ranked; others may order ties as they like.
    part: the positions on the answer's axis -2 that it covers; None for all.
    """

    answer: Any
    heads: int
    lines: Array | None = None
    part: Array | None = None

    def accepts(self, answer: Any, contender: str) -> bool:
        """Whether an answer is right."""
        is_exact = contender.startswith(OURS)
        if self.lines is not None:
            positions, weights = map(self._covered, ranking(answer))
            return self._accepts_ranking(positions, weights, self.lines, is_exact)
        found = self._covered(np.asarray(answer))
        return same(found, self.answer) if is_exact else near(found, self.answer, relative_bound(self.heads))

    def _covered(self, found: Array) -> Array:
        return found if self.part is None else found[..., self.part, :]

    def _accepts_ranking(self, positions: Array, weights: Array, lines: Array, is_exact: bool) -> bool:
        right_positions, right_weights = ranking(self.answer)
        if is_exact:
            return same(positions, right_positions) and same(weights, right_weights)
        bound = relative_bound(self.heads)
        return (
            positions.shape == right_positions.shape
            and bool(np.all(np.diff(np.sort(positions, axis=-1), axis=-1) > 0))
            and near(weights, right_weights, bound)
            and near(np.take_along_axis(lines, positions, axis=-1), weights, bound)
        )
