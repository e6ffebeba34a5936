"""What one captured run came to: its output as tensors, its error as a line, its verdict; the sweep and the matrix use it."""

from __future__ import annotations

from typing import Any

import torch

from tests.sweep.comparing import Comparison
from tests.sweep.settings import BATCH


def tensors(output: Any) -> list[Any]:
    """The floating point tensors of an output, however deep."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() or output.dim() == BATCH else []
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return [tensor for value in values for tensor in tensors(value)]


def line(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def verdict_of(comparison: Comparison, same: bool, doubts: list[str], words: str) -> tuple[str, str]:
    """The verdict, and the reason of anything but "right"; ``words`` are the warnings of the capture."""
    if doubts:
        return "wrong", f"the oracle: {doubts[0]}"
    if comparison.wrong:
        return "wrong", "; ".join(comparison.wrong[:3])
    if not same:
        return "wrong", "the model computed something else while it was captured"
    unnamed = [path for path in comparison.absent if path not in words]
    if unnamed:
        return "silent", f"no layer and no word of {', '.join(unnamed[:4])}"
    if not comparison.n_layers:
        return "none", ""
    return "right", "" if not comparison.absent else f"told that it leaves out {', '.join(comparison.absent[:4])}"
