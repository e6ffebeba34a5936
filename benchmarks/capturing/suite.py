"""The command that measures what a capture costs a model: ``python -m benchmarks.capturing``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from benchmarks.capturing.cases import CASES
from benchmarks.capturing.world import BASE, CALLS, LARGE, QUICK_VIT, CallsWorld, ViTWorld
from benchmarks.core.case import Case, World
from benchmarks.core.machine import torch_or_none, version_of
from benchmarks.core.run import Suite


class CapturingSuite(Suite):
    """A vision transformer alone, heard, and captured; and single calls under a capture that keeps nothing."""

    module = "benchmarks.capturing"
    title = "What a capture costs in full"
    contenders = ()

    def cases(self, _options: argparse.Namespace) -> Sequence[Case]:
        """Forwards and single calls."""
        return CASES

    def worlds(self, options: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], World]]]:
        """Two sizes of a model, then calls."""
        for size in (QUICK_VIT,) if options.quick else (BASE, LARGE):
            yield "", "float32", partial(ViTWorld, size, options.threads, quick=options.quick)
        yield CALLS, "float32", partial(CallsWorld, quick=options.quick)

    def described(self, options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, str]:
        """The machine and torch."""
        return super().described(options, arguments) | {"torch": version_of("torch")}

    def why_not(self) -> str | None:
        """Without torch there is no model."""
        return None if torch_or_none() is not None else "torch is not installed"
