"""Layers of a cache as tensors to be written, and what a file says of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attncache import _core
from attncache.array_input import StoredDType
from attncache.files.said import Said
from attncache.files.schema import STORED, VERSION, Description
from attncache.layer_source import LayerSource

if TYPE_CHECKING:
    from attncache.cache import AttentionCache

SAFETENSORS = {name: code for code, name in STORED.items()}


class Part(NamedTuple):
    """A tensor to be written; its items are computed when they are wanted."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    items: Callable[[], npt.NDArray[Any]]


def parts_of(cache: AttentionCache, layer: int, name: str, *, index: bool) -> tuple[Description, list[Part]]:
    """The description and the tensors of one layer.

    Args:
        cache: whose layer.
        layer: which.
        name: what its tensors' names begin with, such as "layers.0".
        index: whether to compute and write its head means or normalisers too.
    """
    source = cache.sources[layer]
    if cache.kinds[layer] == "dense":
        dtype, shape = cache.dtypes[layer], cache.shapes[layer]
        return dense_parts(lambda: (cache, layer), name, dtype, shape, index=index, source=source)
    memory = cache._memory(layer)
    stored = SAFETENSORS[cache.dtypes[layer]]
    scale, softcap, causal, window, hidden, sinks, has_lse = cache._options(layer)
    description = {
        "kind": "factored",
        "scale": scale,
        "causal": causal,
        "window": window or None,
        "softcap": softcap or None,
        **_entry(source),
    }
    query, key = memory
    parts = [_part(f"{name}.query", stored, query), _part(f"{name}.key", stored, key)]
    if any(hidden):
        mask = np.ones((key.shape[0], key.shape[2]), np.uint8)
        for row, runs in zip(mask, hidden, strict=True):
            for begin, end in runs:
                row[begin:end] = 0
        parts.append(_part(f"{name}.key_mask", "BOOL", mask))
    if sinks:
        parts.append(_part(f"{name}.sinks", "F32", np.array(sinks, np.float32)))
    if has_lse:
        parts.append(_part(f"{name}.lse", "F32", cache._lse(layer, None)))
    if index or has_lse:
        cache._lse(layer, None)
        known = cache._row_sums(layer)
        assert known is not None
        if not has_lse or np.any(np.isfinite(known[1]) & (known[1] != 1)):  # lse alone stands for (lse, 1)
            parts += [_part(f"{name}.row_greatest", "F32", known[0]), _part(f"{name}.row_sum", "F32", known[1])]
    return description, parts


def _entry(source: LayerSource | None) -> Description:
    """What a description says of where its layer comes from."""
    return {} if source is None else {"source": source.to_dict()}


def _part(name: str, dtype: str, items: npt.NDArray[Any]) -> Part:
    return Part(name, dtype, items.shape, lambda: items)


def dense_parts(
    layer: Callable[[], tuple[_core.Store, int]],
    name: str,
    dtype: StoredDType,
    shape: tuple[int, int, int, int],
    *,
    index: bool,
    source: LayerSource | None = None,
) -> tuple[Description, list[Part]]:
    """The description and the tensors of a dense layer that need not be there yet.

    Args:
        layer: gives the cache and which of its layers it is, when items are wanted.
        name, index: as for ``parts_of``.
        dtype, shape: those of the layer, [batch, head, query, key].
        source: where it comes from.
    """
    batch_size, n_heads, seq_q, seq_k = shape

    def pattern() -> npt.NDArray[Any]:
        cache, number = layer()
        return cache._memory(number)[0]

    def mean() -> npt.NDArray[np.float32]:
        cache, number = layer()
        alone = _core.Store()
        alone._set_index_policy("off")  # an index that is built on the way would stay in the cache
        alone._put_layer(0, cache, number)
        means = np.empty((batch_size, seq_q, seq_k), np.float32)
        for batch in range(batch_size):
            alone.head_mean(0, batch, out=means[batch])
        return means

    def mean_by_key() -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(mean().swapaxes(1, 2))

    parts = [Part(f"{name}.pattern", SAFETENSORS[dtype], shape, pattern)]
    if index and n_heads:  # the mean of none is NaN: nothing to keep
        parts.append(Part(f"{name}.mean", "F32", (batch_size, seq_q, seq_k), mean))
        parts.append(Part(f"{name}.mean_by_key", "F32", (batch_size, seq_k, seq_q), mean_by_key))
    return {"kind": "dense", **_entry(source)}, parts


def metadata_of(descriptions: Sequence[Description], said: Said) -> dict[str, str]:
    """What __metadata__ says of a cache, but for checksums."""
    entries = {"attncache": VERSION, "layers": descriptions, **said.entries()}
    return {
        name: value if name == "attncache" else json.dumps(value, separators=(",", ":"))
        for name, value in entries.items()
    }
