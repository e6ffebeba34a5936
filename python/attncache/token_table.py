"""Writes an answer of ``top_k`` with its tokens as a small table; used by the repr of TopK alone."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from attncache.layout import flowed, label
from attncache.tokens import AnswerTokens

LINES = 20  # of rows of the answer, after which the rest is "..."
CELLS = 10  # of each row


def token_table(positions: npt.NDArray[np.int64], weights: npt.NDArray[np.float32], tokens: AnswerTokens) -> str:
    """One line per row of the answer: where it stands, and position, token and weight of its heaviest.

    Args:
        positions: int64 array of shape [.., k].
        weights: float32 array of the same shape.
        tokens: what the positions stand for.

    Returns:
        At most LINES lines below a header; a row of more than CELLS, and a table of more lines, ends in "...".
    """
    header = f"TopK of shape {list(positions.shape)}: position, token, weight"
    *leading, k = positions.shape
    rows = list(islice(np.ndindex(*leading), LINES))
    cells = _aligned([_cells(positions[row], weights[row], row, tokens) for row in rows])
    firsts = [f"{list(row)}  " if row else "  " for row in rows]
    width = max(map(len, firsts), default=0)
    lines = [
        line
        for first, row in zip(firsts, cells, strict=True)
        for line in flowed(first.ljust(width), [*row, "..."] if k > CELLS else row)
    ]
    is_cut = len(lines) > LINES or int(np.prod(leading)) > len(rows)
    return "\n".join([header, *(line.rstrip() for line in lines[:LINES]), *(["..."] if is_cut else [])])


def _cells(positions: Any, weights: Any, row: tuple[int, ...], tokens: AnswerTokens) -> list[list[str]]:
    """Position, token and weight of the heaviest in one row; "-" where there is no token."""
    cells = []
    for position, weight in zip(positions[:CELLS].tolist(), weights[:CELLS].tolist(), strict=True):
        token = tokens.token(row, position)
        cells.append([str(position), "-" if token is None else label(token), f"{weight:.3f}"])
    return cells


def _aligned(rows: list[list[list[str]]]) -> list[list[str]]:
    """The cells as text, the n-th of every row equally wide."""
    columns = list(zip(*rows, strict=True))
    widths = [[max(len(cell[part]) for cell in column) for part in range(3)] for column in columns]
    return [
        [
            f"{position:>{wide}} {token:<{broad}} {weight:>{long}}"
            for (position, token, weight), (wide, broad, long) in zip(row, widths, strict=True)
        ]
        for row in rows
    ]
