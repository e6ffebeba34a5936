"""Layers of a cache as tensors of a file, and back: all that files know of a cache's memory, for whoever reads or writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from attncache import _core
from attncache.array_input import ArrayInput, StoredDType
from attncache.cache import AttentionCache
from attncache.factored import factored_layer
from attncache.files.errors import damaged
from attncache.files.safetensors import Tensor
from attncache.files.schema import HEAD_MEANS, ROW_SUMS, STORED, Description, StoredLayer
from attncache.layer_source import LayerSource
from attncache.scoring import Options

Shape = tuple[int, int, int, int]
_NUMPY = {"F16": np.float16, "BF16": np.uint16, "F32": np.float32, "BOOL": np.uint8}
_SAFETENSORS = {name: code for code, name in STORED.items()}


@dataclass
class Layer:
    """One layer of a file as it is stored, ours or of others; its items are read when they are wanted.

    Attributes:
        kind: whether its weights are stored or computed.
        shape: its sizes as [batch, head, query, key].
        dtype: what it is stored as; may be float64 in a file by others.
        n_bytes: of weights, or of queries, keys and what belongs to them.
        push_to: appends it to a cache, in a dtype or in its own, with where it comes from: over the mapped file where that
            can be. It raises OSError or ValueError where the file is damaged.
        source: where it comes from; of a file by others, what the names say of it.
        options: of a factored layer: key heads, items and the numbers of ``push_qk``; which of its arrays there are.
        has_index: whether head means or row sums are stored too.
        read: the items of a layer of others as ``push`` takes them.
    """

    kind: Literal["dense", "factored"]
    shape: Shape
    dtype: str
    n_bytes: int
    push_to: Callable[[AttentionCache, StoredDType | None], None] = field(compare=False)
    source: LayerSource | None = field(default=None, compare=False)
    options: dict[str, Any] = field(default_factory=dict)
    has_index: bool = False
    read: Callable[[], ArrayInput] | None = field(default=None, compare=False)

    def as_cache(self, dtype: StoredDType | None = None) -> AttentionCache:
        """The layer alone, as a cache without an index."""
        return alone(lambda cache: self.push_to(cache, dtype), dtype)


class Part(NamedTuple):
    """A tensor to be written; its items are computed when they are wanted."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    items: Callable[[], npt.NDArray[Any]]


def alone(fill: Callable[[AttentionCache], object], dtype: StoredDType | None = None) -> AttentionCache:
    """The layer that ``fill`` pushes to an empty cache, without an index."""
    cache = AttentionCache(dtype, index="off")
    fill(cache)
    return cache


def put_layers(cache: AttentionCache, first: int, layers: AttentionCache) -> None:
    """Make the layers of one cache those of another from ``first`` on."""
    for at, (layer, source) in enumerate(layers._sourced):
        AttentionCache._take(cache, layer, source, first + at)


def head_means(layer: _core.Layer) -> npt.NDArray[np.float32]:
    """The mean over heads of each batch item; an index that is built on the way does not stay with the layer."""
    batch_size, _, seq_q, seq_k = layer.shape
    one, means = alone(lambda cache: cache._take(layer)), np.empty((batch_size, seq_q, seq_k), np.float32)
    for batch in range(batch_size):
        one.head_mean(0, batch, out=means[batch])
    return means


def parts_of(
    layer: _core.Layer, source: LayerSource | None, name: str, *, index: bool
) -> tuple[Description, list[Part]]:
    """The description and the tensors of one layer.

    Args:
        layer, source: what it is, and where it comes from.
        name: what its tensors' names begin with, such as "layers.0".
        index: whether to compute and write its head means or normalisers too.
    """
    dtype = layer.dtype
    if layer.kind == "dense":
        return dense_parts(lambda: layer, name, dtype, layer.shape, index=index, source=source)
    scale, softcap, causal, window, hidden, sinks = layer.scoring
    numbers = {"scale": scale, "causal": causal, "window": window or None, "softcap": softcap or None}
    query, key = layer.memory
    parts = [_part(f"{name}.query", _SAFETENSORS[dtype], query), _part(f"{name}.key", _SAFETENSORS[dtype], key)]
    if any(hidden):
        mask = np.ones((key.shape[0], key.shape[2]), np.uint8)
        for row, runs in zip(mask, hidden, strict=True):
            for begin, end in runs:
                row[begin:end] = 0
        parts.append(_part(f"{name}.key_mask", "BOOL", mask))
    if sinks:
        parts.append(_part(f"{name}.sinks", "F32", np.array(sinks, np.float32)))
    has_lse = layer.has_given_lse
    if has_lse:
        parts.append(_part(f"{name}.lse", "F32", layer.lse(None)))
    if index or has_lse:
        layer.lse(None)
        known = layer.row_sums
        assert known is not None
        if not has_lse or np.any(np.isfinite(known[1]) & (known[1] != 1)):  # lse alone stands for (lse, 1)
            parts += [_part(f"{name}.{each}", "F32", sums) for each, sums in zip(ROW_SUMS.tensors, known, strict=True)]
    return {"kind": "factored", **numbers, **_entry(source)}, parts


