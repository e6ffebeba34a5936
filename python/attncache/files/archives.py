"""Reads attention patterns from the files that people keep them in, with NumPy alone.

Nothing is executed from a file: pickled objects are refused. Every error names the file, the rule and the value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

_LAYER_NAME = re.compile(r"layers\.(0|[1-9][0-9]*)\.pattern")
_DTYPES = ("float16", "float32", "float64")


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


def read_patterns(path: str | PathLike[str]) -> PatternFile:
    """Read the patterns of a ``.npz`` or ``.npy`` file.

    A ``.npz`` file holds one array ``layers.N.pattern`` of shape [batch, head, query, key] per layer, and may hold
    ``tokens`` (1-D strings) and ``metadata`` (a JSON object as a string); other arrays are passed over.
    A ``.npy`` file holds one array [layer, batch, head, query, key], or [batch, head, query, key] for one layer.

    Args:
        path: the file; its suffix says which kind it is.

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
    readers = {".npz": _read_npz, ".npy": _read_npy}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: the file name must end in {' or '.join(readers)}, got {path.suffix!r}")
    with path.open("rb") as stream:  # NumPy, given the name, leaves a damaged archive open
        return reader(path, stream)


def _read_npz(path: Path, stream: BinaryIO) -> PatternFile:
    """One array per layer, found by name."""
    archive = _load(path, stream)
    if not hasattr(archive, "files"):
        raise ValueError(f"{path}: a .npz file must hold named arrays, got one array of shape {archive.shape}")
    with archive:
        wanted = [name for name in archive.files if _LAYER_NAME.fullmatch(name) or name in ("tokens", "metadata")]
        arrays = {name: _member(path, archive, name) for name in wanted}
        layers = _layer_names(path, arrays, archive.files)
    return PatternFile(
        patterns=tuple(_pattern(path, name, arrays[name]) for name in layers),
        tokens=_tokens(path, arrays),
        metadata=_metadata(path, arrays),
    )


def _read_npy(path: Path, stream: BinaryIO) -> PatternFile:
    """One array for all layers, or for the only one."""
    array = _load(path, stream)
    if hasattr(array, "files"):
        array.close()
        raise ValueError(f"{path}: a .npy file must hold one array, got an archive of named arrays")
    if array.ndim not in (4, 5):
        axes = "[layer, batch, head, query, key] or [batch, head, query, key]"
        raise ValueError(f"{path}: the array must be {axes}, got shape {array.shape}")
    layers = array if array.ndim == 5 else array[None]
    return PatternFile(tuple(_pattern(path, f"layer {layer}", pattern) for layer, pattern in enumerate(layers)))


def _load(path: Path, stream: BinaryIO) -> Any:
    """What NumPy makes of the file: an array, or an archive that is unpacked later."""
    with _undamaged(path, "the file"):
        return np.load(stream, allow_pickle=False)


def _member(path: Path, archive: Mapping[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    """One array of an archive."""
    with _undamaged(path, name):
        array = archive[name]
    if not hasattr(array, "dtype"):  # NumPy hands out the bytes of a member that is not in its format
        raise ValueError(f"{path}: {name} must be a NumPy array, got {type(array).__name__}")
    return array


@contextmanager
def _undamaged(path: Path, what: str) -> Iterator[None]:
    """Turns everything that NumPy, zipfile and zlib raise over damaged bytes, a dozen kinds, into one ValueError."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        rule = "must be whole, in NumPy's format and without pickled objects"
        raise ValueError(f"{path}: {what} {rule}, got: {error}") from error


def _layer_names(path: Path, arrays: Mapping[str, npt.NDArray[Any]], present: list[str]) -> list[str]:
    """The names of the layers in numeric order, none missing."""
    numbers = {int(match[1]) for name in arrays if (match := _LAYER_NAME.fullmatch(name))}
    if not numbers:
        raise ValueError(f"{path}: must hold arrays named layers.0.pattern, layers.1.pattern, .., got {present}")
    missing = next((number for number in range(len(numbers)) if number not in numbers), None)
    if missing is not None:
        raise ValueError(f"{path}: layers must be numbered 0, 1, 2, .. without a gap, got no layers.{missing}.pattern")
    return [f"layers.{number}.pattern" for number in range(len(numbers))]


def _pattern(path: Path, name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array as a pattern that ``push`` takes without a copy."""
    if array.ndim != 4:
        raise ValueError(f"{path}: {name} must be [batch, head, query, key], got shape {array.shape}")
    if array.dtype.name not in _DTYPES:
        raise ValueError(f"{path}: {name} must be one of {', '.join(_DTYPES)}, got {array.dtype.name}")
    array.flags.writeable = False
    return array


def _tokens(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[str, ...] | None:
    """The tokens, if the file has them."""
    tokens = arrays.get("tokens")
    if tokens is None:
        return None
    if tokens.ndim != 1 or tokens.dtype.kind != "U":
        raise ValueError(f"{path}: tokens must be strings of shape [key], got {tokens.dtype} of shape {tokens.shape}")
    return tuple(str(token) for token in tokens)


def _metadata(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """The metadata, if the file has them."""
    text = arrays.get("metadata")
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
