"""The command that measures what the figures show of stored patterns: ``python -m benchmarks.dense.sweeps --json FILE``.

``python -m benchmarks.figures FILE`` draws them. The labels of a result say where in which figure it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from attncache import get_num_threads
from benchmarks.core.case import NUMPY, OURS, READY, TORCH, Case, World
from benchmarks.core.run import main
from benchmarks.core.timing import QUICK as QUICK_PLAN
from benchmarks.core.timing import Plan
from benchmarks.dense import cases
from benchmarks.dense.suite import DenseSuite
from benchmarks.dense.world import SEED, DenseWorld, Size, causal_softmax

PLAN = Plan(sample=3e-3, budget=0.2, least=5, most=21)
DIRECT, INDEXED, KEPT = f"{OURS}, direct", f"{OURS}, indexed", f"{NUMPY}, mean kept"
POLICIES = {index: f'{OURS}, "{index}"' for index in ("off", "auto", "eager")}
FIRST = f"{NUMPY}, mean first"
BY_NAME = {case.name: case for case in cases.CASES}


@dataclass(frozen=True)
class Scale:
    """How large everything is: the x axes, and the layers of those figures whose x axis is something else."""

    seqs: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192)
    heads: tuple[int, ...] = (4, 8, 16, 32, 64)
    ks: tuple[int, ...] = (1, 2, 8, 32, 128, 512, 2048)
    hard_ks: tuple[int, ...] = (10, 256)
    questions: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096, 16384)
    some_heads: int = 12
    many_heads: int = 32
    middle: int = 1024
    long: int = 2048
    weights: int = 1 << 29  # in all layers together: one layer at least, eight at most

    def size(self, heads: int, seq: int) -> Size:
        """Enough layers that random rows do not stay in a core's caches, as far as memory allows."""
        return Size(heads, seq, max(1, min(8, self.weights // (heads * seq * seq))))


FULL = Scale()
QUICK = Scale((16, 32), (2, 3), (1, 16), (2,), (1, 8), 3, 4, 16, 16, 1 << 12)


Make: TypeAlias = Callable[[int, Plan], DenseWorld]  # of threads and plan
Sweep: TypeAlias = Iterator[tuple[Make, list[Case]]]  # each world of a figure, and the cases that run there


def shown(case: Case, contenders: Mapping[str, str], panel: str, x: float | str, x_label: str = "") -> Case:
    """A case as one point of a panel."""
    labels = {"panel": panel, "x": x, "x_label": x_label}
    return replace(case, contenders=contenders, labels=labels, goal=None)


def together(direct: Case, indexed: Case | None = None) -> dict[str, str]:
    """Ours in both ways and everybody else's, to be timed in turns."""
    contenders = {DIRECT: direct.contenders[OURS]}
    if indexed is not None:
        contenders |= {INDEXED: indexed.contenders[OURS], KEPT: indexed.contenders[READY]}
    return contenders | {name: code for name, code in direct.contenders.items() if name in {NUMPY, TORCH}}


def of_size(size: Size, dtype: str = "float16") -> Make:
    """A world of causal softmax."""
    return lambda threads, plan: DenseWorld(size, dtype, threads, plan)


def latency(sizes: Mapping[int, Size], x_label: str) -> Sweep:
    """The four questions about the mean, ours direct and indexed, at every size."""
    asked = {
        "attention_from_position": (cases.direct(cases.FROM), cases.indexed(cases.FROM)),
        "attention_to_position": (cases.direct(cases.TO), cases.indexed(cases.TO)),
        "top_attended_positions, k = 10": (cases.direct(cases.TOP), cases.indexed(cases.TOP)),
        "head_mean of a layer": (BY_NAME["head_mean, direct"], BY_NAME["head_mean, indexed"]),
    }
    for x, size in sizes.items():
        yield (of_size(size), [shown(case[0], together(*case), panel, x, x_label) for panel, case in asked.items()])


def top_k_by_k(scale: Scale, _threads: int) -> Sweep:
    """Top-k of one query against k."""
    points = []
    for k in scale.ks:
        line, heads = cases.top_of_mean(k), cases.top_of_heads(k)
        both = together(cases.direct(line), cases.indexed(line))
        title = f"each of {scale.some_heads} heads: top_k(heads=None), two arrays"
        points.append(shown(cases.direct(line), both, "mean row: top_attended_positions, a list of pairs", k, "k"))
        points.append(shown(heads, together(heads), title, k, "k"))
    yield (of_size(scale.size(scale.some_heads, scale.long)), points)


Rows: TypeAlias = npt.NDArray[Any]
HARD: dict[str, Callable[[Rows], Rows]] = {  # orders of rows that a partition finds easy or hard, from random ones
    "random": lambda rows: rows,
    "causal\nsoftmax": lambda rows: causal_softmax(
        Size(rows.shape[1], rows.shape[2], 1), "float32", (SEED, rows.shape[2]), 1
    ),
    "all equal": lambda rows: np.full_like(rows, 1 / rows.shape[-1]),
    "a tenth\nNaN": lambda rows: np.where(rows < 0.1, np.float32(np.nan), rows),
    "all NaN": lambda rows: np.full_like(rows, np.nan),
    "ascending": lambda rows: np.sort(rows, axis=-1),
    "descending": lambda rows: np.ascontiguousarray(np.sort(rows, axis=-1)[..., ::-1]),
    "up, then\ndown": lambda rows: np.concatenate([np.sort(rows)[..., ::2], np.sort(rows)[..., ::-2]], axis=-1),
}


def top_k_of_hard_rows(scale: Scale, _threads: int) -> Sweep:
    """Top-k of rows in orders that partitioning may be slow on."""
    size = Size(scale.some_heads, scale.long, 1)

    def make(kind: str, threads: int, plan: Plan) -> DenseWorld:
        rows = np.random.default_rng([SEED, size.seq]).random((1, size.heads, size.seq, size.seq), np.float32)
        return DenseWorld(size, "float32", threads, plan, [HARD[kind](rows + np.float32(2**-24))])

    for kind in HARD:
        points = []
        for k in scale.hard_ks:
            case = cases.top_of_heads(k)
            contenders = together(case)
            if "NaN" in kind:  # only a NaN-last spelling answers what is asked; torch has none
                del contenders[TORCH]
                contenders[NUMPY] = f"heaviest_nan_last(patterns[layer][0, :, position], {k})"
            points.append(shown(case, contenders, f"k = {k}", kind))
        yield (partial(make, kind), points)


def threads(scale: Scale, n_threads: int) -> Sweep:
    """Work on whole layers with one thread and with all."""
    names = {
        "head_mean": "head_mean, direct",
        "columns of the mean": "columns, every key of the mean",
        "top_k, every row\nof every head": "top_k, every query of every head, k=10",
        "rows of every head": "rows, every query of every head",
        "push, copied": "push, copied",
        "push, float32\nas float16": "push, float32 as float16",
    }
    counts = sorted({1, n_threads})
    for dtype in ("float16", "float32"):
        points = []
        for title, case in ((title, BY_NAME[name]) for title, name in names.items()):
            if dtype == case.dtypes[-1]:
                counted = {
                    f"{name}, {count} thread{'s' if count > 1 else ''}": case.contenders[name]
                    for name in (OURS, TORCH)
                    for count in counts
                }
                points.append(shown(case, counted | {NUMPY: case.contenders[NUMPY]}, "", title, "time of a call"))
        yield (of_size(Size(scale.many_heads, scale.long, 2), dtype), points)


def all_together(_world: World) -> int:
    """How many questions share the time of a call that asks them all."""
    return 1


def asked_often(scale: Scale, _threads: int) -> Sweep:
    """What a number of questions to a fresh cache cost in all, for each rule of when to build the index."""
    points = []
    for line in (cases.FROM, cases.TO):
        fresh = {index: cases.from_fresh(line, index) for index in POLICIES}
        contenders = {label: fresh[index].contenders[OURS] for index, label in POLICIES.items()}
        contenders |= {NUMPY: fresh["off"].contenders[NUMPY], FIRST: fresh["off"].contenders[READY]}
        for count in scale.questions:
            asked = replace(fresh["off"], draw=partial(cases.some_lines, count=count), questions=all_together)
            points.append(shown(asked, contenders, line.name, count, "questions"))
    yield (of_size(Size(scale.some_heads, scale.middle, 1)), points)


# Title, which the scale completes, and sweeps of each figure.
FIGURES: dict[str, tuple[str, Callable[[Scale, int], Sweep]]] = {
    "latency-by-seq": (
        "One question against the length of the sequence: {some_heads} heads, float16",
        lambda scale, _: latency({seq: scale.size(scale.some_heads, seq) for seq in scale.seqs}, "positions"),
    ),
    "latency-by-heads": (
        "One question against the number of heads: {middle} positions, float16",
        lambda scale, _: latency({heads: scale.size(heads, scale.middle) for heads in scale.heads}, "heads"),
    ),
    "top-k-by-k": ("The k heaviest keys of one query: {some_heads} heads, rows of {long}, float16", top_k_by_k),
    "top-k-hard-rows": (
        "Top-k of rows in easy and hard orders: {some_heads} rows of {long}, float32",
        top_k_of_hard_rows,
    ),
    "threads": ("Whole layers with one thread and with more: {many_heads} heads x {long} positions, float16", threads),
    "asked-often": (
        "Many questions to a fresh cache, all together, with its push: {some_heads} heads x {middle} positions, float16",
        asked_often,
    ),
}


class SweepSuite(DenseSuite):
    """Points of the figures; ``--only`` takes the names of figures."""

    module = "benchmarks.dense.sweeps"
    contenders = ()

    def planned(self, options: argparse.Namespace) -> Iterator[tuple[str, Make, list[Case]]]:
        """Each world with its kind and its cases."""
        scale = QUICK if options.quick else FULL
        for figure, (title, sweep) in FIGURES.items():
            labels = {"figure": figure, "title": title.format(**vars(scale))}
            for number, (make, points) in enumerate(sweep(scale, options.threads or get_num_threads())):
                kind = f"{figure} {number}"
                yield (
                    kind,
                    make,
                    [
                        replace(
                            case,
                            name=f"{figure}, {case.labels['panel']}, {case.labels['x']}",
                            kinds=(kind,),
                            dtypes=("",),
                            labels={**labels, **case.labels},
                        )
                        for case in points
                    ],
                )

    def cases(self, options: argparse.Namespace) -> Sequence[Case]:
        """Every point of every figure."""
        return [case for *_, points in self.planned(options) for case in points]

    def worlds(self, options: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], World]]]:
        """The worlds of all figures."""
        for kind, make, _ in self.planned(options):
            yield kind, "", partial(make, options.threads, QUICK_PLAN if options.quick else PLAN)


if __name__ == "__main__":
    sys.exit(main(SweepSuite()))
