"""The command that measures stored patterns: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

from benchmarks.core import limits
from benchmarks.core.case import NUMPY, READY, TORCH, Case, World
from benchmarks.core.run import Suite
from benchmarks.core.table import Report
from benchmarks.core.timing import FULL, QUICK, interleaved, sweep_of
from benchmarks.dense.cases import CASES
from benchmarks.dense.world import FULL_SIZES, QUICK_SIZES, DenseWorld

SMALL_CALLS = (
    "nothing(layer, position)",
    "len(cache)",
    "means[0][position]",
    "means[0][:, position]",
    "AttentionCache()",
)


class DenseSuite(Suite):
    """Stored patterns beside NumPy, torch and what NumPy's index of a ready-made answer costs."""

    contenders: tuple[str, ...] = (NUMPY, TORCH, READY)

    def cases(self, _options: argparse.Namespace) -> Sequence[Case]:
        """Every query, pushes, and getting layers back."""
        return CASES

    def worlds(self, options: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], World]]]:
        """Every size in both dtypes."""
        plan, sizes = (QUICK, QUICK_SIZES) if options.quick else (FULL, FULL_SIZES)
        for size, dtype in product(sizes, ("float32", "float16")):
            yield "", dtype, partial(DenseWorld, size, dtype, options.threads, plan, last=size == sizes[-1])

    def measure_limits(self, report: Report, options: argparse.Namespace) -> None:
        """Reading, copying, and small calls: the emptiest, and NumPy's index of a ready-made answer."""
        limits.measure_memory(report.limits, options.threads, quick=options.quick)
        if not report.limits.calls:
            plan = QUICK if options.quick else FULL
            world = DenseWorld((QUICK_SIZES if options.quick else FULL_SIZES)[0], "float32", options.threads, plan)
            pool = [(0, int(position)) for position in world.rng.integers(world.size.seq, size=4096)]
            sweeps = {code: sweep_of(code, ("layer", "position"), world.names) for code in SMALL_CALLS}
            report.limits.calls |= interleaved(sweeps, pool, plan)
