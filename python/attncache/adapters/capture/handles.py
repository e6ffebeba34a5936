"""Hooks on modules of a model that leave it as it was: also scripted modules, and copies that were made meanwhile; for hooks.py."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


class Handles(ExitStack):
    """Takes every hook away when its context ends."""

    def add(
        self,
        kind: Literal["forward_hook", "forward_pre_hook"],
        module: torch.nn.Module,
        function: Callable[..., None],
        **options: bool,
    ) -> None:
        """Have PyTorch call the function, with the options of ``register_forward_hook`` or ``register_forward_pre_hook``."""
        import torch  # noqa: PLC0415 (loaded already: it made the model)

        register = getattr(torch.nn.Module, f"register_{kind}")  # scripted modules refuse it under their own name
        self.callback(register(module, Hook(function, module, self), **options).remove)


class Hook:
    """One hook; where its module is copied or pickled, the copy's does nothing, and a copy loses it with the others."""

    def __init__(
        self,
        function: Callable[..., None] | None = None,
        module: torch.nn.Module | None = None,
        handles: Handles | None = None,
    ) -> None:
        self._function = function
        self._module = None if module is None else weakref.ref(module)
        self._handles = handles

    def __call__(self, *args: Any) -> None:
        if self._function is not None:
            self._function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        module = self._module and self._module()
        copied = memo.get(id(module))
        found = Hook(None, copied)
        if copied is not None and self._handles is not None:
            self._handles.callback(found.leave)
        return found

    def __reduce__(self) -> Any:
        return Hook, ()

    def leave(self) -> None:
        """Leave the module."""
        module = self._module and self._module()
        for kind in ("forward_hooks", "forward_pre_hooks") if module is not None else ():
            hooks = getattr(module, f"_{kind}")
            for number in [number for number, hook in hooks.items() if hook is self]:
                for told in (
                    hooks,
                    getattr(module, f"_{kind}_with_kwargs"),
                    getattr(module, f"_{kind}_always_called", {}),
                ):
                    told.pop(number, None)
