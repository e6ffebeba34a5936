"""What is measured of stored patterns: every query of the registry, and what ``pushes`` adds.

The questions of a hot loop come three ways: answered directly, from an index that is there, and under "auto". Ready-made
beside the indexed answers is NumPy's index of a mean that is there too; beside "auto" the means are computed first, within
the time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.core.answers import Expected
from benchmarks.core.case import NUMPY, OURS, READY, TORCH, Case, Goal, K, no_work
from benchmarks.dense import pushes
from benchmarks.dense import questions as q
from benchmarks.dense.questions import SEVERAL
from benchmarks.dense.world import DenseWorld as World


class Line(NamedTuple):
    """A query about one position of the mean: its arguments, what others write for it, and how its answer is checked."""

    name: str
    call: str
    numpy: str
    torch: str
    ready: str
    right: Callable[..., Expected]
    goal: Goal

    @property
    def query(self) -> str:
        """The method that is asked."""
        return self.call.partition("(")[0]


FROM = Line(
    "attention_from_position",
    "attention_from_position(layer, position)",
    "patterns[layer][0, :, position].mean(0, dtype=np.float32)",
    "tensors[layer][0, :, position].mean(0, dtype=torch.float32)",
    "means[layer][position]",
    q.row,
    Goal(ratio=1, rival=READY),
)
TO = Line(
    "attention_to_position",
    "attention_to_position(layer, position)",
    "patterns[layer][0, :, :, position].mean(0, dtype=np.float32)",
    "tensors[layer][0, :, :, position].mean(0, dtype=torch.float32)",
    "means[layer][:, position]",
    q.column,
    Goal(ratio=1, rival=READY),
)


def top_of_mean(k: int) -> Line:
    """The k heaviest of a mean row as a list of pairs."""
    return Line(
        f"top_attended_positions, k={k}",
        f"top_attended_positions(layer, position, {k})",
        f"heaviest_pairs({FROM.numpy}, {k})",
        f"torch_heaviest_pairs({FROM.torch}, {k})",
        f"heaviest_pairs({FROM.ready}, {k})",
        partial(q.top_of_mean_row, k=k),
        Goal(seconds=2e-6),
    )


LINE = ("layer", "position")


def direct(line: Line) -> Case:
    """The query on a cache that never builds an index, beside the same work elsewhere."""
    contenders = {OURS: f"cache.{line.call}", NUMPY: line.numpy, TORCH: line.torch}
    return Case(f"{line.name}, direct", LINE, q.a_line, contenders, line.right, q.line_bytes, "read")


def indexed(line: Line) -> Case:
    """The query on a cache whose index is built, beside NumPy's index of a mean."""
    contenders = {OURS: f"indexed.{line.call}", READY: line.ready}
    return Case(f"{line.name}, indexed", LINE, q.a_line, contenders, line.right, no_work, "call", line.goal)


def some_lines(world: World, count: int | None = None) -> tuple[list[tuple[int, int]]]:
    """Many random layers and positions."""
    return ([q.a_line(world) for _ in range(count or world.size.questions)],)


def from_fresh(line: Line, index: str) -> Case:
    """Many questions to a fresh cache; the time of all of them, and of its pushes, for each."""

    def right(world: World, questions: list[tuple[int, int]]) -> Expected:
        ends = [line.right(world, *questions[at]).answer for at in (0, -1)]
        return Expected(np.stack(ends), world.size.heads)

    question = "lambda layer, position"
    contenders = {
        OURS: f"first_and_last(fresh(patterns, {index!r}).{line.query}, questions)",
        NUMPY: f"first_and_last({question}: {line.numpy}, questions)",
        TORCH: f"first_and_last({question}: {line.torch}, questions)",
        READY: f"first_and_last({question}, means=means_of(patterns): {line.ready}, questions)",
    }
    return Case(
        f"{line.name}, {index}",
        ("questions",),
        some_lines,
        contenders,
        right,
        limit="call",
        questions=lambda world: int(world.size.questions),
    )


def top_of_heads(k: int) -> Case:
    """The k heaviest of one query in each head."""
    return Case(
        f"top_k, one query of every head, k={k}",
        LINE,
        q.a_line,
        {
            OURS: f"cache.top_k({k}, layers=layer, positions=position, heads=None)",
            NUMPY: f"heaviest(patterns[layer][0, :, position], {k})",
            TORCH: f"torch_heaviest(tensors[layer][0, :, position], {k})",
        },
        partial(q.top_of_row, k=k),
        lambda world: q.top_bytes(world, world.size.heads, k),
        "read",
    )