def dense_parts(
    layer: Callable[[], _core.Layer],
    name: str,
    dtype: StoredDType,
    shape: Shape,
    *,
    index: bool,
    source: LayerSource | None = None,
) -> tuple[Description, list[Part]]:
    """The description and the tensors of a dense layer that need not be there yet.

    Args:
        layer: gives it when items are wanted.
        name, index: as for ``parts_of``.
        dtype, shape: those of the layer, [batch, head, query, key].
        source: where it comes from.
    """
    batch_size, n_heads, seq_q, seq_k = shape

    def pattern() -> npt.NDArray[Any]:
        return layer().memory[0]

    def mean() -> npt.NDArray[np.float32]:
        return head_means(layer())

    def mean_by_key() -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(mean().swapaxes(1, 2))

    parts = [Part(f"{name}.pattern", _SAFETENSORS[dtype], shape, pattern)]
    if index and n_heads:  # the mean of none is NaN: nothing to keep
        parts.append(Part(f"{name}.mean", "F32", (batch_size, seq_q, seq_k), mean))
        parts.append(Part(f"{name}.mean_by_key", "F32", (batch_size, seq_k, seq_q), mean_by_key))
    return {"kind": "dense", **_entry(source)}, parts


def _entry(source: LayerSource | None) -> Description:
    """What a description says of where its layer comes from."""
    return {} if source is None else {"source": source.to_dict()}


def _part(name: str, dtype: str, items: npt.NDArray[Any]) -> Part:
    return Part(name, dtype, items.shape, lambda: items)


def push_stored(
    cache: AttentionCache, layer: StoredLayer, whole: npt.NDArray[np.uint8], dtype: StoredDType | None = None
) -> None:
    """Append a layer of a file to a cache, over the memory that the file's bytes lie in.

    Args:
        cache: where to, with where it comes from; where its index policy is "off", what the file holds of one is left alone.
        layer: which.
        whole: all bytes of the file, read-only.
        dtype: what to store it as; None keeps its dtype, and so does not copy. Another dtype takes nothing derived.

    Raises:
        DamagedFileError: the layer's numbers break a rule of ``push_qk``.
    """

    def array(name: str) -> npt.NDArray[Any]:
        tensor = layer.tensors[name]
        return whole[tensor.begin : tensor.end].view(_NUMPY[tensor.dtype]).reshape(tensor.shape)

    def floats(name: str) -> npt.NDArray[np.float32]:
        return np.require(array(name), requirements=["C", "A"])

    is_kept = dtype in (None, STORED[layer.main.dtype])
    slot = HEAD_MEANS if "pattern" in layer.tensors else ROW_SUMS
    derived = [floats(name) for name in slot.tensors if name in layer.tensors]
    if slot is HEAD_MEANS:
        made = _dense(cache, _source(array("pattern"), layer.main), dtype, derived if is_kept else [])
    else:
        given = {name: floats(name) if name in layer.tensors else None for name in ("key_mask", "sinks", "lse")}
        query = _source(array("query"), layer.main)
        options = _options(layer, given)
        try:
            made = factored_layer(dtype, query, query._replace(array=array("key")), options)
        except (TypeError, ValueError) as error:
            raise damaged(f"layers.{layer.number}", "must fit together as push_qk asks", error) from error
        if derived and given["lse"] is not None:
            made = made.with_row_sums(*derived)
        elif derived and is_kept:
            made.adopt_row_sums(*derived)
    AttentionCache._take(cache, made, layer.source)


def _dense(
    cache: AttentionCache, source: ArrayInput, dtype: StoredDType | None, means: list[npt.NDArray[np.float32]]
) -> _core.Layer:
    """A pattern, and head means as its index."""
    stored = dtype or source.own_dtype
    has_index = bool(means) and cache.index != "off"
    borrows, builds = source.borrows(stored, None), cache.index == "eager" and not has_index
    layer = _core.Layer.dense(source.array, source.dtype, stored, borrows, builds)
    if has_index:
        for batch, (by_query, by_key) in enumerate(zip(*means, strict=True)):
            layer.set_head_mean(batch, by_query, by_key)
    return layer


def _options(layer: StoredLayer, given: dict[str, Any]) -> Options:
    """What a description says of queries and keys, beside the arrays that were given with them."""
    numbers: dict[str, Any] = {name: layer.description.get(name) for name in ("scale", "causal", "window", "softcap")}
    if type(numbers["scale"]) not in (int, float):
        raise damaged(f"layers.{layer.number}: its scale", "must be a number", repr(numbers["scale"])[:80])
    return Options(**numbers, **given)


def _source(array: npt.NDArray[Any], tensor: Tensor) -> ArrayInput:
    dtype: StoredDType = STORED[tensor.dtype]  # type: ignore[assignment]
    return ArrayInput(array, dtype, is_writable=False)
