"""What a layer costs against the length of its sequence, as a pattern and as queries and keys: the figure's data."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from attncache import AttentionCache, pattern_from_qk
from benchmarks import timing
from benchmarks.answers import WrongAnswerError
from benchmarks.curves import Bench, Curve, Panel, Picture
from benchmarks.factored_answers import Bounded, exact_rows, of_mean, rounded_to
from benchmarks.factored_cases import mean_row_of
from benchmarks.factored_world import FactoredWorld, Shape
from benchmarks.measuring import answer_of, sweep_of
from benchmarks.timing import Timing

DENSE_BYTES = 5_000_000_000  # a pattern that is larger is not made
DENSE = f"dense layer, up to {DENSE_BYTES / 1e9:.0f} GB"
FACTORED_FIRST, FACTORED = "factored layer, first question", "factored layer, sums known"
CHECKED = 4  # queries at which columns are checked
ONCE = 3.0  # seconds: what takes longer is asked a single time

Expressions = Mapping[str, str]


def dense_bytes(shape: Shape, itemsize: int) -> int:
    """Bytes of the pattern."""
    return shape.weights * itemsize


def smaller_from(shape: Shape, itemsize: int) -> float:
    """The length at which a pattern takes as many bytes as its queries, keys and the two float32 of each row's sum.

    heads * n * n * itemsize = (heads + key heads) * n * head_dim * itemsize + 8 * heads * n
    """
    items = (shape.heads + shape.key_heads) * shape.head_dim
    return (items * itemsize + 8 * shape.heads) / (shape.heads * itemsize)


def made_dense(world: FactoredWorld) -> AttentionCache:
    """A cache of the pattern, computed from the queries and keys."""
    cache = AttentionCache(index="off")
    cache.push(pattern_from_qk(world.query, world.key, scale=world.scale, dtype=world.dtype), copy=False)
    return cache


def checked(answers: Expressions, position: int, names: dict[str, Any], right: Bounded) -> None:
    """Raise WrongAnswerError unless each expression answers right; those of a pattern as it is rounded."""
    for label, code in answers.items():
        bounded = rounded_to("float16" if label == DENSE else "float32", right)
        if not bounded.accepts(answer_of(code, ("position",), names)(position), ours=True):
            raise WrongAnswerError(f"{label} answers {code} with position={position} outside its bound of float64")


def timed(codes: Expressions, names: dict[str, Any], positions: Sequence[int], plan: timing.Plan) -> dict[str, Timing]:
    """The timings of all expressions, which take turns."""
    sweeps = {label: sweep_of(code, ("position",), names) for label, code in codes.items()}
    return timing.interleaved(sweeps, [(position,) for position in positions], plan)


def column_of(world: FactoredWorld, position: int) -> Bounded:
    """One column of the mean at a few queries."""
    queries = np.linspace(0, world.shape.seq_q - 1, CHECKED).astype(np.int64)
    mean = of_mean(exact_rows(world.stored, queries))
    ours, others = (bound[:, position] for bound in mean.bounds)
    return Bounded(mean.values[:, position], (ours, others), queries, axis=-1)


def made_and_asked(
    make: Callable[[], AttentionCache], position: int, plan: timing.Plan
) -> tuple[AttentionCache, Timing]:
    """A cache that has answered its first question, and what making and asking took; if seconds, it is done once."""
    start = time.perf_counter()
    cache = make()
    cache.attention_to_position(0, position)
    took = time.perf_counter() - start
    if took > ONCE:
        return cache, Timing(took, took, took, 1, 1)
    return cache, timed({"": "make().attention_to_position(0, position)"}, {"make": make}, [position], plan)[""]


def add_questions(panels: Sequence[Panel], world: FactoredWorld, plan: timing.Plan) -> None:
    """Append one length to the panels: a row, a column, the first column, bytes."""
    row, column, first, size = panels
    seq = world.shape.seq_k
    position = int(world.rng.integers(seq // 2))
    names: dict[str, Any] = {"fresh": world.fresh}
    known: dict[str, str] = {}
    if dense_bytes(world.shape, world.itemsize) <= DENSE_BYTES:
        known[DENSE] = "dense"
        names["dense"], took = made_and_asked(partial(made_dense, world), position, plan)
        first.add(DENSE, seq, took)
    names["factored"], took = made_and_asked(world.fresh, position, plan)
    first.add(FACTORED_FIRST, seq, took)
    known[FACTORED] = "factored"
    rows = {label: f"{cache}.attention_from_position(0, position)" for label, cache in known.items()}
    rows[FACTORED_FIRST] = "fresh().attention_from_position(0, position)"
    columns = {label: f"{cache}.attention_to_position(0, position)" for label, cache in known.items()}
    checked(columns, position, names, column_of(world, position))
    checked(rows, position, names, mean_row_of(world, position))
    for label, cache in known.items():
        size.curves.setdefault(label, Curve()).add(seq, names[cache].nbytes)
    positions = world.rng.integers(seq, size=256).tolist()
    for panel, codes in ((row, rows), (column, columns)):
        for label, found in timed(codes, names, positions, plan).items():
            panel.add(label, seq, found)


def pays_from(row: Panel, first: Panel) -> dict[int, float]:
    """From how many rows on it is cheaper to compute the pattern first, by length, where the pattern fits."""
    dense, factored, made = row.curves[DENSE], row.curves[FACTORED_FIRST], first.curves[DENSE]
    return {
        int(seq): made.medians[i] / max(factored.medians[i] - dense.medians[i], 1e-12) for i, seq in enumerate(dense.xs)
    }


def factored_by_seq(seqs: Sequence[int], bench: Bench) -> Picture:
    """Time and memory of a layer in the shape of SmolLM2-135M, 9 heads and 3 key heads of 64 items, float16."""
    shape = Shape(9, 3, 64, 1, 1)
    panels = [
        Panel("one row: attention_from_position", "positions"),
        Panel("one column: attention_to_position", "positions"),
        Panel("the first column, from queries and keys", "positions"),
        Panel(f"memory, sums included: less from {smaller_from(shape, 2):.0f} positions on", "positions", unit="bytes"),
    ]
    for seq in seqs:
        print(f"measuring {seq} positions", file=sys.stderr)
        add_questions(panels, FactoredWorld(replace(shape, seq_q=seq, seq_k=seq), "float16", bench.threads), bench.plan)
    for seq, rows in pays_from(panels[0], panels[2]).items():
        print(f"{seq} positions: computing the pattern first pays from {rows:.0f} rows on", file=sys.stderr)
    title = (
        f"A layer as pattern and as queries and keys: {shape.heads} heads, {shape.key_heads} key heads of 64, float16"
    )
    return Picture("factored-by-seq", title, "lines", panels)
