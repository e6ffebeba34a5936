"""The command that measures factored layers: ``python -m benchmarks.factored``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import bandwidth, goals, machine, table, timing
from benchmarks.answers import WrongAnswerError
from benchmarks.bandwidth import Limit, best_of
from benchmarks.case import NUMPY, OURS, TORCH, TORCH_ALONE
from benchmarks.curves import faster_torch
from benchmarks.factored_cases import BOTH, CASES, LARGE, LONG, MODEL, NUMPY_WIDE, TINY, TINY_LONG, TORCH_WIDE
from benchmarks.factored_cases import FactoredCase as Case
from benchmarks.factored_world import FactoredWorld, Shape, all_seen
from benchmarks.measuring import answer_of, sweep_of, with_threads
from benchmarks.run import chosen_cases, pin_threads
from benchmarks.table import MISSING, NONE, aligned, percent, timing_text
from benchmarks.timing import Timing
from benchmarks.worlds import torch_or_none

QUICK_SHAPES = {
    LONG: TINY_LONG,
    MODEL: TINY,
    all_seen(MODEL): all_seen(TINY),
    LARGE: Shape(4, 1, 8, 300, 300),
    all_seen(LARGE): all_seen(Shape(4, 1, 8, 300, 300)),
}
FULL = timing.Plan(sample=50e-3, budget=0.6, least=3, most=15)
SIDE, QUICK_SIDE = 4096, 64  # of the matrices whose product is the limit of computing
POOL, CHECKED = 64, 2
ROW_SHARE = 0.6
PREAMBLE = """# Factored layers in full

Written by `python -m benchmarks.factored --write FILE`; [README.md](README.md) says how to read it.
"""


@dataclass(frozen=True)
class Result:
    """What one case cost on one layer."""

    case: Case
    shape: Shape
    dtype: str
    work: int
    timings: dict[str, Timing]

    def fastest(self, contender: str, wide: str) -> tuple[str, Timing] | None:
        """Which of a contender's ways was faster, and its timing; None if neither was measured."""
        found = [(name, self.timings[name]) for name in (contender, wide) if name in self.timings]
        return min(found, key=lambda named: named[1].median) if found else None


@dataclass(frozen=True)
class Limits:
    """The yardsticks of a run: bandwidths, and how fast float32 matrices are multiplied, by library."""

    threads: int
    rates: bandwidth.Bandwidth
    products: dict[str, Limit]

    def rate(self, kind: str) -> float:
        """Bytes per second, or floating-point operations per second of NumPy's product."""
        if kind == "sgemm":
            return self.products[NUMPY].rate
        return {"read": self.rates.read, "copy": self.rates.fresh_copy}[kind][self.threads].rate


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.factored", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny layers and short times: checks, not numbers")
    parser.add_argument("--only", action="append", metavar="NAME", help="one operation or query; may be repeated")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of attncache and torch")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the report as Markdown to this file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to this file")
    return parser.parse_args(arguments)


def runnable(case: Case, world: FactoredWorld) -> dict[str, str]:
    """The contenders whose library is installed and which differ on this layer."""
    left_out = set() if world.dtype != "float32" else {NUMPY_WIDE, TORCH_WIDE}
    if world.torch is None:
        left_out |= {TORCH, TORCH_WIDE}
    return {name: code for name, code in case.contenders.items() if name not in left_out}


def check(case: Case, world: FactoredWorld) -> None:
    """Raise WrongAnswerError unless every contender answers within its bound."""
    for _ in range(CHECKED if case.arguments else 1):
        arguments = case.draw(world)
        right = case.expected(world, *arguments)
        for contender, code in runnable(case, world).items():
            answer = answer_of(code, case.arguments, world.names)(*arguments)
            if not right.accepts(answer, ours=contender == OURS):
                given = ", ".join(f"{name}={value}" for name, value in zip(case.arguments, arguments, strict=True))
                raise WrongAnswerError(
                    f"{case.name} at {world.shape} {world.dtype}: {contender} answers {code} with {given} "
                    "outside its bound of float64"
                )


