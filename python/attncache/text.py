"""Lays out tokens, weights, sizes and tables as plain text; for the commands, errors and every repr."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attncache.tokens import AnswerTokens

WIDTH = 100
BAR = 20
LABEL_LIMITS = (12, 9)  # letters of a token: plenty, or few enough for five keys on a line
ROWS_SHOWN = 20  # of rows of the answer, after which the rest is "..."
CELLS_SHOWN = 10  # of each row
_ASCII = str.maketrans({"→": ">", "█": "#", "·": ".", "─": "-", "µ": "u", "…": "~"})


def visible(text: str) -> str:
    """The text with every invisible character but line breaks escaped.

    >>> print(visible("a\\x1b[31m"))
    a\\x1b[31m
    """
    if text.replace("\n", "").isprintable():
        return text
    return "".join(letter if letter == "\n" or letter.isprintable() else repr(letter)[1:-1] for letter in text)


def printable(text: str, encoding: str | None) -> str:
    """The text in what ``encoding`` can say, nothing of it invisible; each of our symbols becomes one ASCII letter, so
    columns stay straight.
    """
    text, encoding = visible(text), encoding or "ascii"
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "replace").decode(encoding)


def label(token: str, limit: int = 12) -> str:
    """A token as one word: no space around it, nothing invisible, at most ``limit`` characters."""
    word = token.strip()
    if not word or not word.isprintable():
        word = repr(token)
    return word if len(word) <= limit else word[: limit - 1] + "…"


def numbered(tokens: Sequence[str], width: int = WIDTH) -> list[str]:
    """The text to read, with the number of each token above its first letter."""
    lines: list[str] = []
    numbers = words = ""
    for number, token in enumerate(tokens):
        word = label(token, width)
        cell = max(len(word), len(str(number))) + 1
        if len(words) + cell > width + 1:
            lines += [numbers.rstrip(), words.rstrip(), ""]
            numbers = words = ""
        numbers += str(number).ljust(cell)
        words += word.ljust(cell)
    return [*lines, numbers.rstrip(), words.rstrip()]


def heading(title: str, call: str) -> list[str]:
    """A question, and beneath it the call that answers it."""
    return ["", f"── {title} ".ljust(WIDTH, "─"), f"   {call}", ""]


def bar(fraction: float, width: int = BAR) -> str:
    """A number from 0 to 1 as a bar; anything above zero shows, NaN does not."""
    filled = round(min(fraction, 1.0) * width) if fraction > 0 else 0
    return ("█" * max(filled, int(fraction > 0))).ljust(width, "·")


def flowed(first: str, cells: Sequence[str], separator: str = "  ", width: int = WIDTH) -> list[str]:
    """Cells behind a first column, on as many lines as they need."""
    lines = [first.rstrip() if not cells else first]
    for cell in cells:
        joint = "" if len(lines[-1]) == len(first) else separator
        if joint and len(lines[-1]) + len(joint) + len(cell) > width:
            lines.append(" " * len(first) + cell)
        else:
            lines[-1] += joint + cell
    return lines


def paragraph(text: str, indent: str = "") -> list[str]:
    """Prose, wrapped."""
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as they need to be, the first to the left, the others to the right."""
    grid = [list(header), *map(list, rows)]
    widths = [max(len(row[column]) for row in grid) for column in range(len(header))]
    lines = []
    for first, *others in grid:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append(("   " + "   ".join(cells)).rstrip())
    return lines


class WeighedKey(NamedTuple):
    """One entry of an answer: a position, its token if it has one, and its weight."""

    position: int
    token: str | None
    weight: float


def weight_cells(answers: Sequence[Sequence[WeighedKey]], digits: int = 2) -> list[list[str]]:
    """Answers as cells, the n-th of every answer equally wide; long words shrink if that makes each answer one line."""
    places = max((len(str(key.position)) for answer in answers for key in answer), default=0)
    cells: list[list[str]] = []
    for limit in LABEL_LIMITS:
        words = [["" if key.token is None else label(key.token, limit) for key in answer] for answer in answers]
        widths = column_widths(words)
        cells = [
            [
                f"{key.position:{max(places, 2)}} {word:<{wide}}{' ' * bool(wide)}{key.weight:{digits + 2}.{digits}f}"
                for key, word, wide in zip(answer, row, widths, strict=False)
            ]
            for answer, row in zip(answers, words, strict=True)
        ]
        if all(len(line) <= 1 for line in map(number_cells, cells)):
            break
    return cells


def column_widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """How wide the widest n-th word of all rows is, for every n."""
    longest = max(map(len, rows), default=0)
    return [max(len(row[column]) for row in rows if column < len(row)) for column in range(longest)]


def numbered_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells behind their number; a row too long goes on beneath."""
    return [line for number, cells in enumerate(rows) for line in number_cells(cells, number)]


def number_cells(cells: Sequence[str], number: int = 0) -> list[str]:
    """One row of cells behind its number."""
    return flowed(f"{number:5}  ", cells)


def readable_bytes(n: int) -> str:
    """A number of bytes in three digits and a unit, in powers of 1000.

    >>> readable_bytes(1_234_567)
    '1.23 MB'
    """
    if n < 1000:
        return f"{n} bytes"
    power = 1
    while n >= 999.5 * 1000**power and power < 5:
        power += 1
    return f"{n / 1000**power:.3g} {'kMGTP'[power - 1]}B"


def natural_order(name: str) -> tuple[list[Any], str]:
    """A key that orders digits as numbers; "run-2" and "run-02" are told apart by their letters."""
    parts = re.split("([0-9]+)", name)  # text and digits in turn, so that like is compared with like
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], name


def token_table(positions: npt.NDArray[np.int64], weights: npt.NDArray[np.float32], tokens: AnswerTokens) -> str:
    """One line per row of the answer: where it stands, and position, token and weight of its heaviest.

    Args:
        positions: int64 array of shape [.., k].
        weights: float32 array of the same shape.
        tokens: what the positions stand for.

    Returns:
        At most ROWS_SHOWN lines below a header; a row of more than CELLS_SHOWN, and a table of more lines, ends in "...".
    """
    header = f"TopK of shape {list(positions.shape)}: position, token, weight"
    *leading, k = positions.shape
    rows = list(islice(np.ndindex(*leading), ROWS_SHOWN))
    cells = _aligned([_cells(positions[row], weights[row], row, tokens) for row in rows])
    firsts = [f"{list(row)}  " if row else "  " for row in rows]
    width = max(map(len, firsts), default=0)
    lines = [
        line
        for first, row in zip(firsts, cells, strict=True)
        for line in flowed(first.ljust(width), [*row, "..."] if k > CELLS_SHOWN else row)
    ]
    is_cut = len(lines) > ROWS_SHOWN or int(np.prod(leading)) > len(rows)
    return "\n".join([header, *(line.rstrip() for line in lines[:ROWS_SHOWN]), *(["..."] if is_cut else [])])


def _cells(positions: Any, weights: Any, row: tuple[int, ...], tokens: AnswerTokens) -> list[list[str]]:
    """Position, token and weight of the heaviest in one row; "-" where there is no token."""
    cells = []
    for position, weight in zip(positions[:CELLS_SHOWN].tolist(), weights[:CELLS_SHOWN].tolist(), strict=True):
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
