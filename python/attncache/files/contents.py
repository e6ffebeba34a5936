"""What is at a path, of whatever kind: its layers without their items, and each layer as a cache of its own when wanted.

Kinds: a file of ours, a directory of segments, a safetensors file by others, .npz, .npy. Which it is, the first bytes say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from attncache.cache import AttentionCache
from attncache.files.archives import metadata_among, tokens_among
from attncache.files.layer_reading import push_layer
from attncache.files.manifest import Manifest
from attncache.files.memory import Bytes, mapped, opened, read_header
from attncache.files.named_arrays import NamedArray, checked_patterns, layers_among
from attncache.files.numpy_arrays import npy_arrays, npz_arrays
from attncache.files.opening import at_one_moment, segments_of
from attncache.files.safetensors import Tensor
from attncache.files.said import Said
from attncache.files.schema import INDEX, STORED, VERSION, StoredLayer, layers_of
from attncache.files.single import OpenFile
from attncache.layer_source import LayerSource
from attncache.sources import StoredDType
from attncache.tokens import Tokens

Kind = Literal["attncache file", "attncache directory", "safetensors", "npz", "npy"]
_FLOATS = {**STORED, "F64": "float64"}
_NUMPY: dict[str, Any] = {"F16": np.float16, "BF16": np.uint16, "F32": np.float32, "F64": np.float64}


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
        source: where it comes from.
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


def contents_of(path: Path, names: str | None = None) -> Contents:
    """What is at a path; of a file only the headers are read.

    Args:
        path: a file, or a directory that ``AttentionCache.create`` made.
        names: as for ``layers_among``, where it is a file by others.

    Raises:
        OSError: it cannot be read. ValueError: it is none of these, or a header is damaged; the message says where.
    """
    if path.is_dir():
        return at_one_moment(path, lambda manifest: _of_directory(path, manifest))
    kind = kind_of(path)
    if kind in ("npz", "npy"):
        arrays = npz_arrays(path) if kind == "npz" else npy_arrays(path)
        metadata = metadata_among(arrays, path)
        layers = layers_among(arrays, path, names) if kind == "npz" else checked_patterns(arrays, path)
        return _of_others(path, kind, layers, tokens_among(arrays, path), metadata)
    with opened(path) as fd:
        header, size = read_header(fd, path)
        whole = mapped(fd, size)
    if "attncache" not in header.metadata:
        arrays = [_tensor(tensor, whole) for tensor in header.tensors.values()]
        return _of_others(path, kind, layers_among(arrays, path, names), None, dict(header.metadata))
    file = OpenFile(path, layers_of(header, path), header, whole)
    return _ours(path, "attncache file", list(file.each_layer()), [size], file.said())


def kind_of(path: Path) -> Literal["safetensors", "npz", "npy"]:
    """What a file is, by its first bytes; one of ours is safetensors here.

    Raises:
        OSError: it cannot be read. ValueError: it is none of these.
    """
    with opened(path) as fd, open(fd, "rb", closefd=False) as stream:
        beginning = stream.read(16)
    if beginning.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "npz"
    if beginning.startswith(b"\x93NUMPY"):
        return "npy"
    if beginning[8:9] == b"{":
        return "safetensors"
    for kind in ("npz", "npy", "safetensors"):  # damaged, perhaps: its reader says how
        if path.suffix == f".{kind}":
            return kind
    rule = "must be a safetensors, .npz or .npy file, or a directory of AttentionCache.create"
    raise ValueError(f"{path}: {rule}, got a file that begins with {beginning!r}")


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


def _of_others(
    path: Path, kind: Kind, arrays: Sequence[NamedArray], tokens: Tokens | None, metadata: dict[str, Any]
) -> Contents:
    """Contents in a format of others, whose arrays are patterns."""

    def read_layer(number: int, dtype: StoredDType | None) -> AttentionCache:
        cache = AttentionCache(dtype, index="off")
        cache.push(arrays[number].source())
        return cache

    layers = tuple(Layer("dense", array.shape, array.dtype, array.n_bytes) for array in arrays)  # type: ignore[arg-type]
    checksums: Literal["zip"] | None = "zip" if kind == "npz" else None
    return Contents(path, kind, None, 1, path.stat().st_size, checksums, layers, tokens, metadata, read_layer)


def _tensor(tensor: Tensor, whole: Bytes) -> NamedArray:
    """A tensor of a safetensors file by others, over the mapped file."""
    dtype = _FLOATS.get(tensor.dtype, tensor.dtype)

    def read() -> npt.NDArray[Any]:
        items: npt.NDArray[Any] = whole[tensor.begin : tensor.end].view(_NUMPY[tensor.dtype])
        return items.reshape(tensor.shape)

    return NamedArray(tensor.name, dtype, tensor.shape, read)
