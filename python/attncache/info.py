"""Says what a file of patterns holds: what ``attncache info`` prints."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy.typing as npt

from attncache.files import PatternFile, read_patterns, sample_path
from attncache.layout import WIDTH, label, paragraph, table

SAMPLE = "sample"
TOKENS_SHOWN = 60


def report(name: str) -> list[str]:
    """The lines about one file, or about the packaged sample where ``name`` is ``"sample"``.

    Raises:
        OSError, ValueError: the file cannot be read; see ``attncache.files.read_patterns``.
    """
    path = sample_path() if name == SAMPLE else Path(name)
    file = read_patterns(path)
    title = f"{path.name} (the packaged sample)" if name == SAMPLE else str(path)
    return [
        f"{title}: {count(len(file.patterns), 'layer')}, {size(path.stat().st_size)} on disk",
        "",
        *layers(file),
        *tokens(file),
        *metadata(file),
    ]


def layers(file: PatternFile) -> list[str]:
    """Neighbouring layers of one shape and dtype on one line, and the total."""
    rows = []
    for (shape, dtype), group in groupby(enumerate(file.patterns), key=lambda item: (item[1].shape, item[1].dtype)):
        numbers, patterns = zip(*group, strict=True)
        name = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
        rows.append([name, *map(str, shape), dtype.name, size(patterns[0].nbytes), size(total(patterns))])
    rows.append(["all", "", "", "", "", "", "", size(total(file.patterns))])
    return table(["layers", "batch", "heads", "queries", "keys", "dtype", "per layer", "together"], rows)


def tokens(file: PatternFile) -> list[str]:
    """The tokens, as many as are pleasant to read."""
    if file.tokens is None:
        return ["", "   no tokens"]
    words = " ".join(label(token, WIDTH) for token in file.tokens[:TOKENS_SHOWN])
    more = " ..." if len(file.tokens) > TOKENS_SHOWN else ""
    return ["", f"   {count(len(file.tokens), 'token')}", *paragraph(words + more, "      ")]


def metadata(file: PatternFile) -> list[str]:
    """What the file says about itself, a paragraph per entry."""
    if not file.metadata:
        return ["", "   no metadata"]
    return ["", "   metadata", *(line for key, value in file.metadata.items() for line in entry(key, value))]


def entry(key: str, value: Any) -> list[str]:
    """One entry; a mapping is written out."""
    if isinstance(value, dict):
        value = ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, str) and value != value.strip():
        value = repr(value)
    return paragraph(f"{key}: {value}", "      ")


def total(patterns: Iterable[npt.NDArray[Any]]) -> int:
    """The bytes of all these patterns."""
    return sum(pattern.nbytes for pattern in patterns)


def size(n_bytes: int) -> str:
    """Bytes, exactly."""
    return f"{n_bytes:,} bytes"


def count(n: int, noun: str) -> str:
    """A number and its noun."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
