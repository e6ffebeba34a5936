"""Takes arrays that lie on a CUDA device, whoever made them, without copying them."""

from __future__ import annotations

import ctypes
import math
import weakref
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attncache import _core
from attncache.array_input import KDL_CUDA, KDL_CUDA_MANAGED, Argument
from attncache.cuda.library import Library, load, why_not
from attncache.cuda.streams import DEFAULT, OF_THREAD, OnStream, Stream
from attncache.cuda.structs import BAD_ARGUMENT

_BFLOAT = 4
_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}  # the codes of DLPack by NumPy's kinds
_VERSION = (1, 0)


class Found(NamedTuple):
    """An array on a device as its maker describes it.

    Attributes:
        owner: what keeps the memory valid.
        dtype: a name of NumPy's or bfloat16.
        strides: in bytes.
    """

    owner: Any
    address: int
    device: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    stream: Stream


class _Use:
    """How a borrowed array is used: on which stream, and whether the host has left work on it unfinished."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.is_unfinished = False


class Borrowed:
    """Memory on a device that somebody else owns, given back once and not before our work with it is done."""

    def __init__(self, library: Library, found: Found) -> None:
        self.library = library
        self.address, self.device, self.dtype = found.address, found.device, found.dtype
        self.shape, self.strides = found.shape, found.strides
        self._use = _Use(found.stream)
        given_back = weakref.finalize(self, _wait, library, found.device, self._use, found.owner)
        given_back.atexit = False  # the end of the process ends all work, and its owner may be gone by then

    @property
    def stream(self) -> Stream:
        """The stream in whose order the memory may be read."""
        return self._use.stream

    def move_to(self, stream: Stream) -> None:
        """Read it in the order of another stream from now on, which first waits for the one before."""
        before = self.stream
        if before.handle != stream.handle:
            with self.library.on(self.device):
                self.library.call("stream_wait", stream.handle, before.handle)
            self._use.stream = stream

    @property
    def item_bytes(self) -> int:
        """The bytes of one item."""
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        """The bytes of all items."""
        return math.prod(self.shape) * self.item_bytes

    def is_left_in_use(self) -> None:
        """Work on the stream uses the memory from now on, and the host does not wait for it."""
        self._use.is_unfinished = True

    def numpy(self) -> npt.NDArray[Any]:
        """A copy in CPU memory, C-contiguous; bfloat16 as uint16."""
        dtype = np.dtype(np.uint16 if self.dtype == "bfloat16" else self.dtype)
        if self.nbytes == 0:
            return np.empty(self.shape, dtype)
        reach = [(length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True)]
        first = sum(min(each, 0) for each in reach)  # what lies between the first and the last byte is copied at once
        span = np.empty(sum(max(each, 0) for each in reach) - first + self.item_bytes, np.uint8)
        with self.library.on(self.device):
            begin = self.address + first
            self.library.call("copy_to_host", span.ctypes.data, begin, span.nbytes, self.stream.handle)
        return np.ascontiguousarray(np.ndarray(self.shape, dtype, span.data, -first, self.strides))


def _wait(library: Library, device: int, use: _Use, _owner: object) -> None:
    """Before the owner is let go, which happens when this returns: our work with its memory must be done."""
    if use.is_unfinished:
        with suppress(RuntimeError, MemoryError), library.on(device):  # what fails here, fails at the next call too
            library.call("synchronize", use.stream.handle)


def borrow(values: Any, argument: Argument) -> Borrowed:
    """An array on a device, of any dtype and strides.

    Args:
        values: whatever has ``__dlpack__`` or ``__cuda_array_interface__`` there, or an ``OnStream`` of that.
        argument: how errors name it.

    Raises:
        ValueError: no device can be used here, or the array cannot be shared. TypeError: its items are of no known kind.
    """
    name = argument.name
    array, stream = values if isinstance(values, OnStream) else (values, None)
    reason = why_not()
    if reason is not None:
        raise ValueError(f"{name} must lie in CPU memory here, got an array on a CUDA device, and {reason}")
    if getattr(array, "requires_grad", False):
        array = array.detach()
    library = load()
    if hasattr(array, "__dlpack__"):
        return Borrowed(library, _from_dlpack(library, array, stream, name))
    if not hasattr(array, "__cuda_array_interface__"):
        raise TypeError(f"{name} must be an array on a CUDA device, got {type(array).__name__}")
    return Borrowed(library, _from_interface(library, array, stream, name))


def _from_dlpack(library: Library, array: Any, stream: Stream | None, name: str) -> Found:
    """DLPack has no stream of the maker's: the maker has ours wait for what it was given to do."""
    stream = stream or DEFAULT
    _check_device(array.__dlpack_device__(), name)
    try:
        with library.on(int(array.__dlpack_device__()[1])):  # torch gives none of another device than the current one
            try:
                capsule = array.__dlpack__(stream=stream.handle, max_version=_VERSION)
            except TypeError:  # made before DLPack 1
                capsule = array.__dlpack__(stream=stream.handle)
        owner, address, place, (code, bits, lanes), shape, strides = _core.dlpack_taken(capsule)
    except BufferError as error:
        raise ValueError(f"{name} must be an array that can be shared: {error}") from error
    _check_device(place, name)
    dtype = _dtype_of(code, bits) if lanes == 1 else None
    if dtype is None:
        raise TypeError(f"{name} must hold numbers, got items of DLPack type {(code, bits, lanes)}")
    item = bits // 8
    return Found(owner, address, place[1], dtype, shape, tuple(item * each for each in strides), stream)


