"""The streams on which layers are answered, and how a caller chooses one."""

from __future__ import annotations

from typing import Any, NamedTuple

DEFAULT = 1  # the legacy default stream, as DLPack numbers them; 2 is the default of the thread, all else a handle
OF_THREAD = 2  # another stream in each thread, so no stream to keep: the legacy default waits for it, and it for that


class OnStream(NamedTuple):
    """An array, and the stream that its memory is used on.

    Attributes:
        owner: what keeps the stream valid.
    """

    array: Any
    stream: int
    owner: Any


def on_stream(array: Any, stream: Any) -> OnStream:
    """Say on which stream a layer is answered, or an answer is written: ``cache.push(on_stream(tensor, stream))``.

    What was enqueued for the array before is waited for by that stream, not by the host. Arrays that name a stream
    themselves (``__cuda_array_interface__``) are used on it, all others on the legacy default stream, unless this says
    otherwise.

    Args:
        array: whatever ``push``, ``push_qk`` and ``out=`` take that lies on a CUDA device.
        stream: a stream of torch, CuPy or whatever has ``__cuda_stream__``, which the cache then keeps alive; or the
            handle as an int, which must stay valid as long as the cache has the layer.

    Raises:
        TypeError: stream is none of these. ValueError: it is a negative number, or 2, the default stream of whichever
            thread asks.
    """
    return OnStream(array, _handle(stream) or DEFAULT, stream)


def _handle(stream: Any) -> int:
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        stream = (protocol() if callable(protocol) else protocol)[1]
    for name in ("cuda_stream", "ptr"):  # of torch, of CuPy
        stream = getattr(stream, name, stream)
    if isinstance(stream, bool) or not hasattr(stream, "__index__"):
        raise TypeError(f"stream must be a CUDA stream or its handle, got {type(stream).__name__}")
    handle = int(stream.__index__())
    if handle < 0:
        raise ValueError(f"stream must be a CUDA stream or its handle, got {handle}")
    if handle == OF_THREAD:
        raise ValueError("stream must be one stream for all threads, got 2, the default stream of each thread")
    return handle
