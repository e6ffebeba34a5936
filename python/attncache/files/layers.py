"""Layers as tensors of a file, and back: all that files know of a layer's memory, for whoever reads or writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attncache import _core
from attncache.array_input import ArrayInput, StoredDType
from attncache.cache import AttentionCache
from attncache.factored import factored_layer
from attncache.files.errors import damaged
from attncache.files.safetensors import Named
from attncache.files.schema import HEAD_MEANS, ROW_SUMS, STORED, Description, StoredLayer
from attncache.layer_source import LayerSource
from attncache.scoring import Options

Policy: TypeAlias = Literal["off", "auto", "eager"]
Shape: TypeAlias = tuple[int, int, int, int]
Sourced: TypeAlias = tuple[_core.Layer, LayerSource | None]  # a layer, and where it comes from
_NUMPY = {"F16": np.float16, "BF16": np.uint16, "F32": np.float32, "BOOL": np.uint8}
_SAFETENSORS = {name: code for code, name in STORED.items()}


@dataclass
class FileLayer:
    """One layer of a file as it is stored, ours or of others; its items are read when they are wanted.

    Attributes:
        kind: whether its weights are stored or computed.
        shape: its sizes as [batch, head, query, key].
        dtype: what it is stored as; may be float64 in a file by others.
        n_bytes: of weights, or of queries, keys and what belongs to them.
        load: gives it, over the mapped file where that can be. It takes the dtype to store, None for its own (but float32
            for float64), and the policy of an index: with "off" what the file holds of one is left alone, with "eager" one
            is built if the file has none. It raises OSError or ValueError where the file is damaged.
        source: where it comes from; of a file by others, what the names say of it.
        options: of a factored layer: key heads, items and the numbers of ``push_qk``; which of its arrays there are.
        has_index: whether head means or row sums are stored too.
        read: the items of a layer of others as ``push`` takes them.
    """

    kind: Literal["dense", "factored"]
    shape: Shape
    dtype: str
    n_bytes: int
    load: Callable[[StoredDType | None, Policy], _core.Layer] = field(compare=False)
    source: LayerSource | None = field(default=None, compare=False)
    options: dict[str, Any] = field(default_factory=dict)
    has_index: bool = False
    read: Callable[[], ArrayInput] | None = field(default=None, compare=False)

    def asked(self) -> AttentionCache:
        """A cache that is asked for this layer's weights: it has no other, and no index."""
        cache = AttentionCache(index="off")
        put_layers(cache, 0, [(self.load(None, "off"), self.source)])
        return cache


def put_layers(cache: AttentionCache, first: int, layers: Iterable[Sourced]) -> None:
    """Make layers those of a cache from ``first`` on, in memory."""
    for number, (layer, source) in enumerate(layers, first):
        AttentionCache._take(cache, layer, source, number)


class Planned(NamedTuple):
    """A layer to be written: its description, its tensors, and their items in that order, computed when they are wanted."""

    description: Description
    tensors: Sequence[Named]
    items: Callable[[], Iterable[npt.NDArray[Any]]]


def planned(layer: _core.Layer, source: LayerSource | None, name: str, *, index: bool) -> Planned:
    """How a layer is written.

    Args:
        layer, source: which, and where it comes from.
        name: what its tensors' names begin with, such as "layers.0".
        index: whether to compute and write its head means or normalisers too.
    """
    dtype = layer.dtype
    if layer.kind == "dense":
        return planned_dense(lambda: layer, source, name, dtype, layer.shape, index=index)
    scale, softcap, causal, window, hidden, sinks = layer.scoring
    numbers = {"scale": scale, "causal": causal, "window": window or None, "softcap": softcap or None}
    query, key = layer.memory
    arrays = {"query": query, "key": key}
    if any(hidden):
        arrays["key_mask"] = np.ones((key.shape[0], key.shape[2]), np.uint8)
        for row, runs in zip(arrays["key_mask"], hidden, strict=True):
            for begin, end in runs:
                row[begin:end] = 0
    if sinks:
        arrays["sinks"] = np.array(sinks, np.float32)
    has_lse = layer.has_given_lse
    if has_lse:
        arrays["lse"] = layer.lse(None)
    if index or has_lse:
        layer.lse(None)
        known = layer.row_sums
        assert known is not None
        if not has_lse or np.any(np.isfinite(known[1]) & (known[1] != 1)):  # lse alone stands for (lse, 1)
            arrays.update(zip(ROW_SUMS.tensors, known, strict=True))
    codes = {"query": _SAFETENSORS[dtype], "key": _SAFETENSORS[dtype], "key_mask": "BOOL"}
    tensors = [(f"{name}.{each}", codes.get(each, "F32"), items.shape) for each, items in arrays.items()]
    return Planned({"kind": "factored", **numbers, **_entry(source)}, tensors, arrays.values)


