"""The command that measures layers of queries and keys: ``python -m benchmarks.factored``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import numpy as np

from benchmarks.core import limits
from benchmarks.core.case import Case, World
from benchmarks.core.run import Suite
from benchmarks.core.table import Report
from benchmarks.core.timing import QUICK, Plan
from benchmarks.factored.cases import ALL_SEEN, CASES, LARGE, LONG, MODEL
from benchmarks.factored.world import FactoredWorld, Shape, all_seen

FULL = Plan(sample=50e-3, budget=0.6, least=3, most=15)
SHAPES = {LONG: Shape(32, 8, 128, 64, 131072), MODEL: Shape(9, 3, 64, 4096, 4096), LARGE: Shape(32, 8, 128, 4096, 4096)}
QUICK_SHAPES = {LONG: Shape(4, 2, 16, 5, 300), MODEL: Shape(4, 2, 16, 40, 40), LARGE: Shape(4, 1, 8, 300, 300)}
SIDE, QUICK_SIDE = 4096, 64  # of the matrices whose product is the limit of computing


class FactoredSuite(Suite):
    """Layers of queries and keys beside NumPy and torch."""

    module = "benchmarks.factored"
    title = "Factored layers in full"

    def cases(self, _options: argparse.Namespace) -> Sequence[Case]:
        """Every question that such a layer answers, and pushing it."""
        return CASES

    def worlds(self, options: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], World]]]:
        """Each layer in both dtypes; those that are square also without a causal mask."""
        plan, shapes = (QUICK, QUICK_SHAPES) if options.quick else (FULL, SHAPES)
        kinds = {LONG: shapes[LONG]}
        for kind in (MODEL, LARGE):
            kinds |= {kind: shapes[kind], kind + ALL_SEEN: all_seen(shapes[kind])}
        for (kind, shape), dtype in product(kinds.items(), ("float32", "float16")):
            yield kind, dtype, partial(FactoredWorld, shape, dtype, options.threads, plan)

    def measure_limits(self, report: Report, options: argparse.Namespace) -> None:
        """Reading, copying, and multiplying matrices."""
        limits.measure_memory(report.limits, options.threads, quick=options.quick)
        limits.measure_products(report.limits, options.threads, QUICK_SIDE if options.quick else SIDE)

    def described(self, options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, str]:
        """The machine; NumPy's products run on as many threads as its BLAS chooses."""
        about = super().described(options, arguments)
        return about | {"numpy": f"{np.__version__}, 1 thread, its BLAS as many as it chooses"}
