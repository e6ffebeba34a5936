"""What a model returned, as tensors to compare, and what it raised, as a line; the sweep and the matrix use it."""

from __future__ import annotations

from typing import Any

import torch

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