def planned_dense(
    layer: Callable[[], _core.Layer],
    source: LayerSource | None,
    name: str,
    dtype: StoredDType,
    shape: Shape,
    *,
    index: bool,
) -> Planned:
    """How a dense layer is written that need not be there yet.

    Args:
        layer: gives it when items are wanted.
        source, name, index: as for ``planned``.
        dtype, shape: those of the layer, [batch, head, query, key].
    """
    batch_size, n_heads, seq_q, seq_k = shape
    tensors: list[Named] = [(f"{name}.pattern", _SAFETENSORS[dtype], shape)]
    if index and n_heads:  # the mean of none is NaN: nothing to keep
        shapes = (batch_size, seq_q, seq_k), (batch_size, seq_k, seq_q)
        tensors += [(f"{name}.{each}", "F32", sizes) for each, sizes in zip(HEAD_MEANS.tensors, shapes, strict=True)]

    def items() -> Iterator[npt.NDArray[Any]]:
        there = layer()
        yield there.memory[0]
        if len(tensors) > 1:
            yield from _head_means(there)

    return Planned({"kind": "dense", **_entry(source)}, tensors, items)


def _head_means(layer: _core.Layer) -> Iterator[npt.NDArray[np.float32]]:
    """The means over heads of all batch items, by query and by key; what is built for them does not stay with the layer."""
    batch_size, _, seq_q, seq_k = layer.shape
    means = []
    for item in layer.memory[0]:
        mean = _core.Layer.dense(item[None], layer.dtype, layer.dtype, True, True).head_mean(0)
        assert mean is not None  # it was built with the layer
        means.append(mean)
    for by, sizes in enumerate(((seq_q, seq_k), (seq_k, seq_q))):
        found = [mean[by] for mean in means]
        yield found[0][None] if batch_size == 1 else np.array(found, np.float32).reshape(batch_size, *sizes)


def _entry(source: LayerSource | None) -> Description:
    """What a description says of where its layer comes from."""
    return {} if source is None else {"source": source.to_dict()}


def stored_layer(
    layer: StoredLayer, whole: npt.NDArray[np.uint8], dtype: StoredDType | None = None, index: Policy = "off"
) -> _core.Layer:
    """A layer of a file, over the memory that the file's bytes lie in.

    Args:
        layer: which.
        whole: all bytes of the file, read-only.
        dtype, index: as for ``FileLayer.load``. Another dtype takes nothing derived.

    Raises:
        DamagedFileError: the layer's numbers break a rule of ``push_qk``.
    """

    def array(name: str) -> npt.NDArray[Any]:
        tensor = layer.tensors[name]
        return whole[tensor.begin : tensor.end].view(_NUMPY[tensor.dtype]).reshape(tensor.shape)

    def floats(name: str) -> npt.NDArray[np.float32]:
        return np.require(array(name), requirements=["C", "A"])

    def source(name: str) -> ArrayInput:
        own: StoredDType = STORED[layer.main.dtype]  # type: ignore[assignment]
        return ArrayInput(array(name), own, is_writable=False)

    is_kept = dtype in (None, STORED[layer.main.dtype])
    slot = HEAD_MEANS if "pattern" in layer.tensors else ROW_SUMS
    derived = [floats(name) for name in slot.tensors if name in layer.tensors]
    if slot is HEAD_MEANS:
        return dense_layer(source("pattern"), dtype, index, derived if is_kept else ())
    given: dict[str, Any] = {name: layer.description.get(name) for name in ("scale", "causal", "window", "softcap")}
    given |= {name: floats(name) if name in layer.tensors else None for name in ("key_mask", "sinks", "lse")}
    if type(given["scale"]) not in (int, float):
        raise damaged(f"layers.{layer.number}: its scale", "must be a number", repr(given["scale"])[:80])
    try:
        made = factored_layer(dtype, source("query"), source("key"), Options(**given))
    except (TypeError, ValueError) as error:
        raise damaged(f"layers.{layer.number}", "must fit together as push_qk asks", error) from error
    if derived and given["lse"] is not None:
        return made.with_row_sums(*derived)
    if derived and is_kept:
        made.adopt_row_sums(*derived)
    return made


def dense_layer(
    given: ArrayInput,
    dtype: StoredDType | None = None,
    index: Policy = "off",
    means: Sequence[npt.NDArray[np.float32]] = (),
) -> _core.Layer:
    """A layer of a pattern, borrowed where that can be, and of its head means by query and by key if there are any."""
    stored = dtype or given.own_dtype
    has_index = bool(means) and index != "off"
    builds = index == "eager" and not has_index
    layer = _core.Layer.dense(given.array, given.dtype, stored, given.borrows(stored, None), builds)
    if has_index:
        for batch, (by_query, by_key) in enumerate(zip(*means, strict=True)):
            layer.set_head_mean(batch, by_query, by_key)
    return layer
