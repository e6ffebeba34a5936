"""Takes arrays on a CUDA device apart, whoever made them: what pushes make layers of, and what answers are written into."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attncache import _core
from attncache.array_input import KDL_CUDA, KDL_CUDA_MANAGED, is_on_device
from attncache.cuda.library import devices, why_not
from attncache.cuda.streams import DEFAULT, OF_THREAD, OnStream

_BFLOAT = 4
_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}  # the codes of DLPack by NumPy's kinds
_VERSION = (1, 0)


class DeviceArray(NamedTuple):
    """An array on a device as its maker describes it.

    Attributes:
        owner: what keeps the memory and the stream valid.
        dtype: a name of NumPy's or bfloat16.
        strides: in bytes.
        stream: in whose order the memory may be used, as DLPack numbers them.
    """

    owner: Any
    address: int
    device: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    stream: int
    is_read_only: bool

    @property
    def item_bytes(self) -> int:
        """The bytes of one item."""
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize

    def numpy(self) -> npt.NDArray[Any]:
        """A copy in CPU memory; bfloat16 as float32."""
        dtype = np.dtype(np.uint16 if self.dtype == "bfloat16" else self.dtype)
        if 0 in self.shape:
            return np.empty(self.shape, dtype)
        reach = [(length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True)]
        first = sum(min(each, 0) for each in reach)  # what lies between the first and the last byte is copied at once
        n_bytes = sum(max(each, 0) for each in reach) - first + dtype.itemsize
        span = devices().bytes_of(self.device, self.address + first, n_bytes, self.stream)
        copy = np.ndarray(self.shape, dtype, span.data, -first, self.strides)
        return (copy.astype(np.uint32) << 16).view(np.float32) if self.dtype == "bfloat16" else copy


def device_array(values: Any, name: str) -> DeviceArray:
    """An array on a device, of any dtype and strides.

    Args:
        values: whatever has ``__dlpack__`` or ``__cuda_array_interface__`` there, or an ``OnStream`` of that.
        name: of the argument, for errors.

    Raises:
        ValueError: no device can be used here, or the array cannot be shared. TypeError: its items are of no known kind.
    """
    array, stream, owner = values if isinstance(values, OnStream) else (values, None, None)
    reason = why_not()
    if reason is not None:
        raise ValueError(f"{name} must lie in CPU memory here, got an array on a CUDA device, and {reason}")
    if getattr(array, "requires_grad", False):
        array = array.detach()
    if hasattr(array, "__dlpack__"):
        return _from_dlpack(array, stream or DEFAULT, owner, name)
    if hasattr(array, "__cuda_array_interface__"):
        return _from_interface(array, stream, owner, name)
    raise TypeError(f"{name} must be an array on a CUDA device, got {type(array).__name__}")


def _from_dlpack(array: Any, stream: int, stream_owner: Any, name: str) -> DeviceArray:
    """DLPack has no stream of the maker's: the maker has ours wait for what it was given to do."""
    place = array.__dlpack_device__()
    _check_device(place, name)
    before = devices().use(int(place[1]))  # torch gives none of another device than the current one
    try:
        try:
            capsule = array.__dlpack__(stream=stream, max_version=_VERSION)
        except TypeError:  # made before DLPack 1
            capsule = array.__dlpack__(stream=stream)
        owner, address, place, (code, bits, lanes), shape, strides, is_read_only = _core.dlpack_taken(capsule)
    except BufferError as error:
        raise ValueError(f"{name} must be an array that can be shared: {error}") from error
    finally:
        devices().use(before)
    _check_device(place, name)
    dtype = _dtype_of(code, bits) if lanes == 1 else None
    if dtype is None:
        raise TypeError(f"{name} must hold numbers, got items of DLPack type {(code, bits, lanes)}")
    steps = tuple(bits // 8 * each for each in strides)
    return DeviceArray((owner, stream_owner), address, place[1], dtype, shape, steps, stream, is_read_only)


def _check_device(place: tuple[int, int], name: str) -> None:
    if place[0] not in (KDL_CUDA, KDL_CUDA_MANAGED):
        raise ValueError(f"{name} must lie on a CUDA device, got DLPack device ({int(place[0])}, {place[1]})")


@functools.cache
def _dtype_of(code: int, bits: int) -> str | None:
    if (code, bits) == (_BFLOAT, 16):
        return "bfloat16"
    kinds = [kind for kind, known in _KINDS.items() if known == code]
    try:
        return np.dtype(f"{kinds[0]}{bits // 8}").name if kinds else None
    except TypeError:
        return None


@functools.cache
def _numbers(typestr: str) -> tuple[str, int] | None:
    """The name and the size of numbers in this machine's byte order; None of anything else."""
    dtype = np.dtype(typestr)
    return (dtype.name, dtype.itemsize) if dtype.kind in _KINDS and dtype.isnative else None


def _from_interface(array: Any, stream: int | None, stream_owner: Any, name: str) -> DeviceArray:
    """The CUDA Array Interface names the maker's stream, which is then ours."""
    described = array.__cuda_array_interface__
    if described.get("mask") is not None:
        raise ValueError(f"{name} must have no mask, got an array with one")
    numbers = _numbers(described["typestr"])
    if numbers is None:
        raise TypeError(f"{name} must hold numbers in this machine's byte order, got {described['typestr']}")
    dtype, item = numbers
    shape = tuple(map(int, described["shape"]))
    strides = tuple(map(int, described.get("strides") or _contiguous(shape, item)))
    address, is_read_only = int(described["data"][0] or 0), bool(described["data"][1])
    device = devices().device_of(address)
    if device is None:
        raise ValueError(f"{name} must lie on a CUDA device, got an address of the host: {address:#x}")
    if address == 0 and 0 not in shape:
        raise ValueError(f"{name} must lie on a CUDA device, got address 0 for an array of shape {shape}")
    makers = described.get("stream")
    if makers is not None and (not isinstance(makers, int) or makers < 1):
        raise ValueError(f"{name} must name its stream by 1, 2 or a handle, got {makers!r}")
    ours = stream or (DEFAULT if makers in (None, OF_THREAD) else makers)
    if makers not in (None, ours):
        devices().wait(device, ours, makers)
    return DeviceArray((array, stream_owner), address, device, dtype, shape, strides, ours, is_read_only)


def _contiguous(shape: tuple[int, ...], item: int) -> tuple[int, ...]:
    """The strides of a C-contiguous array, in bytes."""
    return tuple(item * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def result_on(out: Any, device: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Where an answer of layers on a device goes: address and stream of ``out``, or None if it is no array on a device.

    Raises:
        ValueError: it lies on another device, or is no writable C-contiguous float32 array of that shape.
    """
    if not is_on_device(out):
        return None
    if getattr(out, "requires_grad", False):
        raise ValueError("out must not require a gradient, got a tensor that does; pass out.detach()")
    found = device_array(out, "out")
    if f"cuda:{found.device}" != device:
        raise ValueError(f"out must lie on {device} as the layers do, got an array on cuda:{found.device}")
    steps = [step for length, step in zip(found.shape, found.strides, strict=True) if length > 1]
    wanted = [step for length, step in zip(shape, _contiguous(shape, 4), strict=True) if length > 1]
    is_whole = found.shape == shape and (steps == wanted or 0 in shape)
    if found.dtype != "float32" or not is_whole or found.is_read_only or found.address % 4:
        kind = "read-only " if found.is_read_only else ""
        raise ValueError(
            f"out must be a writable, aligned, C-contiguous float32 array of shape {shape}, "
            f"got {found.dtype} of shape {found.shape} with {kind}strides {found.strides}"
        )
    return found.address, found.stream
