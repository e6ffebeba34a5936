"""The questions of a hot loop, each three ways: answered directly, from an index that is there, and under "auto".

Ready-made beside the indexed answers is NumPy's index of a mean that is there too: the yardstick of the index. Beside
"auto" the means are computed first, within the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from attncache import reference
from benchmarks.answers import Expected, ranking
from benchmarks.case import (
    NUMPY,
    OURS,
    READY,
    TORCH,
    Case,
    K,
    a_layer,
    a_line,
    line_bytes,
    mean_bytes,
    no_bytes,
    some_lines,
)
from benchmarks.worlds import World


class Line(NamedTuple):
    """A query about one position of the mean: its arguments, what others write for it, and how its answer is checked."""

    name: str
    query: str
    arguments: str
    numpy: str
    torch: str
    ready: str
    expected: Callable[[World, int, int], Expected]


def mean_row(world: World, layer: int, position: int) -> Expected:
    """What a position attends to, from the reference."""
    return Expected(reference.attention_from_position(world.queries(layer, [position]), 0, 0))


def mean_column(world: World, layer: int, position: int) -> Expected:
    """Who attends to a position, from the reference."""
    return Expected(reference.attention_to_position(world.keys(layer, [position]), 0, 0))


FROM = Line(
    "attention_from_position",
    "attention_from_position",
    "(layer, position)",
    "patterns[layer][0, :, position].mean(0, dtype=np.float32)",
    "tensors[layer][0, :, position].mean(0, dtype=torch.float32)",
    "means[layer][position]",
    mean_row,
)
TO = Line(
    "attention_to_position",
    "attention_to_position",
    "(layer, position)",
    "patterns[layer][0, :, :, position].mean(0, dtype=np.float32)",
    "tensors[layer][0, :, :, position].mean(0, dtype=torch.float32)",
    "means[layer][:, position]",
    mean_column,
)


def top_of_mean(k: int) -> Line:
    """The k heaviest of a mean row as a list of pairs."""

    def expected(world: World, layer: int, position: int) -> Expected:
        cut = world.queries(layer, [position])
        return Expected(
            ranking(reference.top_attended_positions(cut, 0, 0, k)), reference.attention_from_position(cut, 0, 0)
        )

    return Line(
        f"top_attended_positions, k={k}",
        "top_attended_positions",
        f"(layer, position, {k})",
        f"heaviest_pairs({FROM.numpy}, {k})",
        f"torch_heaviest_pairs({FROM.torch}, {k})",
        f"heaviest_pairs({FROM.ready}, {k})",
        expected,
    )


def direct(line: Line) -> Case:
    """The query on a cache that never builds an index, beside the same work elsewhere."""
    contenders = {OURS: f"cache.{line.query}{line.arguments}", NUMPY: line.numpy, TORCH: line.torch}
    names = ("layer", "position")
    return Case(f"{line.name}, direct", line.query, names, a_line, contenders, line.expected, line_bytes)


def indexed(line: Line) -> Case:
    """The query on a cache whose index is built, beside NumPy's index of a mean."""
    contenders = {OURS: f"indexed.{line.query}{line.arguments}", READY: line.ready}
    names = ("layer", "position")
    return Case(f"{line.name}, indexed", line.query, names, a_line, contenders, line.expected, no_bytes, "call")


def from_fresh(line: Line, index: str) -> Case:
    """Many questions to a fresh cache; the time of all of them, and of its pushes, for each."""

    def expected(world: World, questions: list[tuple[int, int]]) -> Expected:
        return Expected(np.stack([line.expected(world, *questions[at]).answer for at in (0, -1)]))

    question = "lambda layer, position"
    contenders = {
        OURS: f"first_and_last(fresh(patterns, {index!r}).{line.query}, questions)",
        NUMPY: f"first_and_last({question}: {line.numpy}, questions)",
        TORCH: f"first_and_last({question}: {line.torch}, questions)",
        READY: f"first_and_last({question}, means=means_of(patterns): {line.ready}, questions)",
    }
    name = f"{line.name}, {index}"
    return Case(name, line.query, ("questions",), some_lines, contenders, expected, no_bytes, "call", many=True)


def whole_mean(world: World, layer: int) -> Expected:
    """The head mean of a layer on its sample, from the reference."""
    return Expected(reference.head_mean(world.queries(layer, world.sample), 0))


HEAD_MEAN = (
    Case(
        "head_mean, direct",
        "head_mean",
        ("layer",),
        a_layer,
        {
            OURS: "cache.head_mean(layer)",
            NUMPY: "mean_of_heads(patterns[layer][0])",
            TORCH: "torch_mean_of_heads(tensors[layer][0])",
        },
        whole_mean,
        mean_bytes,
        whole=True,
    ),
    Case(
        "head_mean, direct, into out",
        "head_mean",
        ("layer",),
        a_layer,
        {
            OURS: "cache.head_mean(layer, out=mean_out)",
            NUMPY: "mean_of_heads(patterns[layer][0], mean_out)",
            TORCH: "torch_mean_of_heads(tensors[layer][0], mean_out_tensor)",
        },
        whole_mean,
        mean_bytes,
        whole=True,
    ),
    Case(
        "head_mean, indexed",
        "head_mean",
        ("layer",),
        a_layer,
        {OURS: "indexed.head_mean(layer)", READY: "means[layer]"},
        whole_mean,
        no_bytes,
        "call",
        whole=True,
    ),
)

TOP = top_of_mean(K)
CASES = (
    *(direct(FROM), indexed(FROM), from_fresh(FROM, "auto")),
    *(direct(TO), indexed(TO), from_fresh(TO, "auto")),
    *(direct(TOP), indexed(TOP)),
    *HEAD_MEAN,
)
