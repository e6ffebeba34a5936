"""Which modules of a model run, told by Python's stack: no module needs a hook for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from types import FrameType

    import torch


class Running(NamedTuple):
    """A module that runs, and what it was called with."""

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what it takes by place."""
        code = getattr(self.module.forward, "__code__", None)
        return code.co_varnames[1 : code.co_argcount] if code is not None else ()

    def argument(self, name: str) -> Any:
        """What it was given under a name, by place too; None if it was given nothing."""
        return dict(zip(self.names, self.args, strict=False)).get(name, self.kwargs.get(name))

    @property
    def first(self) -> Any:
        """What it was given first, as a rule the sequence that its queries are of."""
        return self.args[0] if self.args else self.kwargs.get(next(iter(self.names), ""))


def running_modules(of: Mapping[torch.nn.Module, str]) -> Iterator[Running]:
    """The modules of a model that run in this thread, from the innermost outwards."""
    import torch  # noqa: PLC0415 (loaded already: it made the model)

    call = torch.nn.Module._call_impl.__code__
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is call:
            called = frame.f_locals
            if called["self"] in of:
                yield Running(called["self"], called["args"], called["kwargs"])
        frame = frame.f_back
