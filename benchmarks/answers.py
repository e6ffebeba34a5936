"""Whether an answer is right: same bits for ours, a stated bound for the others."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class WrongAnswerError(Exception):
    """A contender answered something else than the reference, and will not be timed."""


class Expected(NamedTuple):
    """The reference's answer, and for rankings (positions, weights) the lines that were ranked."""

    answer: Any
    lines: Array | None = None


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


def is_right(answer: Any, expected: Expected, *, exact: bool, heads: int, part: Array | None = None) -> bool:
    """Whether an answer is the expected one: bit for bit if ``exact``, else within ``relative_bound(heads)``.

    part: the positions on the answer's axis -2 that ``expected`` covers; None for all.
    Rankings that need not be exact may order ties as they like.
    """
    bound = relative_bound(heads)
    if expected.lines is None:
        found = np.asarray(answer)
        found = found if part is None else found[..., part, :]
        return same(found, expected.answer) if exact else near(found, expected.answer, bound)
    positions, weights = ranking(answer)
    if part is not None:
        positions, weights = positions[..., part, :], weights[..., part, :]
    right_positions, right_weights = expected.answer
    if exact:
        return same(positions, right_positions) and same(weights, right_weights)
    return (
        positions.shape == right_positions.shape
        and bool(np.all(np.diff(np.sort(positions, axis=-1), axis=-1) > 0))
        and near(weights, right_weights, bound)
        and near(np.take_along_axis(expected.lines, positions, axis=-1), weights, bound)
    )
