"""Opens the seams of a thread for those who listen there, and tells them what is heard; the seams report here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from attncache.adapters.capture.calls import Call, Weights
from attncache.adapters.capture.seams.compiling import open_compiled
from attncache.layer_source import Seam

if TYPE_CHECKING:
    import torch


class Heard(NamedTuple):
    """One attention that a model computed.

    Attributes:
        seam: where it was heard.
        module: the module that it belongs to, where the seam knows; otherwise it is the one that runs.
        leading: sizes of the axes before query and key, [batch, head] or others.
        read: the call itself; given how many heads the leading axes hold, where that is known.
    """

    seam: Seam
    module: torch.nn.Module | None
    leading: tuple[int, ...]
    read: Callable[[int | None], Call | Weights]


class Listener(Protocol):
    """Is told what happens in the thread that added it; what it raises leaves the model's forward."""

    def heard(self, attention: Heard) -> None:
        """Attention was computed."""

    def unheard(self, what: str) -> None:
        """The module that runs does this, so that its attention cannot be heard."""

    def reordered(self) -> None:
        """A cache of keys was put into another order along the batch."""


_lock = threading.Lock()
_listeners: list[tuple[int, Listener]] = []  # each with the thread that it listens to
_undo = ExitStack()  # holds what closes the seams of the process while there are listeners
_functions: dict[int, ExitStack] = {}  # of each thread with listeners: what closes the seam of its tensor functions
_here = threading.local()  # of each thread: how deep it is inside attention that another seam reports


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have all attention of this thread reported, after it was computed, until the context ends."""
    from attncache.adapters.capture.seams.functions import hear_functions  # noqa: PLC0415 (it reports to this module)

    thread = threading.get_ident()
    entry = thread, listener
    with _lock:
        if not _listeners:
            _open_process()
        _listeners.append(entry)
    try:
        if thread not in _functions:
            _functions[thread] = ExitStack()
            _functions[thread].enter_context(hear_functions())
        yield
    finally:
        with _lock:
            _listeners.remove(entry)
            if not of_thread(thread):
                _functions.pop(thread, ExitStack()).close()
            if not _listeners:
                _undo.close()


def _open_process() -> None:
    """Open what is the same for all threads: the interface, and the graphs of compiled code, which would pass seams by."""
    from attncache.adapters.capture.seams.interface import open_interface  # noqa: PLC0415 (it reports to this module)

    _undo.enter_context(open_compiled())
    _undo.enter_context(open_interface())


def of_thread(thread: int | None = None) -> list[Listener]:
    """Who listens to a thread, this one without an argument."""
    thread = threading.get_ident() if thread is None else thread
    return [listener for listens_to, listener in tuple(_listeners) if listens_to == thread]


@contextmanager
def one_seam() -> Iterator[None]:
    """What runs inside belongs to an attention that is reported as a whole: the functions it calls are not."""
    _here.depth = getattr(_here, "depth", 0) + 1
    try:
        yield
    finally:
        _here.depth -= 1


def is_inside() -> bool:
    """Whether this thread is inside attention that is reported as a whole."""
    return getattr(_here, "depth", 0) > 0


def tell(what: Callable[[Listener], Any]) -> None:
    """Tell every listener of this thread; what they compute is heard at no seam and by no mode."""
    import torch  # noqa: PLC0415

    with torch._C.DisableTorchFunction():
        for listener in of_thread():
            what(listener)
