"""What ``AttentionCache.save`` and ``load``, ``read_patterns`` and ``attncache convert`` do, and how a pickled cache comes back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attncache import _core
from attncache.array_input import ArrayInput, StoredDType
from attncache.axes import Axes
from attncache.cache import AttentionCache
from attncache.files.arrays import imported
from attncache.files.atomic import remove_abandoned
from attncache.files.contents import Contents, contents_of
from attncache.files.layers import FileLayer, Planned, Policy, dense_layer, planned, planned_dense
from attncache.files.schema import Said
from attncache.files.single import write_file
from attncache.files.strict_json import checked_metadata
from attncache.files.verifying import verify as verified
from attncache.tokens import checked_tokens


@dataclass(frozen=True)
class PatternFile:
    """What one file holds: its patterns in the order of the layers, and what it says about them.

    Attributes:
        patterns: one read-only array of shape [batch, head, query, key] per layer, so that ``push`` can borrow it.
        tokens: the text of each position (per batch item, where a cache has that), or None where the file does not say.
        metadata: whatever else the file says about itself; empty where it says nothing.
    """

    patterns: tuple[npt.NDArray[Any], ...]
    tokens: tuple[Any, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def sample_path() -> Path:
    """The packaged sample: every layer and head of SmolLM2-135M on one short text, about 0.4 MB."""
    return Path(__file__).parents[1] / "data" / "smollm2_sample.npz"


def read_patterns(
    path: str | PathLike[str], names: str | None = None, *, axes: Axes | None = None, check: bool = True
) -> PatternFile:
    """Read the patterns in a file of any kind that attncache reads, or in a folder of such files.

    The first bytes say what a file is: ours, safetensors by others, ``.npz``, ``.npy``, a ``.pt`` of ``torch.save`` (nothing in
    it is executed) or HDF5 (where h5py is installed). It holds one array per layer, named
    ``layers.N.pattern`` or otherwise alike but for one number (as ``attentions.0`` or NumPy's ``arr_0``), or a single array
    of all layers. A ``.npz`` may hold ``tokens`` (1-D strings) and ``metadata`` (a JSON object as a string). A folder has a
    file per layer. docs/adapters.md says all of it.

    Args:
        path: the file or folder.
        names: the names of the layers with {} for the number, where there are other arrays like them; or the name of one
            array.
        axes: names of an array's axes, such as "layer head query key"; without it several arrays are one layer each,
            [batch, head, query, key] or [head, query, key], and a single one of five axes begins with the layer. Where they
            name the layer, several arrays are batch items.
        check: as for ``push``: whether to look at a few rows of files by others.

    Returns:
        The patterns in the dtype that is stored, with tokens and metadata if there are any.

    Raises:
        OSError: the file cannot be opened.
        ValueError: its contents break a rule above, or it is not clear which axes an array has; the message names file, rule
            and value. Of a cache: a layer has queries and keys and no pattern, or names or axes are given.
        TypeError: an argument is of the wrong kind.
        ImportError: the file needs h5py or ml_dtypes (for bfloat16), which is not installed.
        MemoryError: its arrays do not fit.

    >>> sample = read_patterns(sample_path())
    >>> len(sample.patterns), sample.patterns[0].shape
    (30, (1, 9, 40, 40))
    """
    path = checked_path(path)
    contents = contents_of(path, names, axes, check=check)
    kinds = [layer.kind for layer in contents.layers]
    if "factored" in kinds:
        raise ValueError(
            f"{path}: layers must have patterns to be read, got queries and keys in layer {kinds.index('factored')}; "
            "AttentionCache.load(path).rows(layer, heads=None) computes them"
        )
    return PatternFile(tuple(map(_pattern, contents.layers)), contents.said.tokens, dict(contents.said.metadata))


def _pattern(layer: FileLayer) -> npt.NDArray[Any]:
    """Its items as ``push`` takes them, read-only.

    Raises:
        ImportError: it is bfloat16 and ml_dtypes is not installed.
    """
    if layer.read is None:
        return layer.load(None, "off").pattern()
    items = layer.read().array
    if layer.dtype == "bfloat16":
        items = items.view(imported("ml_dtypes", "bfloat16 in NumPy").bfloat16)
    items.flags.writeable = False
    return items


def save(cache: AttentionCache, path: str | PathLike[str], *, index: bool) -> None:
    """``AttentionCache.save``."""
    _check_bool(index, "index")
    layers = cache._sourced
    plans = [planned(*layer, f"layers.{n}", index=index) for n, layer in enumerate(layers)]
    write_file(checked_path(path), plans, Said.of(cache))


def load(
    path: str | PathLike[str],
    *,
    mmap: bool = True,
    verify: bool = False,
    index: Policy = "auto",
    names: str | None = None,
    axes: Axes | None = None,
    check: bool = True,
) -> AttentionCache:
    """``AttentionCache.load``."""
    _check_bool(mmap, "mmap")
    _check_bool(verify, "verify")
    path = checked_path(path)
    remove_abandoned(path)
    return contents_of(path, names, axes, check=check, is_mapped=mmap, verify=verify).cache(index)


def reopened(path: Path, digest: str, is_mapped: bool, index: Policy) -> AttentionCache:
    """A cache from its pickle.

    Raises:
        OSError: its path cannot be read here. ValueError: something else is there now.
    """
    cache = load(path, mmap=is_mapped, verify=False, index=index)
    if cache._origin is None or cache._origin.digest != digest:
        raise ValueError(f"{path}: must be as it was when the cache was pickled, got other contents: they have changed")
    return cache


@dataclass(frozen=True)
class Change:
    """What becomes of the layers.

    Attributes:
        dtype: what they are stored as; None keeps what they have, but that float64 becomes float32.
        mean_only: whether the head mean takes the place of each layer: one head of float32, the bits of ``head_mean``.
        index: whether head means and row sums are written beside the layers.
    """

    dtype: StoredDType | None = None
    mean_only: bool = False
    index: bool = False


def convert(
    contents: Contents, target: Path, change: Change, tokens: Sequence[str] | Sequence[Sequence[str]] | None = None
) -> None:
    """Write contents as one file of ours; a file that is there is replaced, or left whole if this fails.

    Args:
        contents: from ``contents_of``. Checksums of ours are compared first, so that no damage gets new ones.
        target: the file.
        change: what becomes of the layers.
        tokens: to be put in the place of those of the source.

    Raises:
        OSError, ValueError: the source cannot be read or is damaged; or as ``AttentionCache.save``. TypeError: tokens or
            metadata cannot be saved.
    """
    shapes = [layer.shape for layer in contents.layers]
    said = checked_tokens(tokens, shapes) if tokens is not None else contents.said.tokens
    metadata: Mapping[str, Any] = checked_metadata(contents.said.metadata)
    if change.mean_only:
        metadata = {**metadata, **_note(contents.layers)}
    if contents.version is not None:
        damage = next((error for file in verified(contents.path) for error in file.errors), None)
        if damage is not None:
            raise damage
    write_file(
        target,
        [_planned(layer, f"layers.{number}", change) for number, layer in enumerate(contents.layers)],
        Said(said, contents.said.query_tokens, metadata),
    )


def _planned(layer: FileLayer, name: str, change: Change) -> Planned:
    """How a layer is written: planned by its header, and loaded when its items are asked for."""

    def changed() -> _core.Layer:
        return _mean_of(layer) if change.mean_only else layer.load(change.dtype, "off")

    def plan() -> Planned:
        return planned(changed(), layer.source, name, index=change.index)

    if layer.kind == "factored" and not change.mean_only:  # made twice, which is cheap beside keeping all
        return plan()._replace(items=lambda: plan().items())
    dtype: StoredDType = change.dtype or ("float32" if layer.dtype == "float64" else layer.dtype)  # type: ignore[assignment]
    shape, source = layer.shape, layer.source
    if change.mean_only:
        dtype, shape = "float32", (shape[0], 1, *shape[2:])
        source = source and replace(source, heads=None)
    return planned_dense(changed, source, name, dtype, shape, index=change.index)


def _mean_of(layer: FileLayer) -> _core.Layer:
    """The head mean as a layer of one head."""
    asked = layer.asked()
    batch_size, _, seq_q, seq_k = layer.shape
    means = np.empty((batch_size, 1, seq_q, seq_k), np.float32)
    for batch in range(batch_size):
        asked.head_mean(0, batch, out=means[batch, 0])
    return dense_layer(ArrayInput(means, "float32", is_writable=False))


def _note(layers: Sequence[FileLayer]) -> dict[str, Any]:
    """What metadata say of means: of how many heads; nothing where they change nothing."""
    heads = [layer.shape[1] for layer in layers]
    if set(heads) <= {1}:
        return {}
    notes = [f"mean of {n_heads}" for n_heads in heads]
    return {"heads": notes[0] if len(set(notes)) == 1 else notes}


def checked_path(path: object) -> Path:
    """The argument ``path``."""
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path must be a string or a path, got {type(path).__name__}")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"path must be a string or a path, got {path!r}")
    return Path(text)


def _check_bool(value: object, name: str) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")
