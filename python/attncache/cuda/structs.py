"""The structs of cpp/cuda/attncache_cuda.h, field by field."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from attncache.array_input import StoredDType

INTERFACE = 2  # ATTNCACHE_CUDA_INTERFACE
BAD_ARGUMENT, TOO_LARGE = -1, -2

Indices: TypeAlias = npt.NDArray[np.int64]

_DTYPES = {"float16": 0, "bfloat16": 1, "float32": 2}


class Pattern(ctypes.Structure):
    """attncache_cuda_pattern."""

    _fields_ = (
        ("device_data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("batch_size", ctypes.c_int64),
        ("n_heads", ctypes.c_int64),
        ("seq_q", ctypes.c_int64),
        ("seq_k", ctypes.c_int64),
        ("batch_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("query_stride", ctypes.c_int64),
    )

    @classmethod
    def over(cls, address: int, dtype: StoredDType, shape: Sequence[int], strides: Sequence[int]) -> Pattern:
        """An array of four axes at that address, strides in bytes."""
        return cls(address, _DTYPES[dtype], *shape, *strides[:3])


class Selection(ctypes.Structure):
    """attncache_cuda_selection."""

    _fields_ = (
        ("layers", ctypes.POINTER(Pattern)),
        ("n_layers", ctypes.c_int64),
        ("batches", ctypes.c_void_p),
        ("n_batches", ctypes.c_int64),
        ("heads", ctypes.c_void_p),
        ("n_heads", ctypes.c_int64),
        ("mean_heads", ctypes.c_int32),
    )

    @classmethod
    def of(cls, layers: Sequence[Pattern], batches: Indices, heads: Indices, mean_heads: bool) -> Selection:
        """What those layers and indices pick."""
        array = (Pattern * len(layers))(*layers)
        selection = cls(array, len(layers), *listed(batches), *listed(heads), mean_heads)
        selection.kept = (batches, heads)  # an address keeps nothing alive
        return selection


class Factored(ctypes.Structure):
    """attncache_cuda_factored."""

    _fields_ = (
        ("query", Pattern),
        ("key", Pattern),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("causal", ctypes.c_int32),
        ("window", ctypes.c_int64),
        ("device_hidden", ctypes.c_void_p),
        ("device_sinks", ctypes.c_void_p),
        ("device_lse", ctypes.c_void_p),
    )


def listed(indices: Indices) -> tuple[int, int]:
    """Where indices lie, which the caller keeps alive, and their number: arguments of a call."""
    return indices.ctypes.data, len(indices)


_POINTER, _SIZE, _COUNT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
_INT = ctypes.POINTER(ctypes.c_int)
_LIST = (_POINTER, _COUNT)

SIGNATURES: dict[str, tuple[Any, ...]] = {
    "device_count": (_INT,),
    "versions": (_INT, _INT),
    "set_device": (ctypes.c_int,),
    "get_device": (_INT,),
    "device_of": (_POINTER, _INT),
    "allocate": (_SIZE, _POINTER, ctypes.POINTER(_POINTER)),
    "free": (_POINTER, _POINTER),
    "copy_to_host": (_POINTER, _POINTER, _SIZE, _POINTER),
    "copy_to_device": (_POINTER, _POINTER, _SIZE, _POINTER),
    "synchronize": (_POINTER,),
    "synchronize_device": (),
    "stream_wait": (_POINTER, _POINTER),
    "rows": (ctypes.POINTER(Selection), *_LIST, _POINTER, _POINTER),
    "columns": (ctypes.POINTER(Selection), *_LIST, _POINTER, _POINTER),
    "edges": (ctypes.POINTER(Selection), *_LIST, *_LIST, _POINTER, _POINTER),
    "top_k": (_POINTER, _COUNT, _COUNT, _COUNT, _POINTER, _POINTER, _POINTER),
    "top_k_rows": (ctypes.POINTER(Selection), *_LIST, _COUNT, _POINTER, _POINTER, _POINTER),
    "factored_rows": (ctypes.POINTER(Factored), *_LIST, *_LIST, ctypes.c_int32, *_LIST, _POINTER, _POINTER),
}