def measure(case: Case, world: FactoredWorld, plan: timing.Plan) -> Result:
    """Check a case, then time it."""
    check(case, world)
    pool = [case.draw(world) for _ in range(POOL if case.arguments else 1)]
    sweeps = {name: sweep_of(code, case.arguments, world.names) for name, code in runnable(case, world).items()}
    if world.torch is not None and TORCH in sweeps:
        pin = world.torch.set_num_threads
        alone = {} if case.limit == "sgemm" else {TORCH_ALONE: with_threads(sweeps[TORCH], pin, 1)}
        many = {name: with_threads(sweeps[name], pin, world.threads) for name in (TORCH, TORCH_WIDE) if name in sweeps}
        sweeps |= many | alone
    timings = faster_torch(timing.interleaved(sweeps, pool, plan))
    return Result(case, world.shape, world.dtype, case.work(world), timings)


def measured(cases: Sequence[Case], plan: timing.Plan, threads: int, shapes: Mapping[Shape, Shape]) -> list[Result]:
    """The results of all cases in their order; ``shapes`` says which layer stands in for which."""
    results: list[Result] = []
    for shape, dtype in product(dict.fromkeys(shape for case in cases for shape in case.shapes), BOTH):
        asked = [case for case in cases if shape in case.shapes and dtype in case.dtypes]
        if asked:
            used = shapes.get(shape, shape)
            print(f"measuring {len(asked)} operations at {used} {dtype}", file=sys.stderr)
            world = FactoredWorld(used, dtype, threads)
            results += [measure(case, world, plan) for case in asked]
    return sorted(results, key=lambda result: cases.index(result.case))


def measure_products(products: dict[str, Limit], side: int) -> None:
    """How fast each library multiplies two square float32 matrices, keeping what was better before."""
    left, right = np.random.default_rng(0).standard_normal((2, side, side), np.float32)
    flops, out = 2 * side**3, np.empty_like(left)
    how = f"{side} x {side} float32"
    products.setdefault(NUMPY, Limit()).offer(
        flops / best_of(partial(np.matmul, left, right, out=out)), f"np.matmul, {how}"
    )
    limit, torch = products.setdefault(TORCH, Limit()), torch_or_none()
    if torch is not None:
        tensors = torch.from_numpy(left), torch.from_numpy(right)
        limit.offer(flops / best_of(partial(torch.mm, *tensors)), f"torch.mm, {how}")


def described(threads: int, arguments: Sequence[str]) -> dict[str, str]:
    """The machine's description, with what is different here."""
    about = machine.description(threads, arguments)
    torch = torch_or_none()
    return about | {
        "command": about["command"].replace("benchmarks", "benchmarks.factored", 1),
        "numpy": f"{np.__version__}, 1 thread, its BLAS as many as it chooses",
        "torch": "not installed"
        if torch is None
        else f"{torch.__version__}, {threads} threads, or 1 if that is faster",
    }


def rate_text(result: Result) -> str:
    """What ours does in a second: bytes, or floating-point operations."""
    if result.case.limit is None:
        return NONE
    unit = "GFLOP/s" if result.case.limit == "sgemm" else "GB/s"
    return f"{result.work / result.timings[OURS].median / 1e9:.3g} {unit}"


def row(result: Result, limits: Limits) -> list[str]:
    """The cells of one result."""
    ours = result.timings[OURS].median
    limit = result.case.limit
    share = NONE if limit is None else f"{percent(result.work / ours / limits.rate(limit))} of {limit}"
    cells = [result.case.name, str(result.shape), result.dtype, timing_text(result.timings[OURS])]
    cells += [rate_text(result), share]
    for contender, wide in ((NUMPY, NUMPY_WIDE), (TORCH, TORCH_WIDE)):
        best = result.fastest(contender, wide)
        if contender not in result.case.contenders:
            cells += [NONE, NONE]
        elif best is None:
            cells += [MISSING, MISSING]
        else:
            name, found = best
            cells += [timing_text(found) + (" *" if name == wide else ""), f"{found.median / ours:.3g}"]
    return cells


