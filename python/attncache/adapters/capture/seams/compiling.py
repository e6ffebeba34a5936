"""Has compiled code run uncompiled while anybody listens: a compiled graph calls no function that could be heard."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def open_compiled() -> Iterator[None]:
    """Run compiled code as it was written until the context ends.

    To say so loads the compiler, which takes seconds. Where it is not loaded yet nothing is compiled, and it is said when
    somebody compiles.
    """
    import torch  # noqa: PLC0415 (loaded already: it made the model)

    with ExitStack() as undo:
        stance = functools.cache(lambda: undo.enter_context(torch.compiler.set_stance("force_eager")))
        if "torch._dynamo" in sys.modules:
            stance()
        else:
            compiler = torch.compile

            @functools.wraps(compiler)
            def compile_later(*args: Any, **kwargs: Any) -> Any:
                stance()
                return compiler(*args, **kwargs)

            undo.callback(setattr, torch, "compile", compiler)
            torch.compile = compile_later
        yield