def line_of_layers(name: str, call: str, cut: str, right: Any) -> Case:
    """One line of the mean of every layer."""
    return Case(
        name,
        ("position",),
        q.a_position,
        {
            OURS: f"cache.{call}(positions=position)",
            NUMPY: f"np.stack([p[{cut}].mean(0, dtype=np.float32) for p in patterns])",
            TORCH: f"torch.stack([t[{cut}].mean(0, dtype=torch.float32) for t in tensors])",
        },
        right,
        q.lines_bytes,
        "read",
    )


def edges_case(name: str, draw: Any, cut: str, pairs: int) -> Case:
    """Pairs of positions in every layer and head."""
    contenders = {
        OURS: "cache.edges(query, key)",
        NUMPY: f"np.stack([p{cut} for p in patterns]).astype(np.float32)",
        TORCH: f"torch.stack([t{cut} for t in tensors]).float()",
    }
    return Case(name, ("query", "key"), draw, contenders, q.edges, partial(q.edge_bytes, pairs=pairs))


TOP = top_of_mean(K)
MEANS = ("mean_of_heads(patterns[layer][0]{})", "torch_mean_of_heads(tensors[layer][0]{})")
WHOLE_MEAN = (MEANS[0].format(""), MEANS[1].format(""))
HOT = (
    *(direct(FROM), indexed(FROM), from_fresh(FROM, "auto")),
    *(direct(TO), indexed(TO), from_fresh(TO, "auto")),
    *(direct(TOP), indexed(TOP)),
    q.whole("head_mean, direct", ("cache.head_mean(layer)", *WHOLE_MEAN), q.rows, q.mean_bytes, goal=Goal(share=0.85)),
    q.whole(
        "head_mean, direct, into out",
        ("cache.head_mean(layer, out=mean_out)", MEANS[0].format(", mean_out"), MEANS[1].format(", mean_out_tensor")),
        q.rows,
        q.mean_bytes,
    ),
    q.whole("head_mean, indexed", ("indexed.head_mean(layer)", "means[layer]"), q.rows, no_work, "call"),
)

LINES = (
    line_of_layers("rows, one query of every layer", "rows", "0, :, position", q.row_of_layers),
    line_of_layers("columns, one key of every layer", "columns", "0, :, :, position", q.column_of_layers),
    top_of_heads(K),
    edges_case("edges, one pair in every layer and head", q.a_pair, "[0, :, query, key]", 1),
    edges_case(
        f"edges, {SEVERAL} x {SEVERAL} in every layer and head", q.a_block, "[0][:, query[:, None], key]", SEVERAL**2
    ),
)

LAYERS = (
    q.whole("rows, every query of the mean", ("cache.rows(layer)", *WHOLE_MEAN), q.rows, q.mean_bytes),
    q.whole(
        "rows, every query of every head",
        (
            "cache.rows(layer, heads=None)",
            "patterns[layer][0].astype(np.float32)",
            "tensors[layer][0].to(torch.float32, copy=True)",
        ),
        partial(q.rows, heads=None),
        q.widened_bytes,
        "copy",
    ),
    q.whole(
        "rows, every query of every head, into out",
        (
            "cache.rows(layer, heads=None, out=heads_out)",
            "widened(patterns[layer][0], heads_out)",
            "heads_out_tensor.copy_(tensors[layer][0])",
        ),
        partial(q.rows, heads=None),
        q.widened_bytes,
        "overwrite",
    ),
    q.whole(
        "columns, every key of the mean",
        ("cache.columns(layer)", f"np.ascontiguousarray({WHOLE_MEAN[0]}.T)", f"{WHOLE_MEAN[1]}.T.contiguous()"),
        q.columns,
        q.mean_bytes,
    ),
    q.whole(
        f"top_k, every query of every head, k={K}",
        (
            f"cache.top_k({K}, layers=layer, heads=None)",
            f"heaviest(patterns[layer][0], {K})",
            f"torch_heaviest(tensors[layer][0], {K})",
        ),
        q.top_of_rows,
        lambda world: q.top_bytes(world, world.size.heads * world.size.seq),
        goal=Goal(share=0.6),
    ),
    q.whole(
        f"top_k, every key of the mean, k={K}",
        (
            f"cache.top_k({K}, layers=layer, direction='to')",
            f"heaviest({WHOLE_MEAN[0]}.T, {K})",
            f"torch_heaviest({WHOLE_MEAN[1]}.T, {K})",
        ),
        q.top_of_columns,
        lambda world: world.size.weights * world.itemsize + world.size.seq * K * 12,
    ),
)


CASES = (*HOT, *LINES, *LAYERS, *pushes.CASES)