def limits_text(limits: Limits, *, markdown: bool) -> str:
    """The yardsticks, as tables."""
    rows = [["limit", "measured", "how"]]
    rows += [
        [f"sgemm, {name}", f"{limit.rate / 1e9:.3g} GFLOP/s" if limit.rate else MISSING, limit.how]
        for name, limit in limits.products.items()
    ]
    bandwidths = table.limits_text(table.Limits(limits.threads, limits.rates, {}, empty=""), markdown=markdown)
    return "\n\n".join([bandwidths, aligned(rows, markdown=markdown)])


def judged(results: Sequence[Result], limits: Limits) -> list[goals.Judged]:
    """The goals of the design and how close this run came."""
    answers = []
    for result in results:
        ours, layer = result.timings[OURS].median, f"{result.shape} {result.dtype}"
        if result.case.name.startswith("attention_from_position"):
            rate, limit = result.work / ours, limits.rate("read")
            goal = f"{result.case.name}, {layer}: {percent(ROW_SHARE)} of the read bandwidth"
            judgement = goals.Judged(
                goal, f"{rate / 1e9:.3g} GB/s", f"{limit / 1e9:.3g} GB/s read", rate / limit, ROW_SHARE
            )
            answers.append(judgement)
        if result.case.name == "lse":
            goal = f"lse, {layer}: no slower than torch's attention forward"
            forward = result.timings.get(TORCH)
            if forward is None:
                answers.append(goals.Judged(goal))
            else:
                texts = table.duration(ours), table.duration(forward.median)
                answers.append(goals.Judged(goal, *texts, forward.median / ours))
    return answers


def report(about: Mapping[str, str], limits: Limits, results: Sequence[Result], *, markdown: bool) -> str:
    """Everything that is printed."""
    bullet = "- " if markdown else ""
    header = ["operation", "layer", "dtype", OURS, "rate", "share of limit", NUMPY, "ratio", TORCH, "ratio"]
    parts = [
        "\n".join(f"{bullet}{label}: {value}" for label, value in about.items()),
        limits_text(limits, markdown=markdown),
        aligned([header, *(row(result, limits) for result in results)], markdown=markdown),
        "\\* on a copy of the layer kept in float32, made before" if markdown else "* on a float32 copy, made before",
        goals.text(judged(results, limits), markdown=markdown),
    ]
    return "\n\n".join(parts)


def as_json(about: Mapping[str, str], limits: Limits, results: Sequence[Result]) -> dict[str, Any]:
    """Everything measured, in seconds, bytes and operations, with each contender's expression."""
    return {
        "about": dict(about),
        "limits": {
            "bandwidth": asdict(limits.rates),
            "sgemm": {name: asdict(limit) for name, limit in limits.products.items()},
        },
        "results": [
            {
                "operation": result.case.name,
                "layer": asdict(result.shape),
                "dtype": result.dtype,
                "work": result.work,
                "limit": result.case.limit,
                "expressions": dict(result.case.contenders),
                "timings": {name: asdict(found) for name, found in result.timings.items()},
            }
            for result in results
        ],
        "goals": [asdict(goal) for goal in judged(results, limits)],
    }


def main(arguments: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    """Run the benchmarks; 0 if every answer was right, 1 if one was wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parsed(arguments)
    selected = chosen_cases(options.only, cases)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's idle threads sleep: they would spin on others' cores
    threads = pin_threads(options.threads)
    about = described(threads, arguments)
    plan, shapes, side = (timing.QUICK, QUICK_SHAPES, QUICK_SIDE) if options.quick else (FULL, {}, SIDE)
    limits = Limits(threads, bandwidth.Bandwidth(), {})

    def measure_limits() -> None:
        bandwidth.measure(limits.rates, threads, quick=options.quick)
        measure_products(limits.products, side)

    measure_limits()
    try:
        results = measured(selected, plan, threads, shapes)
    except WrongAnswerError as wrong:
        print(f"not timed: {wrong}", file=sys.stderr)
        return 1
    measure_limits()  # again: the better of before and after is the limit
    print(report(about, limits, results, markdown=options.markdown))
    if options.write is not None:
        text = report(about, limits, results, markdown=True)
        options.write.write_text(f"{PREAMBLE}\n{text}\n", encoding="utf-8")
    if options.json is not None:
        content = json.dumps(as_json(about, limits, results), indent=2, ensure_ascii=False)
        options.json.write_text(content + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
