"""Lays out tokens, weights and tables as plain text; for ``attncache demo``, ``attncache info`` and the repr of TopK."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 100
BAR = 20
_ASCII = str.maketrans({"→": ">", "█": "#", "·": ".", "─": "-", "µ": "u", "…": "~"})


def printable(text: str, encoding: str | None) -> str:
    """The text in what ``encoding`` can say: each of our symbols becomes one ASCII letter, so columns stay straight."""
    encoding = encoding or "ascii"
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
    """A number from 0 to 1 as a bar; anything above zero shows."""
    filled = round(min(max(fraction, 0.0), 1.0) * width)
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
