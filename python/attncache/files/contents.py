"""What is at a path, of whatever kind: its layers without their items, and each layer as a cache of its own when wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from attncache.array_input import StoredDType
from attncache.axes import Axes
from attncache.cache import AttentionCache
from attncache.files.arrays import size_of
from attncache.files.containers import Container, joined
from attncache.files.foreign import ForeignLayer, layers_of_others
from attncache.files.layer_reading import push_layer
from attncache.files.manifest import Manifest
from attncache.files.opening import at_one_moment, check_ours, checked_path, container_at, load, segments_of
from attncache.files.said import Said
from attncache.files.schema import INDEX, STORED, VERSION, StoredLayer, layers_of
from attncache.files.single import OpenFile
from attncache.layer_source import LayerSource
from attncache.tokens import Tokens

Kind = Literal["attncache file", "attncache directory", "safetensors", "npz", "npy", "torch", "hdf5", "folder"]


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

    The first bytes say what a file is: ours, safetensors by others, ``.npz``, ``.npy``, a ``.pt`` of ``torch.save``
    (where torch is installed; nothing in it is executed) or HDF5 (where h5py is). It holds one array per layer, named
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
        ImportError: the file needs torch, h5py or ml_dtypes (for bfloat16), which is not installed.
        MemoryError: its arrays do not fit.

    >>> sample = read_patterns(sample_path())
    >>> len(sample.patterns), sample.patterns[0].shape
    (30, (1, 9, 40, 40))
    """
    path = checked_path(path)
    container = container_at(path)
    if container is not None and not container.is_ours:
        layers = layers_of_others(container, names, axes, check=check)
        return PatternFile(tuple(layer.array() for layer in layers), container.tokens, container.metadata)
    check_ours(path, names, axes)
    cache = load(path)
    if "factored" in cache.kinds:
        raise ValueError(
            f"{path}: layers must have patterns to be read, got queries and keys in layer {cache.kinds.index('factored')}; "
            "AttentionCache.load(path).rows(layer, heads=None) computes them"
        )
    return PatternFile(cache.patterns, cache.tokens, dict(cache.metadata))


@dataclass(frozen=True)
class Layer:
    """One layer as it is stored.

    Attributes:
        kind: whether its weights are stored or computed.
        shape: its sizes as [batch, head, query, key].
        dtype: what it is stored as; may be float64 in a file by others.
        n_bytes: of weights, or of queries, keys and what belongs to them.
        options: of a factored layer: key heads, items and the numbers of ``push_qk``; which of its arrays there are.
        has_index: whether head means or row sums are stored too.
        source: where it comes from; of a file by others, what the names say of it.
    """

    kind: Literal["dense", "factored"]
    shape: tuple[int, int, int, int]
    dtype: str
    n_bytes: int
    options: dict[str, Any] = field(default_factory=dict)
    has_index: bool = False
    source: LayerSource | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Contents:
    """What is at one path.

    Attributes:
        path, kind: where, and what it is.
        version: of our format; None if it is not ours.
        n_files, size: how many files that are, and their bytes.
        checksums: whose checksums its data have: ours, those of a zip archive, or None.
        layers: in their order.
        tokens, metadata: what else it says.
        read_layer: gives one layer as a cache, without tokens, in a dtype or in its own: over the mapped file where that
            can be, otherwise read. It raises OSError or ValueError where the file is damaged.
        query_tokens: the tokens of the queries, where they are others.
    """

    path: Path
    kind: Kind
    version: str | None
    n_files: int
    size: int
    checksums: Literal["attncache", "zip"] | None
    layers: tuple[Layer, ...]
    tokens: Tokens | None
    metadata: dict[str, Any]
    read_layer: Callable[[int, StoredDType | None], AttentionCache]
    query_tokens: Tokens | None = None


