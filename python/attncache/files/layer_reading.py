"""Layers of a file into a cache, over the memory that the bytes of the file lie in."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from attncache.array_input import ArrayInput, StoredDType
from attncache.factored import push_factors
from attncache.files.errors import damaged
from attncache.files.safetensors import Tensor
from attncache.files.schema import STORED, StoredLayer
from attncache.scoring import Options

if TYPE_CHECKING:
    from attncache.cache import AttentionCache

_Path = str | PathLike[str]
_NUMPY = {"F16": np.float16, "BF16": np.uint16, "F32": np.float32, "BOOL": np.uint8}


def push_layer(
    cache: AttentionCache,
    layer: StoredLayer,
    whole: npt.NDArray[np.uint8],
    path: _Path,
    policy: str,
    *,
    dtype: StoredDType | None = None,
) -> None:
    """Append a layer of a file to a store, over the memory that the file's bytes lie in.

    Args:
        cache: where to, with where it comes from.
        layer: which.
        whole: all bytes of the file, read-only.
        path: how errors name the file.
        policy: the cache's index policy; "off" leaves an index in the file alone, which changes no answer.
        dtype: what to store it as; None keeps its dtype, and so does not copy. Another dtype takes no index from the file.

    Raises:
        DamagedFileError: the layer's numbers break a rule of ``push_qk``.
    """

    def array(name: str) -> npt.NDArray[Any]:
        tensor = layer.tensors[name]
        items = whole[tensor.begin : tensor.end].view(_NUMPY[tensor.dtype])
        return items.reshape(tensor.shape)

    def floats(name: str) -> npt.NDArray[np.float32]:
        return np.require(array(name), requirements=["C", "A"])

    is_kept = dtype in (None, STORED[layer.tensors["pattern" if "pattern" in layer.tensors else "key"].dtype])
    has_index = "mean" in layer.tensors and policy != "off" and is_kept
    if layer.description["kind"] == "dense":
        source = _source(array("pattern"), layer.tensors["pattern"])
        cache._set_index_policy("off" if has_index else policy)
        stored = dtype or source.own_dtype
        cache._push(source.array, source.dtype, stored, source.borrows(stored, None))
        if has_index:
            cache._set_index_policy(policy)
            for batch, (by_query, by_key) in enumerate(zip(floats("mean"), floats("mean_by_key"), strict=True)):
                cache._set_index(-1, batch, by_query, by_key)
        cache._remember_source(cache.n_layers - 1, layer.source)
        return
    given: dict[str, Any] = {name: layer.description.get(name) for name in ("scale", "causal", "window", "softcap")}
    for name in ("key_mask", "sinks", "lse"):
        given[name] = floats(name) if name in layer.tensors else None
    if type(given["scale"]) not in (int, float):
        raise damaged(path, f"layers.{layer.number}: its scale", "must be a number", repr(given["scale"])[:80])
    try:
        query = _source(array("query"), layer.tensors["query"])
        push_factors(cache, dtype, query, _source(array("key"), layer.tensors["key"]), Options(**given))
    except (TypeError, ValueError) as error:
        raise damaged(path, f"layers.{layer.number}", "must fit together as push_qk asks", error) from error
    cache._remember_source(cache.n_layers - 1, layer.source)
    if "row_sum" not in layer.tensors:
        return
    if given["lse"] is not None:
        cache._give_row_sums(-1, floats("row_greatest"), floats("row_sum"))
    elif is_kept:
        cache._set_row_sums(-1, floats("row_greatest"), floats("row_sum"))


def _source(array: npt.NDArray[Any], tensor: Tensor) -> ArrayInput:
    dtype: StoredDType = STORED[tensor.dtype]  # type: ignore[assignment]
    return ArrayInput(array, dtype, is_writable=False)
