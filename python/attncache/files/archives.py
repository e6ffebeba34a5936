"""Reads attention patterns from the files that people keep them in, with NumPy alone.

Nothing is executed from a file: pickled objects are refused. Every error names the file, the rule and the value.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy.typing as npt

from attncache.files.named_arrays import NamedArray, checked_patterns, layers_among
from attncache.files.numpy_arrays import npy_arrays, npz_arrays


@dataclass(frozen=True)
class PatternFile:
    """What one file holds: its patterns in the order of the layers, and what it says about them.

    Attributes:
        patterns: one read-only array of shape [batch, head, query, key] per layer, so that ``push`` can borrow it.
        tokens: the text of each position, or None where the file does not say.
        metadata: whatever else the file says about itself; empty where it says nothing.
    """

    patterns: tuple[npt.NDArray[Any], ...]
    tokens: tuple[str, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def sample_path() -> Path:
    """The packaged sample: every layer and head of SmolLM2-135M on one short text, about 0.4 MB."""
    return Path(__file__).parents[1] / "data" / "smollm2_sample.npz"


def read_patterns(path: str | PathLike[str], names: str | None = None) -> PatternFile:
    """Read the patterns of a ``.npz`` or ``.npy`` file.

    A ``.npz`` file holds one array of shape [batch, head, query, key] per layer, named ``layers.N.pattern`` or otherwise
    alike but for one number from 0 on (as ``attentions.0`` or NumPy's ``arr_0``), and may hold ``tokens`` (1-D strings)
    and ``metadata`` (a JSON object as a string); with ``layers.N.pattern`` or ``names`` other arrays are passed over.
    A ``.npy`` file holds one array [layer, batch, head, query, key], or [batch, head, query, key] for one layer.

    Args:
        path: the file; its suffix says which kind it is.
        names: the names of the layers with {} for the number, where a ``.npz`` file has other arrays like them too.

    Returns:
        The patterns, float16, float32 or float64 as stored, with tokens and metadata if there are any.

    Raises:
        OSError: the file cannot be opened.
        ValueError: its contents break a rule above; the message names file, rule and value.
        MemoryError: its arrays do not fit.

    >>> sample = read_patterns(sample_path())
    >>> len(sample.patterns), sample.patterns[0].shape
    (30, (1, 9, 40, 40))
    """
    path = Path(path)
    readers = {".npz": npz_arrays, ".npy": npy_arrays}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: the file name must end in {' or '.join(readers)}, got {path.suffix!r}")
    arrays = reader(path)
    layers = layers_among(arrays, path, names) if reader is npz_arrays else checked_patterns(arrays, path)
    return PatternFile(
        patterns=tuple(layer.read() for layer in layers),
        tokens=tokens_among(arrays, path),
        metadata=metadata_among(arrays, path),
    )


def tokens_among(arrays: Sequence[NamedArray], path: Path) -> tuple[str, ...] | None:
    """The tokens, if the file has them."""
    tokens = _array("tokens", arrays)
    if tokens is None:
        return None
    if tokens.ndim != 1 or tokens.dtype.kind != "U":
        raise ValueError(f"{path}: tokens must be strings of shape [key], got {tokens.dtype} of shape {tokens.shape}")
    return tuple(str(token) for token in tokens)


def metadata_among(arrays: Sequence[NamedArray], path: Path) -> dict[str, Any]:
    """The metadata, if the file has them."""
    text = _array("metadata", arrays)
    if text is None:
        return {}
    if text.ndim != 0 or text.dtype.kind != "U":
        raise ValueError(f"{path}: metadata must be one string, got {text.dtype} of shape {text.shape}")
    try:
        metadata = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: metadata must be JSON, got: {error}") from error
    if not hasattr(metadata, "items"):
        raise ValueError(f"{path}: metadata must be a JSON object, got {type(metadata).__name__}")
    return dict(metadata)


def _array(name: str, arrays: Sequence[NamedArray]) -> npt.NDArray[Any] | None:
    """The items of the array of this name, if there is one."""
    return next((array.read() for array in arrays if array.name == name), None)
