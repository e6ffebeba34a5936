"""Arrays on a device without any GPU package: memory of the CUDA library under test, behind each protocol.

`put` copies a NumPy array there, strides and all; what it returns can be pushed, and counts how often its memory is
given back.
"""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attncache import _core
from attncache.cuda import library
from attncache.cuda.device_array import Memory
from attncache.cuda.streams import DEFAULT
from tests.support.patterns import Array

KDL_CUDA = 2
CODES = {"b": 6, "i": 0, "u": 1, "f": 2}


class Placed:
    """An array on a device, in one block of memory, with the strides of the NumPy array it was copied from.

    Attributes:
        released: how often the memory was given back.
        streams: the streams that __dlpack__ was asked to make ready.
    """

    def __init__(self, array: Array, device: int = 0) -> None:
        if device >= (n_devices := library.load().number("device_count")):
            pytest.skip(f"needs {device + 1} devices, got {n_devices}")
        low, high = np.lib.array_utils.byte_bounds(array) if array.size else (0, 0)
        self.memory = Memory(library.load(), device, DEFAULT, high - low)
        self.address = self.memory.address + (array.ctypes.data - low if array.size else 0)
        self.shape, self.strides, self.dtype, self.device = array.shape, array.strides, array.dtype, device
        self.released = 0
        self.streams: list[Any] = []
        if array.size:
            loaded = library.load()
            with loaded.on(device):
                loaded.call("copy_to_device", self.memory.address, low, high - low, DEFAULT.handle)


class Counted:
    """What keeps placed memory alive, and tells when it no longer has to."""

    def __init__(self, placed: Placed) -> None:
        self.placed = placed

    def __del__(self) -> None:
        self.placed.released += 1


class ThroughDLPack(Placed):
    """Speaks DLPack 1 and before, and nothing else."""

    kind = KDL_CUDA

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, self.device

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None) -> Any:
        self.streams.append(stream)
        return self.capsule(max_version is not None)

    def capsule(self, is_versioned: bool) -> Any:
        is_bfloat16 = self.dtype == ml_dtypes.bfloat16
        code = 4 if is_bfloat16 else CODES[self.dtype.kind]
        dtype, device = (code, 8 * self.dtype.itemsize), self.__dlpack_device__()
        capsule = _core.dlpack_given(Counted(self), self.address, device, dtype, self.shape, is_versioned)
        strides = strides_in(capsule, is_versioned)
        for axis, stride in enumerate(self.strides):
            strides[axis] = stride // self.dtype.itemsize
        return capsule


class ThroughOldDLPack(ThroughDLPack):
    """The protocol as it was before versions: stream is the only option."""

    def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
        self.streams.append(stream)
        return self.capsule(False)


class ThroughInterface(Placed):
    """Shows nothing but __cuda_array_interface__."""

    changes: dict[str, Any] = {}  # noqa: RUF012

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, True),
            "strides": self.strides,
            "version": 3,
            "stream": None,
            **self.changes,
        }


def struct_in(capsule: Any, is_versioned: bool) -> int:
    """The address of the struct in a capsule."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return pointer(capsule, b"dltensor_versioned" if is_versioned else b"dltensor")


def strides_in(capsule: Any, is_versioned: bool) -> Any:
    """The strides that the struct in a capsule points at, to be written."""
    # DLTensor: data 8, device 8, ndim 4, dtype 4, shape 8, strides 8; before it, if versioned: 4, 4, 8, 8, 8
    at = struct_in(capsule, is_versioned) + (32 if is_versioned else 0) + 32
    return ctypes.cast(ctypes.c_void_p.from_address(at).value, ctypes.POINTER(ctypes.c_int64))


def major_in(capsule: Any) -> ctypes.c_uint32:
    """The major version in a capsule of DLPack 1, to be written."""
    return ctypes.c_uint32.from_address(struct_in(capsule, True))


WAYS = {"dlpack": ThroughDLPack, "old dlpack": ThroughOldDLPack, "interface": ThroughInterface}


def put(array: Array, device: int = 0) -> ThroughDLPack:
    """A copy of an array on a device."""
    return ThroughDLPack(array, device)
