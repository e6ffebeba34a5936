"""What is measured of factored layers, as data: expressions, right answers, and what an answer costs at least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.core.case import NUMPY, OURS, TORCH, Case, Goal, K, Right, no_work, nothing
from benchmarks.factored.answers import Bounded, ExactRows, Longer, SameItems, exact_rows, of_heads, of_mean, rounded_to
from benchmarks.factored.world import NUMPY_WIDE, TORCH_WIDE, FactoredWorld

Array = npt.NDArray[Any]
SOME, MANY = 4, 64  # positions in each direction of a block of edges; keys asked for at once

LONG, MODEL, LARGE = "long", "model", "large"  # kinds of layers; suite.py says their shapes
ALL_SEEN = ", all seen"
HALF = ("float16",)


def some(axis: str, size: int | None = None) -> Callable[[FactoredWorld], tuple[Any]]:
    """Draws a random position of an axis, or so many at once."""

    def draw(world: FactoredWorld) -> tuple[Any]:
        found = world.rng.integers(getattr(world.layer, axis), size=size)
        return (int(found) if size is None else found,)

    return draw


def by_hand(numpy: str, torch: str) -> dict[str, str]:
    """NumPy and torch on the layer as it is stored, and on one kept in float32; {} stands for the layer."""
    return {
        NUMPY: numpy.format("factors"),
        NUMPY_WIDE: numpy.format("wide"),
        TORCH: torch.format("tensors"),
        TORCH_WIDE: torch.format("wide_tensors"),
    }


def key_bytes(world: FactoredWorld) -> int:
    """All keys read."""
    return world.layer.key_items * world.itemsize


def row_of(world: FactoredWorld, position: int) -> Bounded:
    """One row of every head, [head, key]."""
    return of_heads(exact_rows(world.stored, np.array([position]))).cut(lambda rows: rows[:, 0])


def mean_row_of(world: FactoredWorld, position: int) -> Bounded:
    """One row of the mean, [key]."""
    return of_mean(exact_rows(world.stored, np.array([position]))).cut(lambda rows: rows[0])


def sampled(world: FactoredWorld, of: Callable[[ExactRows], Bounded]) -> Bounded:
    """The answer about a whole layer on ``world.sample`` only."""
    return replace(of(world.sampled_rows), part=world.sample)


def edges_of(world: FactoredWorld, first: Array, second: Array) -> Bounded:
    """Some queries with some keys, [head, query, key]."""
    return of_heads(exact_rows(world.stored, first)).cut(lambda rows: rows[..., second])


def columns_of(world: FactoredWorld, positions: Any) -> Bounded:
    """Columns of the mean, [key, query], or one of them, on the sampled queries."""
    return replace(sampled(world, of_mean), axis=-1).cut(lambda rows: rows[:, positions].T)


def pattern_of(world: FactoredWorld) -> Bounded:
    """The whole pattern in the layer's dtype, on the sampled queries."""
    return rounded_to(world.dtype, sampled(world, of_heads))


def score_flops(world: FactoredWorld) -> int:
    """A multiplication and an addition for each item of each visible pair."""
    return 2 * world.layer.head_dim * world.layer.pairs


def row_case(
    name: str, ours: str, others: dict[str, str], right: Callable[..., Right], goal: Goal | None = None
) -> Case:
    """A question about one query of the long layer."""
    contenders = {OURS: ours, **others}
    return Case(name, ("position",), some("seq_q"), contenders, right, key_bytes, "read", goal, HALF, (LONG,), checks=2)


def edges_case(name: str, ours: str, *, sums_known: bool) -> Case:
    """A few queries with a few keys in every head of the long layer."""
    call = f"({{}}, query, key, sums_known={sums_known})"
    return Case(
        f"edges, {SOME} x {SOME} in every head, {name}",
        ("query", "key"),
        lambda world: some("seq_q", SOME)(world) + some("seq_k", SOME)(world),
        {OURS: f"{ours}.edges(query, key, layers=0)", **by_hand(f"numpy_edges{call}", f"torch_edges{call}")},
        edges_of,
        no_work if sums_known else key_bytes,
        None if sums_known else "read",
        dtypes=HALF,
        kinds=(LONG,),
        checks=2,
    )


MEAN_ROW = by_hand("numpy_mean_row({}, position)", "torch_mean_row({}, position)")
ROW = by_hand("numpy_row({}, position)", "torch_row({}, position)")
TOP = by_hand(f"heaviest(numpy_mean_row({{}}, position), {K})", f"torch_heaviest(torch_mean_row({{}}, position), {K})")
TOPS = by_hand(f"heaviest(numpy_row({{}}, position), {K})", f"torch_heaviest(torch_row({{}}, position), {K})")
ROW_GOAL = Goal(share=0.6)