def contents_of(
    paths: Path | Sequence[Path], names: str | None = None, axes: Axes | None = None, *, check: bool = True
) -> Contents:
    """What is at a path, or at several together; of a file only the headers are read.

    Args:
        paths: a file, a directory that ``AttentionCache.create`` made, a folder of files, or several files by others.
        names, axes, check: as for ``layers_of_others``; of a cache there are neither names nor axes.

    Raises:
        OSError: it cannot be read. ValueError: it is none of these, or a header is damaged; the message says where.
        ImportError: what reads it is not installed.
    """
    several = [] if isinstance(paths, Path) else list(paths)
    path = paths if isinstance(paths, Path) else several[0]
    if len(several) > 1:
        together = joined(several, path.parent)
        return _of_others(together, layers_of_others(together, names, axes, check=check))
    container = container_at(path)
    if container is None:
        check_ours(path, names, axes)
        return at_one_moment(path, lambda manifest: _of_directory(path, manifest))
    if not container.is_ours or container.safetensors is None:
        return _of_others(container, layers_of_others(container, names, axes, check=check))
    check_ours(path, names, axes)
    header, whole = container.safetensors
    file = OpenFile(path, layers_of(header, path), header, whole)
    return _ours(path, "attncache file", list(file.each_layer()), [container.size], file.said())


def _of_directory(path: Path, manifest: Manifest) -> Contents:
    """What a directory holds, as its manifest says."""
    layers = segments_of(path, manifest)
    sizes = [*{file.path: len(file.whole) for file, _ in layers}.values(), len(manifest.raw)]
    return _ours(path, "attncache directory", layers, sizes, manifest.said)


def _ours(
    path: Path,
    kind: Kind,
    stored: Sequence[tuple[OpenFile, StoredLayer]],
    sizes: Sequence[int],
    said: Said,
) -> Contents:
    """Contents in our format."""

    def read_layer(number: int, dtype: StoredDType | None) -> AttentionCache:
        file, layer = stored[number]
        cache = AttentionCache(dtype, index="off")
        push_layer(cache, layer, file.whole, file.path, "off", dtype=dtype)
        return cache

    layers = tuple(_layer(layer) for _, layer in stored)
    tokens, query_tokens, metadata = said
    return Contents(
        path,
        kind,
        VERSION,
        len(sizes),
        sum(sizes),
        "attncache",
        layers,
        tokens,
        dict(metadata),
        read_layer,
        query_tokens,
    )


def _layer(layer: StoredLayer) -> Layer:
    """A layer of ours, as its header describes it."""
    n_bytes = sum(tensor.n_bytes for name, tensor in layer.tensors.items() if name not in INDEX)
    has_index = not layer.tensors.keys().isdisjoint(INDEX) and "lse" not in layer.tensors
    if "pattern" in layer.tensors:
        pattern = layer.tensors["pattern"]
        return Layer("dense", pattern.shape, STORED[pattern.dtype], n_bytes, {}, has_index, layer.source)  # type: ignore[arg-type]
    query, key = layer.tensors["query"], layer.tensors["key"]
    batch_size, n_heads, seq_q, n_items = query.shape
    options: dict[str, Any] = {"key_heads": key.shape[1], "items": n_items}
    options |= {name: layer.description.get(name) for name in ("scale", "causal", "window", "softcap")}
    options |= {name: name in layer.tensors for name in ("key_mask", "sinks", "lse")}
    shape = batch_size, n_heads, seq_q, key.shape[2]
    return Layer("factored", shape, STORED[query.dtype], n_bytes, options, has_index, layer.source)


def _of_others(container: Container, found: Sequence[ForeignLayer]) -> Contents:
    """Contents in a format of others, whose arrays are patterns."""

    def read_layer(number: int, dtype: StoredDType | None) -> AttentionCache:
        return found[number].as_cache(dtype)

    layers = tuple(
        Layer("dense", layer.shape, layer.dtype, size_of(layer.shape, layer.dtype), source=layer.source)
        for layer in found
    )
    checksums: Literal["zip"] | None = "zip" if container.kind in ("npz", "torch") else None
    tokens, metadata = container.tokens, container.metadata
    sizes = container.n_files, container.size
    return Contents(container.path, container.kind, None, *sizes, checksums, layers, tokens, metadata, read_layer)
