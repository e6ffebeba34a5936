"""Makes the second table of docs/models.md of what the matrix found; __main__.py uses it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tests.matrix.judging import Row

NOT_INSTALLED = "not installed here"
LONGEST = 160  # characters of a reason in a cell
PAGE = Path(__file__).with_name("page.md")
COLUMNS = ("library", "model", "heard", "as queries and keys", "largest difference", "truth", "output", "verdict")


def merged(rows: Iterable[Row]) -> list[Row]:
    """The rows of several runs, each model once: the last that was run counts."""
    kept: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.verdict != NOT_INSTALLED or (row.library, row.name) not in kept:
            kept[row.library, row.name] = row
    return list(kept.values())


def section(rows: list[Row]) -> str:
    """The part of the page: how the table was made, and the table."""
    used: dict[str, list[str]] = {}  # libraries by the version of torch
    for row in rows:
        if row.torch and row.library != "torch":
            libraries = used.setdefault(row.torch, [])
            libraries += [row.library] * (row.library not in libraries)
    torches = "; ".join(f"torch {version} for {', '.join(libraries)}" for version, libraries in used.items())
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(_cells, rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return PAGE.read_text(encoding="utf-8").format(torches=torches, total=len(rows), table=table).rstrip("\n")


def _cells(row: Row) -> tuple[str, ...]:
    name = f"{row.library} {row.version}".strip()
    if not row.layers:
        return name, row.name, "", "", "", "", "", _words(row)
    heard = ", ".join(f"{count} {what}" for what, count in row.heard.items())
    by_hand = min(row.by_hand, row.layers)
    truth = (
        "at the seam" if not by_hand else "by hand" if by_hand == row.layers else f"by hand ({by_hand}), at the seam"
    )
    output = "same bits" if not row.changed else f"differs by {row.changed:.0e}"
    return (
        name,
        row.name,
        heard,
        "refused" if row.factored is None else str(row.factored),
        f"{row.worst:.0e}",
        truth,
        output,
        _words(row),
    )


def _words(row: Row) -> str:
    reason = re.sub(r"^\w+Error: ", "", row.reason).replace("|", "/")
    reason = reason if len(reason) <= LONGEST else f"{reason[:LONGEST]}…"
    return f"{row.verdict}: {reason}" if reason and row.verdict != "right" else row.verdict
