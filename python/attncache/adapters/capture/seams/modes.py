"""Closes a mode of PyTorch's tensor functions wherever on the stack it is; for functions.py."""

from __future__ import annotations

from typing import Any


def close_mode(mode: Any) -> None:
    """Take a mode off this thread's stack; those that others opened later and have not closed stay."""
    import torch  # noqa: PLC0415 (loaded already: it made the model)
    from torch.overrides import _pop_mode, _push_mode  # noqa: PLC0415

    opened = [_pop_mode() for _ in range(torch._C._len_torch_function_stack())]  # the last comes first
    # PyTorch closes whichever is on top: where ours is gone, it went for another, which is on top now.
    place = opened.index(mode) if mode in opened else 0
    for other in reversed([*opened[:place], *opened[place + 1 :]]):
        _push_mode(other)
