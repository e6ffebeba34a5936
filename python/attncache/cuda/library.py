"""libattncache_cuda: where it lies in the package's folder; the core loads it on first use."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from attncache import _core

NAME = "attncache_cuda.dll" if sys.platform == "win32" else "libattncache_cuda.so"
PATH = Path(__file__).parent.parent / NAME


def devices() -> _core.CudaDevices:
    """The devices as the library shows them.

    Raises:
        RuntimeError: there is no library, it cannot be loaded, or it is of another version.
    """
    return _devices_of(PATH)


@functools.cache  # of what can be loaded: an exception is not kept
def _devices_of(path: Path) -> _core.CudaDevices:
    if not path.exists():
        raise RuntimeError(
            f"attncache was built without CUDA: there is no {path.name} in {path.parent}; "
            "pip install . -Ccmake.define.ATTNCACHE_CUDA=ON builds it (docs/cuda.md)"
        )
    return _core.CudaDevices(str(path))


def why_not() -> str | None:
    """Why no device can be used, in plain words, or None if one can.

    Not built, and how to build it; a library that is damaged or of another version; no usable driver; no device.

    >>> import attncache.cuda
    >>> attncache.cuda.is_available() == (attncache.cuda.why_not() is None)
    True
    """
    try:
        return devices().why_not()
    except RuntimeError as error:
        return str(error)


def is_available() -> bool:
    """Whether layers may lie on a CUDA device here; ``why_not`` says what is missing."""
    return why_not() is None
