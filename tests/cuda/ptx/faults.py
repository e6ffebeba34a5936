"""What the interpreter raises: one exception that names the checker, the kernel, the PTX line and the thread."""

from __future__ import annotations

from typing import Literal, TypeAlias

Checker: TypeAlias = Literal[
    "bounds",  # outside every allocation, or a variable's end
    "alignment",  # an address that is no multiple of the access's size
    "uninitialised",  # a value nobody wrote decides where to go, where to look, or what is kept
    "race",  # two threads touch the same bytes, one writes, nothing orders them
    "barrier",  # a barrier that some thread of the block never reaches
    "warp",  # a warp operation whose named lanes do not come
    "unsupported",  # an instruction that this interpreter does not know
    "endless",  # more steps than any of our kernels takes
    "launch",  # a launch that does not fit its kernel
]


class Fault(Exception):
    """Something that a correct kernel never does, found by `checker`."""

    def __init__(self, checker: Checker, message: str) -> None:
        super().__init__(f"{checker}: {message}")
        self.checker = checker
