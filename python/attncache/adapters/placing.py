"""Where the rows and keys of a generation's steps are in the text; used by adapters.generation.

A *piece* is what one layer gave in one step, [batch, head, new queries, keys]; its *end* is how many keys the text has
then. bfloat16 is seen as uint16, whose 0 is 0.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# How far weights may be apart that a model computed twice, from texts of different lengths: relatively and absolutely.
_SAME = {"float32": (1e-3, 1e-5), "float64": (1e-3, 1e-5), "float16": (2**-5, 2**-10), "bfloat16": (2**-3, 2**-8)}


def sizes_of(pieces: Sequence[Any]) -> list[tuple[int, int]]:
    """How many queries and keys each piece has; (0, 0) where there is none."""
    shapes = [(0, 0) if piece is None else tuple(np.shape(piece)) for piece in pieces]
    return [(int(shape[-2]), int(shape[-1])) if len(shape) > 1 else (0, 0) for shape in shapes]


def grows(sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether every piece has the keys of the one before and one more for each of its own queries."""
    return sizes[0][1] >= sizes[0][0] and all(after[1] == before[1] + after[0] for before, after in pairwise(sizes))


def stacked(pieces: Sequence[Array]) -> Array:
    """All rows beneath each other, with zeros to the right."""
    return _beneath(pieces, [0] * len(pieces), pieces[-1].shape[3])


def placed(pieces: Sequence[Array], ends: Sequence[int]) -> Array | None:
    """All rows beneath each other, each with its keys where they are in the text.

    Args:
        pieces: of one layer, in the order of the steps.
        ends: how many keys the text has after each step.

    Returns:
        The merged pattern with zeros for keys that were forgotten; None if a piece has more keys than the text and not
        zeros beyond it, or if they have fewer and not as a window does that keeps the last keys.
    """
    reach = {piece.shape[3] - piece.shape[2] for piece, end in zip(pieces, ends, strict=True) if piece.shape[3] < end}
    starts_late = pieces[0].shape[2] < ends[0]
    if len(reach) > 1 or (pieces[0].shape[3] < ends[0] and not starts_late):
        return None
    kept = min(reach, default=ends[-1])  # keys before the new ones that a window keeps
    cut = []
    for number, (piece, end) in enumerate(zip(pieces, ends, strict=True)):
        _, _, n_rows, n_keys = piece.shape
        if n_keys > end and piece[..., end:].any():
            return None
        if n_keys >= end > kept + n_rows and number > 0:
            return None
        cut.append(piece[..., :end])
    return _beneath(cut, [end - piece.shape[3] for piece, end in zip(cut, ends, strict=True)], ends[-1])


def _beneath(pieces: Sequence[Array], first_keys: Sequence[int], seq_k: int) -> Array:
    batch_size, n_heads = pieces[0].shape[:2]
    merged = np.zeros((batch_size, n_heads, sum(piece.shape[2] for piece in pieces), seq_k), pieces[0].dtype)
    row = 0
    for piece, first in zip(pieces, first_keys, strict=True):
        _, _, n_rows, n_keys = piece.shape
        merged[:, :, row : row + n_rows, first : first + n_keys] = piece
        row += n_rows
    return merged


def is_causal(pattern: Array) -> bool:
    """Whether query i attends to none of the keys after i."""
    return not any(pattern[:, :, row, row + 1 :].any() for row in range(pattern.shape[2]))


def are_nested(patterns: Sequence[Array], dtype: str) -> bool:
    """Whether each square pattern is the upper left of the last, and longer than the one before it."""
    lengths = [pattern.shape[2] for pattern in patterns]
    if any(after <= before for before, after in pairwise(lengths)):
        return False
    relatively, absolutely = _SAME[dtype]
    whole = patterns[-1]
    return all(
        np.allclose(
            _floats(pattern, dtype), _floats(whole[:, :, :n, :n], dtype), relatively, absolutely, equal_nan=True
        )
        for pattern, n in zip(patterns, lengths, strict=True)
    )


def _floats(weights: Array, dtype: str) -> Array:
    """bfloat16, which comes as uint16, as float32; other dtypes as they are."""
    return (weights.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else weights
