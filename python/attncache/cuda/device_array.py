"""DeviceArray: an answer in the memory of a device, handed on without the host."""

from __future__ import annotations

import ctypes
import math
import sys
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from attncache import _core
from attncache.cuda.library import Library
from attncache.cuda.streams import DEFAULT, OF_THREAD, Stream

KDL_CUDA = 2
_DLPACK_CODES = {"i": 0, "f": 2}


class Memory:
    """Memory on a device that is freed with its last user, after all that its stream was given to do until then.

    Args:
        library, device, stream: where, and in whose order.
        n_bytes: how many; of 0 the address is 0.

    Raises:
        MemoryError: the device does not have them.
    """

    def __init__(self, library: Library, device: int, stream: Stream, n_bytes: int) -> None:
        self.library, self.device, self.stream = library, device, stream
        self.address = 0
        self._has_strangers = False  # whether work on other streams may use the memory
        if n_bytes == 0:
            return
        if n_bytes >= 2**63:
            raise MemoryError(f"the device has no {n_bytes} bytes")
        found = ctypes.c_void_p()
        with library.on(device):
            library.call("allocate", n_bytes, stream.handle, ctypes.byref(found))
        self.address = found.value or 0

    def __del__(self) -> None:
        if getattr(self, "address", 0) and not sys.is_finalizing():  # the end of the process frees it
            self._free()

    def is_shared_with_strangers(self) -> None:
        """Work on streams that are not known may use the memory from now on."""
        self._has_strangers = True

    def _free(self) -> None:
        library = self.library
        with suppress(RuntimeError, MemoryError), library.on(self.device):  # what fails here, failed before
            if self._has_strangers:
                with suppress(RuntimeError, MemoryError):
                    library.call("synchronize_device")
            library.call("free", self.address, self.stream.handle)


class DeviceArray:
    """A C-contiguous array in the memory of a CUDA device, the answer to a query with ``device_result=True``.

    It may not be computed yet when it is returned: whoever reads it on the device through DLPack
    (``torch.from_dlpack(answer)``) or ``__cuda_array_interface__`` has its stream wait for it, and ``numpy()`` waits.

    Attributes:
        shape: the lengths of its axes.
        dtype: float32 or int64.
        device: such as "cuda:0".
    """

    def __init__(self, memory: Memory, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._memory = memory
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.device = f"cuda:{memory.device}"

    @classmethod
    def empty(
        cls, library: Library, device: int, stream: Stream, shape: tuple[int, ...], dtype: npt.DTypeLike
    ) -> DeviceArray:
        """An array to be filled on that stream."""
        memory = Memory(library, device, stream, math.prod(shape) * np.dtype(dtype).itemsize)
        return cls(memory, shape, dtype)

    @property
    def address(self) -> int:
        """Where it lies; 0 if it has no items."""
        return self._memory.address

    @property
    def stream(self) -> int:
        """The stream that computes it, as DLPack numbers them."""
        return self._memory.stream.handle

    @property
    def nbytes(self) -> int:
        """The bytes that it takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def numpy(self, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """A copy in CPU memory, once it is computed.

        Args:
            out: None, or a C-contiguous array of its shape and dtype to copy into and return.
        """
        host = np.empty(self.shape, self.dtype) if out is None else out
        if (host.shape, host.dtype) != (self.shape, self.dtype) or not host.flags.carray:
            raise ValueError(f"out must be a C-contiguous {self.dtype} array of shape {self.shape}, got {host.shape}")
        if self.nbytes:
            memory = self._memory
            with memory.library.on(memory.device):
                memory.library.call("copy_to_host", host.ctypes.data, self.address, self.nbytes, self.stream)
        return host

    def __array__(self, *_: Any, **__: Any) -> npt.NDArray[Any]:
        raise TypeError(f"an array on {self.device} must not become a NumPy array by itself; ask for its numpy()")

    def __dlpack_device__(self) -> tuple[int, int]:
        return KDL_CUDA, self._memory.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule; ``stream``, or the legacy default stream for None, then waits until it is computed."""
        if copy:
            raise BufferError("copy must be None or False, got True: an answer is nobody else's already")
        if dl_device is not None and tuple(map(int, dl_device)) != self.__dlpack_device__():
            raise BufferError(
                f"dl_device must be {self.__dlpack_device__()}, got {dl_device}; numpy() copies to the host"
            )
        if stream is not None and type(stream) is not int:
            raise TypeError(f"stream must be an int or None, got {type(stream).__name__}")
        if stream is not None and (stream < -1 or stream == 0):
            raise ValueError(
                "stream must be -1, 1 for the legacy default stream, 2 for the thread's, or a handle; "
                f"got {stream}{', which is ambiguous' if stream == 0 else ''}"
            )
        wanted = DEFAULT.handle if stream is None else stream
        memory = self._memory
        is_same = wanted == self.stream and wanted != OF_THREAD
        if not is_same:
            memory.is_shared_with_strangers()
        if not is_same and wanted != -1 and self.address:  # -1: whoever takes it waits by other means
            with memory.library.on(memory.device):
                memory.library.call("stream_wait", wanted, self.stream)
        dtype = _DLPACK_CODES[self.dtype.kind], 8 * self.dtype.itemsize
        is_versioned = max_version is not None and max_version[0] >= 1
        return _core.dlpack_given(memory, self.address, self.__dlpack_device__(), dtype, self.shape, is_versioned)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self._memory.is_shared_with_strangers()
        data = (self.address, False)
        described = {"shape": self.shape, "typestr": self.dtype.str, "data": data, "strides": None, "version": 3}
        return {**described, "stream": self.stream}

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray({list(self.shape)} {self.dtype} on {self.device})"
