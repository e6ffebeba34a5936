"""Listens to the attention functions of transformers without changing a model: the one place that patches anything.

Attention modules ask ``AttentionInterface.get_interface`` for their function at every forward. While at least one
capture is open, that method hands out the same function with a listener behind it; the configuration of the model, its
masks and the function itself stay what they are; only compiled code runs uncompiled. Caches of keys tell when they are
reordered, as beam search does. The last capture to close puts everything back.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol


class Heard(NamedTuple):
    """One call of an attention function.

    Attributes:
        args, kwargs: what it got, the module first.
        implementation: the model's attention implementation, such as "sdpa"; None and "eager" mean the model's own.
        function: the function itself.
        result: what it returned.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    implementation: str | None
    function: Callable[..., Any]
    result: Any


class Listener(Protocol):
    """Is told what happens in the thread that added it; what it raises leaves the model's forward."""

    def heard(self, call: Heard) -> None:
        """An attention function was called."""

    def reordered(self) -> None:
        """A cache of keys was put into another order along the batch."""


_lock = threading.Lock()
_listeners: list[tuple[int, Listener]] = []  # each with the thread that it listens to
_undo = ExitStack()  # holds what takes the patch back while there are listeners


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have every attention call of this thread reported, after it was made, until the context ends."""
    entry = threading.get_ident(), listener
    with _lock:
        if not _listeners:
            _patch()
        _listeners.append(entry)
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(entry)
            if not _listeners:
                _undo.close()


def _of_this_thread() -> list[Listener]:
    thread = threading.get_ident()
    return [listener for listens_to, listener in tuple(_listeners) if listens_to == thread]


def _patch() -> None:
    import torch  # noqa: PLC0415
    from transformers import cache_utils  # noqa: PLC0415
    from transformers.modeling_utils import AttentionInterface  # noqa: PLC0415

    _undo.enter_context(torch.compiler.set_stance("force_eager"))  # a compiled graph would pass the interface by
    _replace(AttentionInterface, "get_interface", _reporting)
    for kind in ("Cache", "EncoderDecoderCache"):
        _replace(getattr(cache_utils, kind), "reorder_cache", _telling)


def _replace(owner: type, name: str, wrapped: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    was_its_own = name in vars(owner)
    _undo.callback(setattr, owner, name, original) if was_its_own else _undo.callback(delattr, owner, name)
    setattr(owner, name, wrapped(original))


def _reporting(get_interface: Callable[..., Any]) -> Callable[..., Any]:
    """``get_interface`` whose functions report their calls."""

    @functools.wraps(get_interface)
    def get_reporting_interface(self: Any, attn_implementation: str | None, default: Callable[..., Any]) -> Any:
        function = get_interface(self, attn_implementation, default)

        @functools.wraps(function)
        def attention(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            for listener in _of_this_thread():
                listener.heard(Heard(args, kwargs, attn_implementation, function, result))
            return result

        return attention

    return get_reporting_interface


def _telling(reorder_cache: Callable[..., Any]) -> Callable[..., Any]:
    """``reorder_cache`` that tells of its calls."""

    @functools.wraps(reorder_cache)
    def reorder_and_tell(self: Any, *args: Any, **kwargs: Any) -> Any:
        for listener in _of_this_thread():
            listener.reordered()
        return reorder_cache(self, *args, **kwargs)

    return reorder_and_tell
