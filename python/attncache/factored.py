"""Pushes factored layers: queries and keys that pattern_from_qk, AttentionCache and capture hand to the core."""

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
    dense = _core.Store()
    push_pattern_of(dense, query, key, options, dtype)
    return dense[0]


def push_pattern_of(cache: _core.Store, query: Any, key: Any, options: Options, dtype: StoredDType) -> None:
    """Append the dense pattern of queries and keys, computed block by block.

    Args:
        cache: where to.
        query, key, options: as for ``AttentionCache.push_qk``; the memory of both is borrowed where it can be.
        dtype: what the pattern is stored as.
    """
    factored = _core.Store()
    push_factors(factored, None, query, key, options, is_only_read=True)
    cache._push_dense_of(factored, 0, dtype)


def push_factors(
    cache: _core.Store,
    dtype: StoredDType | None,
    query: Any,
    key: Any,
    options: Options,
    *,
    copy: bool | None = None,
    is_only_read: bool = False,
) -> None:
    """``AttentionCache.push_qk`` on a cache that stores ``dtype``; ``is_only_read`` borrows writable memory too."""
    copy = checked_copy(copy)
    queries, keys = read_array(query, QUERY), read_array(key, KEY)
    scoring = checked_scoring(queries.array.shape, keys.array.shape, options)

    def prepared(source: ArrayInput, argument: Argument) -> tuple[npt.NDArray[Any], str, str, bool]:
        if is_only_read:
            source = source._replace(is_writable=False)
        stored = dtype or source.own_dtype
        return source.array, source.dtype, stored, source.borrows(stored, copy, argument)

    cache._push_qk(prepared(queries, QUERY), prepared(keys, KEY), *scoring)


def append_factors(cache: _core.Store, layer: int, query: Any, key: Any, key_mask: Any) -> None:
    """``AttentionCache.append_qk``."""
    queries, keys = read_array(query, QUERY), read_array(key, KEY)
    check_shapes(queries.array.shape, keys.array.shape)
    hidden = hidden_ranges(key_mask, (keys.array.shape[0], keys.array.shape[2]))
    cache._append_qk(layer, queries.array, queries.dtype, keys.array, keys.dtype, hidden)