def _check_device(place: tuple[int, int], name: str) -> None:
    if place[0] not in (KDL_CUDA, KDL_CUDA_MANAGED):
        raise ValueError(f"{name} must lie on a CUDA device, got DLPack device ({int(place[0])}, {place[1]})")


def _dtype_of(code: int, bits: int) -> str | None:
    if (code, bits) == (_BFLOAT, 16):
        return "bfloat16"
    kinds = [kind for kind, known in _KINDS.items() if known == code]
    try:
        return np.dtype(f"{kinds[0]}{bits // 8}").name if kinds else None
    except TypeError:
        return None


def _from_interface(library: Library, array: Any, stream: Stream | None, name: str) -> Found:
    """The CUDA Array Interface names the maker's stream, which is then ours."""
    described = array.__cuda_array_interface__
    if described.get("mask") is not None:
        raise ValueError(f"{name} must have no mask, got an array with one")
    dtype = np.dtype(described["typestr"])
    if dtype.kind not in _KINDS or not dtype.isnative:
        raise TypeError(f"{name} must hold numbers in this machine's byte order, got {described['typestr']}")
    shape, strides = tuple(map(int, described["shape"])), described.get("strides")
    if strides is None:
        strides = np.empty(shape, dtype).strides if 0 in shape else _contiguous(shape, dtype.itemsize)
    address = int(described["data"][0] or 0)
    device = _device_of(library, address, name)
    if address == 0 and 0 not in shape:
        raise ValueError(f"{name} must lie on a CUDA device, got address 0 for an array of shape {shape}")
    makers = described.get("stream")
    if makers is not None and (not isinstance(makers, int) or makers < 1):
        raise ValueError(f"{name} must name its stream by 1, 2 or a handle, got {makers!r}")
    own = DEFAULT if makers in (None, OF_THREAD) else Stream(makers, array)
    ours = stream or own
    if makers not in (None, ours.handle):
        with library.on(device):
            library.call("stream_wait", ours.handle, makers)
    return Found(array, address, device, dtype.name, shape, tuple(map(int, strides)), ours)


def _device_of(library: Library, address: int, name: str) -> int:
    """The device that memory lies on; of no memory, the current one."""
    if address == 0:
        return library.number("get_device")
    found = ctypes.c_int()
    status = library.status("device_of", address, ctypes.byref(found))
    if status == BAD_ARGUMENT:
        raise ValueError(f"{name} must lie on a CUDA device, got an address of the host: {address:#x}")
    library.check("device_of", status)
    return found.value


def _contiguous(shape: tuple[int, ...], item: int) -> tuple[int, ...]:
    """The strides of a C-contiguous array, in bytes."""
    strides = [item]
    for length in reversed(shape[1:]):
        strides.insert(0, strides[0] * length)
    return tuple(strides[: len(shape)])


def borrow_rows(values: Any, argument: Argument) -> Borrowed:
    """A pattern, queries or keys on a device.

    Raises:
        As ``borrow``; TypeError also if the items are no floats, ValueError if they are not float16, bfloat16 or
        float32, the array has other than four axes, or its last axis is not contiguous.
    """
    name = argument.name
    borrowed = borrow(values, argument)
    if borrowed.dtype == "float64":
        raise ValueError(f"{name} must hold float16, bfloat16 or float32, got float64; convert it on its device first")
    if borrowed.dtype not in ("float16", "bfloat16", "float32"):
        raise TypeError(f"{name} must hold float16, bfloat16 or float32, got {borrowed.dtype}")
    if len(borrowed.shape) != 4:
        raise ValueError(f"{name} must have the 4 axes {argument.axes}, got shape {borrowed.shape}")
    item = borrowed.item_bytes
    if borrowed.nbytes >= 2**63:
        raise ValueError(f"{name} must be of a size that memory can have, got shape {borrowed.shape}")
    if borrowed.nbytes and borrowed.shape[3] > 1 and borrowed.strides[3] != item:
        raise ValueError(
            f"{name} must be contiguous along its last axis, got strides {borrowed.strides} in bytes; "
            f"pass {name}.contiguous()"
        )
    steps = [stride for length, stride in zip(borrowed.shape, borrowed.strides, strict=True) if length > 1]
    if borrowed.nbytes and (borrowed.address % item or any(step % item for step in steps)):
        where = f"address {borrowed.address:#x} and strides {borrowed.strides} in bytes"
        raise ValueError(f"{name} must be aligned to its items, got {where}")
    return borrowed


def host_values(values: Any, argument: Argument) -> npt.NDArray[Any]:
    """A small array on a device as a copy in CPU memory; bfloat16 as float32."""
    borrowed = borrow(values, argument)
    copy = borrowed.numpy()
    if borrowed.dtype == "bfloat16":
        return (copy.astype(np.uint32) << 16).view(np.float32)
    return copy
