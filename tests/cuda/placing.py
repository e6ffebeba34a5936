"""Arrays on a device without any GPU package: memory of the CUDA library under test, behind each protocol.

`put` copies a NumPy array there, strides and all; what it returns can be pushed or written into, and counts how often its
memory is given back.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attncache.cuda import library
from cuda.header import Library
from tests.support.patterns import Array

KDL_CUDA = 2
STREAM = 1  # the legacy default one
CODES = {"b": 6, "i": 0, "u": 1, "f": 2}


@functools.cache
def loaded(path: Path) -> Library:
    return Library(path)


def number(name: str, *arguments: Any) -> int:
    """What a function of the library under test gives through its last argument."""
    found = ctypes.c_int()
    loaded(library.PATH).call(name, *arguments, ctypes.byref(found))
    return found.value


class Memory:
    """Device memory that is freed with its last user."""

    def __init__(self, device: int, n_bytes: int) -> None:
        self.library, self.device = loaded(library.PATH), device
        found = ctypes.c_void_p()
        self.call("allocate", n_bytes, STREAM, ctypes.byref(found))
        self.address = found.value or 0

    def call(self, name: str, *arguments: Any) -> None:
        before = number("get_device")
        self.library.call("set_device", self.device)
        try:
            self.library.call(name, *arguments)
        finally:
            self.library.call("set_device", before)

    def __del__(self) -> None:
        if getattr(self, "address", 0):
            self.call("free", self.address, STREAM)


class Placed:
    """An array on a device, in one block of memory, with the strides of the NumPy array it was copied from.

    Attributes:
        released: how often the memory was given back.
        streams: the streams that __dlpack__ was asked to make ready.
    """

    def __init__(self, array: Array, device: int = 0) -> None:
        if device >= (n_devices := number("device_count")):
            pytest.skip(f"needs {device + 1} devices, got {n_devices}")
        low, high = np.lib.array_utils.byte_bounds(array) if array.size else (0, 0)
        self.memory = Memory(device, high - low)
        self.address = self.memory.address + (array.ctypes.data - low if array.size else 0)
        self.shape, self.strides, self.dtype, self.device = array.shape, array.strides, array.dtype, device
        self.released = 0
        self.streams: list[Any] = []
        if array.size:
            self.memory.call("copy_to_device", self.memory.address, low, high - low, STREAM)

    def numpy(self) -> Array:
        """A copy in CPU memory of an array that is C-contiguous."""
        host = np.empty(self.shape, self.dtype)
        self.memory.call("copy_to_host", host.ctypes.data, self.address, host.nbytes, STREAM)
        return host


class Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class Versioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


GIVEN: dict[int, tuple[Any, ...]] = {}  # what capsules point at, by the address of the struct


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def delete(address: int) -> None:
    GIVEN.pop(address)[0].released += 1


class ThroughDLPack(Placed):
    """Speaks DLPack 1 and before, and nothing else.

    Attributes:
        changes: what its capsules say otherwise: fields of the struct, or of the tensor in it.
    """

    kind = KDL_CUDA
    changes: dict[str, Any] = {}  # noqa: RUF012

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, self.device

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None) -> Any:
        self.streams.append(stream)
        return self.capsule(max_version is not None)

    def capsule(self, is_versioned: bool) -> Any:
        code = 4 if self.dtype == ml_dtypes.bfloat16 else CODES[self.dtype.kind]
        item, n = self.dtype.itemsize, len(self.shape)
        shape = (ctypes.c_int64 * n)(*self.shape)
        strides = (ctypes.c_int64 * n)(*(step // item for step in self.strides))
        place = (ctypes.c_int32 * 2)(self.kind, self.device)
        tensor = Tensor(self.address, place, n, code, 8 * item, 1, shape, strides, 0)
        deleter = ctypes.cast(delete, ctypes.c_void_p).value
        managed: Any = Versioned((1, 0), None, deleter, 0, tensor) if is_versioned else Managed(tensor, None, deleter)
        for name, value in self.changes.items():
            setattr(managed.tensor if hasattr(tensor, name) else managed, name, value)
        GIVEN[ctypes.addressof(managed)] = self, managed, shape, strides
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return make(ctypes.addressof(managed), b"dltensor_versioned" if is_versioned else b"dltensor", None)


class ThroughOldDLPack(ThroughDLPack):
    """The protocol as it was before versions: stream is the only option."""

    def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
        self.streams.append(stream)
        return self.capsule(False)


class ThroughInterface(Placed):
    """Shows nothing but __cuda_array_interface__.

    Attributes:
        changes: what it says otherwise.
    """

    changes: dict[str, Any] = {}  # noqa: RUF012

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": self.strides,
            "version": 3,
            "stream": None,
            **self.changes,
        }


WAYS = {"dlpack": ThroughDLPack, "old dlpack": ThroughOldDLPack, "interface": ThroughInterface}


def put(array: Array, device: int = 0) -> ThroughDLPack:
    """A copy of an array on a device."""
    return ThroughDLPack(array, device)


def changed(way: type[Placed], array: Array, **changes: Any) -> Placed:
    """A copy of an array on a device that says something else of itself."""
    return type("Changed", (way,), {"changes": changes})(array)
