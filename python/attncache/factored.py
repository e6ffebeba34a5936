"""Makes factored layers: of queries and keys that pattern_from_qk, AttentionCache and capture hand in."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from attncache import _core
from attncache.array_input import Argument, ArrayInput, StoredDType, checked_copy, read_array, stored_dtype
from attncache.scoring import Options, check_shapes, checked_scoring, hidden_ranges

QUERY = Argument("query", "[batch, head, query, item]")
KEY = Argument("key", "[batch, key head, key, item]")


def pattern_from_qk(
    query: Any,
    key: Any,
    *,
    dtype: StoredDType | npt.DTypeLike = "float32",
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    key_mask: Any = None,
    lse: Any = None,
    sinks: Any = None,
) -> npt.NDArray[Any]:
    """The dense pattern of queries and keys, computed block by block.

    Args:
        query: float16, bfloat16 or float32 array of shape [batch, head, query, item], after rotary embedding.
        key: the same of shape [batch, key head, key, item].
        dtype: "float16", "bfloat16" (which needs ml_dtypes) or "float32".
        scale, causal, window, softcap, key_mask, lse, sinks: as for ``AttentionCache.push_qk``.

    Returns:
        A new read-only array of shape [batch, head, query, key], which ``push`` borrows without a copy. Bounded: float32
        weights as ``AttentionCache.rows`` gives them, rounded once to dtype.

    Raises:
        As ``AttentionCache.push_qk``.

    >>> pattern_from_qk(np.zeros((1, 1, 2, 4), np.float32), np.zeros((1, 1, 2, 4), np.float32))
    array([[[[1. , 0. ],
             [0.5, 0.5]]]], dtype=float32)
    """
    options = Options(scale, causal, window, softcap, key_mask, lse, sinks)
    return dense_pattern(query, key, options, stored_dtype(dtype) or "float32")


def dense_pattern(query: Any, key: Any, options: Options, dtype: StoredDType) -> npt.NDArray[Any]:
    """``pattern_from_qk`` with its options as one value."""
    return pattern_layer(query, key, options, dtype).pattern()


def pattern_layer(query: Any, key: Any, options: Options, dtype: StoredDType) -> _core.Layer:
    """The dense layer of queries and keys, computed block by block; the memory of both is borrowed where it can be."""
    return factored_layer(None, query, key, options, is_only_read=True).to_dense(dtype)


def factored_layer(
    dtype: StoredDType | None,
    query: Any,
    key: Any,
    options: Options,
    *,
    copy: bool | None = None,
    is_only_read: bool = False,
) -> _core.Layer:
    """The layer that ``AttentionCache.push_qk`` makes; ``is_only_read`` borrows writable memory too."""
    copy = checked_copy(copy)
    queries, keys = read_array(query, QUERY), read_array(key, KEY)
    scoring = checked_scoring(queries.array.shape, keys.array.shape, options)

    def prepared(source: ArrayInput, argument: Argument) -> tuple[npt.NDArray[Any], str, str, bool]:
        if is_only_read:
            source = source._replace(is_writable=False)
        stored = dtype or source.own_dtype
        return source.array, source.dtype, stored, source.borrows(stored, copy, argument)

    return _core.Layer.factored(prepared(queries, QUERY), prepared(keys, KEY), scoring.for_core(), scoring.lse)


def longer_layer(
    cache: _core.Store, number: int, query: Any, key: Any, key_mask: Any
) -> tuple[_core.Layer, _core.Layer]:
    """A factored layer of a cache, and the one that ``AttentionCache.append_qk`` puts in its place."""
    queries, keys = read_array(query, QUERY), read_array(key, KEY)  # as they are before reading a number may run code
    check_shapes(queries.array.shape, keys.array.shape)
    hidden = hidden_ranges(key_mask, (keys.array.shape[0], keys.array.shape[2]))
    before = queries_and_keys(cache, number)
    return before, before.with_more(queries.array, queries.dtype, keys.array, keys.dtype, hidden)


def queries_and_keys(cache: _core.Store, number: int) -> _core.Layer:
    """A layer of a cache that must be a factored one in CPU memory.

    Raises:
        IndexError: there is no such layer. ValueError: it is dense, or lies on a device.
    """
    layer = cache._layer(number)
    if layer.device != "cpu":
        raise ValueError(
            f"the layer must lie in CPU memory, got one on {layer.device}; cache.cpu() gives a copy of the cache there"
        )
    if layer.kind != "factored":
        rule = f"layer must be a factored one, got {number}, which is {layer.kind}"
        raise ValueError(f"{rule}: it has a pattern but no queries and keys")
    return layer
