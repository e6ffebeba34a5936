"""Listens to the attention functions of transformers without changing a model: the one place that patches anything.

Attention modules ask ``AttentionInterface.get_interface`` for their function at every forward. While at least one
capture is open, that method hands out the same function with a listener behind it; the configuration of the model, its
masks and the function itself stay what they are; only compiled code runs uncompiled. The last capture to close puts
everything back.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from inspect import unwrap
from types import CodeType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Listener = Callable[[tuple[Any, ...], dict[str, Any], "str | None"], None]

_WORDS = {"ALL_ATTENTION_FUNCTIONS", "get_interface"}

_lock = threading.Lock()
_listeners: list[Listener] = []
_undo = ExitStack()  # holds what takes the patch back while there are listeners


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have every attention call of every model reported, after it was made, until the context ends.

    Args:
        listener: called with the positional arguments (the module first), the keyword arguments, and the name of the
            attention implementation; what it raises leaves the model's forward.
    """
    _add(listener)
    try:
        yield
    finally:
        _remove(listener)


def _add(listener: Listener) -> None:
    with _lock:
        if not _listeners:
            _patch()
        _listeners.append(listener)


def _remove(listener: Listener) -> None:
    with _lock:
        _listeners.remove(listener)
        if not _listeners:
            _undo.close()


def _patch() -> None:
    import torch  # noqa: PLC0415
    from transformers.modeling_utils import AttentionInterface  # noqa: PLC0415

    original = AttentionInterface.get_interface
    _undo.enter_context(torch.compiler.set_stance("force_eager"))  # a compiled graph would pass the interface by
    _undo.callback(setattr, AttentionInterface, "get_interface", original)
    AttentionInterface.get_interface = _reporting(original)


def _reporting(get_interface: Callable[..., Any]) -> Callable[..., Any]:
    """``get_interface`` whose functions report their calls."""

    @functools.wraps(get_interface)
    def get_reporting_interface(self: Any, attn_implementation: str | None, default: Callable[..., Any]) -> Any:
        function = get_interface(self, attn_implementation, default)

        @functools.wraps(function)
        def attention(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            for listener in tuple(_listeners):
                listener(args, kwargs, attn_implementation)
            return result

        return attention

    return get_reporting_interface


def attention_modules(model: torch.nn.Module) -> dict[torch.nn.Module, str]:
    """The modules of a model that use the attention interface, in the order of its layers, each with its path."""
    paths = {module: path for path, module in model.named_modules()}
    kinds = {kind for kind in set(map(type, paths)) if _uses_interface(kind)}
    found = {module: path for module, path in paths.items() if type(module) in kinds}
    numbers = [getattr(module, "layer_idx", None) for module in found]
    if all(isinstance(number, int) for number in numbers) and len(set(numbers)) == len(numbers):
        return dict(sorted(found.items(), key=lambda item: item[0].layer_idx))
    return found


def _uses_interface(kind: type) -> bool:
    """Whether a method of the class asks for an attention function; seen in its code, before anything runs."""
    methods = (value for base in kind.__mro__ for value in vars(base).values() if callable(value))
    codes = (getattr(unwrap(method), "__code__", None) for method in methods)
    return any(isinstance(code, CodeType) and set(code.co_names) >= _WORDS for code in codes)
