"""What a model of the matrix is, and the tools to make one; the files of libraries list them, and judging.py runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

Built = tuple[Any, Callable[[], Any]]  # a model, and one forward of it
BATCH, SHARPNESS = 2, 1.5


@dataclass(frozen=True)
class Entry:
    """One model of the matrix."""

    library: str  # the distribution, by its name on PyPI
    name: str
    build: Callable[[], Built]
    unheard: tuple[str, ...] = ()  # modules whose attention cannot be heard, so that the capture must name them
    fused: bool = (
        False  # PyTorch's fused path of a whole layer must be left, so that the output is the same to rounding
    )


def random(*shape: int) -> Any:
    """Numbers that are the same in every process."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def ids(n: int, length: int) -> Any:
    """Tokens of ``n`` ids [batch, length]."""
    return torch.randint(0, n, (BATCH, length), generator=torch.Generator().manual_seed(8))


def calling(model: Any, *args: Any, **kwargs: Any) -> Built:
    """A model in evaluation with sharp random weights, and a forward on these inputs.

    Fresh weights give patterns that are nearly alike everywhere, which would hide differences; zeros hide whole terms.
    """
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, SHARPNESS / parameter.shape[1] ** 0.5, generator=generator)
            elif not parameter.any():
                parameter.normal_(0, 0.1, generator=generator)
    return model.eval(), partial(model, *args, **kwargs)
