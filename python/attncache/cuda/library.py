"""libattncache_cuda: found in the package's folder, loaded on first use, its statuses turned into exceptions."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

from attncache.cuda.structs import INTERFACE, SIGNATURES, TOO_LARGE

NAME = "attncache_cuda.dll" if sys.platform == "win32" else "libattncache_cuda.so"
PATH = Path(__file__).parent.parent / NAME

_MEMORY_ALLOCATION, _INSUFFICIENT_DRIVER, _NO_DEVICE = 2, 35, 100  # of cudaError_t
_PREFIX = "attncache_cuda_"


class UnavailableError(RuntimeError):
    """The library cannot be used; the message says why."""


class Library:
    """The loaded library.

    Args:
        path: the file.

    Raises:
        UnavailableError: there is none, it cannot be loaded, or it is of another version.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise UnavailableError(
                f"attncache was built without CUDA: there is no {path.name} in {path.parent}; "
                "pip install . -Ccmake.define.ATTNCACHE_CUDA=ON builds it (docs/cuda.md)"
            )
        try:
            self._library = ctypes.CDLL(str(path))
            version = int(self._function("interface", ())())
            if version != INTERFACE:
                raise UnavailableError(
                    f"{path} must have interface version {INTERFACE}, got {version}: "
                    "it was built from another version of attncache; build both together"
                )
            self._functions = {name: self._function(name, types) for name, types in SIGNATURES.items()}
            self._message = self._function("message", (ctypes.c_int,))
        except (OSError, AttributeError) as error:
            raise UnavailableError(f"{path} cannot be loaded, it is damaged or incomplete: {error}") from error
        self._message.restype = ctypes.c_char_p

    def _function(self, name: str, types: tuple[Any, ...]) -> Any:
        function = getattr(self._library, _PREFIX + name)
        function.argtypes, function.restype = types, ctypes.c_int
        return function

    def status(self, name: str, *arguments: Any) -> int:
        """What a function of cpp/cuda/attncache_cuda.h returns; its name is given without the prefix."""
        return int(self._functions[name](*arguments))

    def message(self, status: int) -> str:
        """The words for a status."""
        return str(self._message(status).decode("utf-8", "replace"))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function.

        Raises:
            MemoryError: the device has no memory for it. ValueError: the question is too large for one call.
            RuntimeError: anything else, in CUDA's words.
        """
        status = self.status(name, *arguments)
        if status != 0:
            self.check(name, status)

    def check(self, name: str, status: int) -> None:
        """Raise what ``call`` raises, unless the status of a function is 0."""
        if status == 0:
            return
        words = f"{_PREFIX}{name}: {self.message(status)} (status {status})"
        if status == _MEMORY_ALLOCATION:
            raise MemoryError(words)
        raise (ValueError if status == TOO_LARGE else RuntimeError)(words)

    def number(self, name: str, *arguments: Any) -> int:
        """Call a function that gives an int through its last argument."""
        found = ctypes.c_int()
        self.call(name, *arguments, ctypes.byref(found))
        return found.value

    def on(self, device: int) -> OnDevice:
        """Make a device the current one of this thread, for a while."""
        return OnDevice(self, device)


class OnDevice:
    """The time in which a device is the current one of this thread; a generator would take twice as long to enter."""

    __slots__ = ("before", "device", "library")

    def __init__(self, library: Library, device: int) -> None:
        self.library, self.device = library, device

    def __enter__(self) -> None:
        self.before = self.library.number("get_device")
        if self.before != self.device:
            self.library.call("set_device", self.device)

    def __exit__(self, *_: object) -> None:
        if self.before != self.device:
            self.library.call("set_device", self.before)


_loaded: dict[Path, Library] = {}


def load() -> Library:
    """The library, loaded once.

    Raises:
        UnavailableError: see ``why_not``.
    """
    if PATH not in _loaded:
        _loaded[PATH] = Library(PATH)
    return _loaded[PATH]


def why_not() -> str | None:
    """Why no device can be used, in plain words, or None if one can.

    Not built, and how to build it; a library that is damaged or of another version; no usable driver; no device.

    >>> import attncache.cuda
    >>> attncache.cuda.is_available() == (attncache.cuda.why_not() is None)
    True
    """
    try:
        library = load()
    except UnavailableError as error:
        return str(error)
    count = ctypes.c_int()
    status = library.status("device_count", ctypes.byref(count))
    if status == _INSUFFICIENT_DRIVER:
        return library.message(status)
    if status == _NO_DEVICE or (status == 0 and count.value == 0):
        return "the NVIDIA driver finds no device; CUDA_VISIBLE_DEVICES may hide it"
    return None if status == 0 else f"CUDA cannot be used: {library.message(status)} (status {status})"


def is_available() -> bool:
    """Whether layers may lie on a CUDA device here; ``why_not`` says what is missing."""
    return why_not() is None