LINES = (
    *(
        row_case(
            f"attention_from_position, {name}",
            f"{ours}.attention_from_position(0, position)",
            MEAN_ROW,
            mean_row_of,
            ROW_GOAL,
        )
        for name, ours in (("first", "fresh()"), ("sums known", "cache"))
    ),
    row_case("rows, one query of every head, first", "fresh().rows(0, position, heads=None)", ROW, row_of),
    row_case(
        f"top_k, one query of the mean, k={K}, first",
        f"fresh().top_k({K}, layers=0, positions=position)",
        TOP,
        lambda world, position: replace(mean_row_of(world, position), is_ranking=True),
    ),
    row_case(
        f"top_k, one query of every head, k={K}, first",
        f"fresh().top_k({K}, layers=0, positions=position, heads=None)",
        TOPS,
        lambda world, position: replace(row_of(world, position), is_ranking=True),
    ),
    edges_case("first", "fresh()", sums_known=False),
    edges_case("sums known", "cache", sums_known=True),
)


def whole(
    name: str, contenders: tuple[str, ...], right: Any, work: Any = no_work, limit: str | None = None, **more: Any
) -> Case:
    """An operation on the whole layer: ours alone, or with NumPy's and torch's expressions."""
    named = dict(zip((OURS, NUMPY, TORCH), contenders, strict=False))
    return Case(name, (), nothing, named, right, work, limit, checks=1, **{"kinds": (MODEL, LARGE), **more})


PATTERN = ("numpy_pattern(factors, dtype)", "torch_pattern(tensors, dtype)")

LAYERS = (
    whole(
        "lse",
        ("fresh().lse(0)[0]", "numpy_lse(factors)", "torch_lse(tensors)"),
        lambda world: sampled(world, lambda exact: Bounded(exact.lse, exact.lse_bounds, axis=-1)),
        score_flops,
        "sgemm",
        goal=Goal(ratio=1),
        kinds=(MODEL, MODEL + ALL_SEEN, LARGE, LARGE + ALL_SEEN),
    ),
    Case(
        "attention_to_position, sums known",
        ("position",),
        some("seq_k"),
        {
            OURS: "cache.attention_to_position(0, position)",
            **by_hand("numpy_columns({}, np.array([position]))[0]", "torch_columns({}, np.array([position]))[0]"),
        },
        columns_of,
        lambda world: world.layer.query_items * world.itemsize,
        "read",
        kinds=(MODEL, LARGE),
        checks=2,
    ),
    Case(
        f"columns, {MANY} keys of the mean, sums known",
        ("positions",),
        some("seq_k", MANY),
        {
            OURS: "cache.columns(0, positions)",
            **by_hand("numpy_columns({}, positions)", "torch_columns({}, positions)"),
        },
        columns_of,
        lambda world: MANY * 2 * world.layer.query_items,
        "sgemm",
        kinds=(MODEL, LARGE),
        checks=2,
    ),
    whole(
        "head_mean, sums known",
        ("cache.head_mean(0)", "numpy_head_mean(factors)", "torch_head_mean(tensors)"),
        lambda world: sampled(world, of_mean),
        score_flops,
        "sgemm",
    ),
    whole(
        "pattern_from_qk",
        ("pattern_from_qk(query, key, dtype=dtype, causal=causal)[0]", *PATTERN),
        pattern_of,
        score_flops,
        "sgemm",
        kinds=(MODEL,),
    ),
    whole(
        "get_layer, sums known", ("cache.get_layer(0)[0]", *PATTERN), pattern_of, score_flops, "sgemm", kinds=(MODEL,)
    ),
)


def same_items(world: FactoredWorld) -> SameItems:
    """The queries and keys of the world."""
    return SameItems(world.factors, row_of(world, world.layer.seq_q - 1))


STORE = (
    whole(
        "push_qk, copied",
        (
            "pushed_qk(query, key, causal=causal, copy=True)",
            "(query.copy(), key.copy())",
            "(tensors.query[None].clone(), tensors.key[None].clone())",
        ),
        same_items,
        lambda world: 2 * (world.layer.query_items + world.layer.key_items) * world.itemsize,
        "copy",
    ),
    whole("push_qk, borrowed", ("pushed_qk(query, key, causal=causal, copy=False)",), same_items),
    whole(
        "append_qk, one position",
        (
            "appended_qk(grown, last_query, last_key)",
            "(np.concatenate([query, last_query], 2), np.concatenate([key, last_key], 2))",
            "tuple(torch.cat([items, items[:, -1:]], 1)[None] for items in (tensors.query, tensors.key))",
        ),
        lambda world: Longer(world.factors),
    ),
)

CASES = (*LINES, *LAYERS, *STORE)
