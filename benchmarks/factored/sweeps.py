"""The command that measures a layer against its length, as a pattern and as queries and keys, for its figure.

``python -m benchmarks.factored.sweeps --json FILE`` measures, ``python -m benchmarks.figures FILE`` draws.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from attncache import AttentionCache, pattern_from_qk
from benchmarks.core.case import OURS, Case, World
from benchmarks.core.run import main
from benchmarks.core.timing import QUICK, Plan
from benchmarks.factored.answers import Bounded, exact_rows, of_mean, rounded_to
from benchmarks.factored.cases import mean_row_of
from benchmarks.factored.suite import FactoredSuite
from benchmarks.factored.world import FactoredWorld, Shape

PLAN = Plan(sample=3e-3, budget=3.0, least=1, most=21)
SEQS, QUICK_SEQS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072), (16, 32)
SHAPE = Shape(9, 3, 64, 1, 1)  # a layer of SmolLM2-135M
DENSE_BYTES = 5_000_000_000  # a pattern that is larger is not made
DENSE = f"dense layer, up to {DENSE_BYTES / 1e9:.0f} GB"
FACTORED_FIRST, FACTORED = "factored layer, first question", "factored layer, sums known"
CHECKED = 4  # queries at which columns are checked
FIGURE = "factored-by-seq"
TITLE = f"A layer as pattern and as queries and keys: {SHAPE.heads} heads, {SHAPE.key_heads} key heads of 64, float16"


def smaller_from(shape: Shape, itemsize: int) -> float:
    """The length at which a pattern takes as many bytes as its queries, keys and the two float32 of each row's sum.

    heads * n * n * itemsize = (heads + key heads) * n * head_dim * itemsize + 8 * heads * n
    """
    items = (shape.heads + shape.key_heads) * shape.head_dim
    return (items * itemsize + 8 * shape.heads) / (shape.heads * itemsize)


class LengthWorld(FactoredWorld):
    """A layer of queries and keys, and as a pattern if that is not too large."""

    def __init__(self, seq: int, threads: int, plan: Plan) -> None:
        super().__init__(replace(SHAPE, seq_q=seq, seq_k=seq), "float16", threads, plan)
        if self.layer.weights * self.itemsize > DENSE_BYTES:
            self.without = frozenset({DENSE})

    def made_dense(self) -> AttentionCache:
        """A cache of the pattern, computed from the queries and keys."""
        cache = AttentionCache(index="off")
        cache.push(pattern_from_qk(self.query, self.key, scale=self.scale, dtype=self.dtype), copy=False)
        return cache

    @cached_property
    def names(self) -> dict[str, Any]:
        """What expressions can refer to."""
        dense = None if DENSE in self.without else self.made_dense()
        return {"fresh": self.fresh, "cache": self.cache, "made_dense": self.made_dense, "dense": dense}


class EitherForm(NamedTuple):
    """A right answer, which a pattern gives as it is rounded to float16."""

    right: Bounded

    def accepts(self, answer: Any, contender: str) -> bool:
        """Whether an answer is within the bound of ours."""
        return rounded_to("float16" if contender == DENSE else "float32", self.right).accepts(answer, OURS)


def mean_row(world: LengthWorld, position: int) -> EitherForm:
    """One row of the mean."""
    return EitherForm(mean_row_of(world, position))


def mean_column(world: LengthWorld, position: int) -> EitherForm:
    """One column of the mean at a few queries."""
    queries = np.linspace(0, world.layer.seq_q - 1, CHECKED).astype(np.int64)
    column = of_mean(exact_rows(world.stored, queries)).cut(lambda rows: rows[:, position])
    return EitherForm(replace(column, part=queries, axis=-1))


def point(seq: int, panel: str, codes: Mapping[str, str], right: Any, facts: Mapping[str, str] | None = None) -> Case:
    """One question at one length."""
    memory = f"memory, sums included: less from {smaller_from(SHAPE, 2):.0f} positions on"
    labels = {"figure": FIGURE, "title": TITLE, "panel": panel, "x": seq, "x_label": "positions", "facts": memory}
    return Case(
        f"{FIGURE}, {panel}, {seq}",
        ("position",),
        lambda world: (int(world.rng.integers(seq)),),
        codes,
        right,
        dtypes=("float16",),
        kinds=(str(seq),),
        checks=1,
        facts=facts or {},
        labels=labels,
    )


def points(seq: int) -> Iterator[Case]:
    """The questions at one length."""
    row, column = "attention_from_position(0, position)", "attention_to_position(0, position)"
    asked = {DENSE: "dense", FACTORED_FIRST: "fresh()", FACTORED: "cache"}
    rows = {label: f"{cache}.{row}" for label, cache in asked.items()}
    columns = {label: f"{asked[label]}.{column}" for label in (DENSE, FACTORED)}
    first = {DENSE: f"made_dense().{column}", FACTORED_FIRST: f"fresh().{column}"}
    facts = {DENSE: "dense.nbytes", FACTORED: "cache.nbytes"}
    yield point(seq, "one row: attention_from_position", rows, mean_row)
    yield point(seq, "one column: attention_to_position", columns, mean_column)
    yield point(seq, "the first column, from queries and keys", first, mean_column, facts)


class SweepSuite(FactoredSuite):
    """Points of the figure."""

    module = "benchmarks.factored.sweeps"
    contenders = ()

    def cases(self, options: argparse.Namespace) -> Sequence[Case]:
        """Every question at every length."""
        return [case for seq in (QUICK_SEQS if options.quick else SEQS) for case in points(seq)]

    def worlds(self, options: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], World]]]:
        """A layer of every length."""
        for seq in QUICK_SEQS if options.quick else SEQS:
            yield str(seq), "float16", partial(LengthWorld, seq, options.threads, QUICK if options.quick else PLAN)


if __name__ == "__main__":
    sys.exit(main(SweepSuite()))
