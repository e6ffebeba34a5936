"""What is measured of factored layers, as data: expressions, right answers, and what an answer costs at least."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.case import NUMPY, OURS, TORCH, K
from benchmarks.factored_answers import Bounded, ExactRows, Longer, SameItems, exact_rows, of_heads, of_mean, rounded_to
from benchmarks.factored_world import FactoredWorld, Shape, all_seen

Array = npt.NDArray[Any]
NUMPY_WIDE, TORCH_WIDE = f"{NUMPY}, float32 kept", f"{TORCH}, float32 kept"
SOME, MANY = 4, 64  # positions in each direction of a block of edges; keys asked for at once

LONG = Shape(32, 8, 128, 64, 131072)
MODEL = Shape(9, 3, 64, 4096, 4096)
LARGE = Shape(32, 8, 128, 4096, 4096)
TINY_LONG, TINY = Shape(4, 2, 16, 5, 300), Shape(4, 2, 16, 40, 40)
BOTH, HALF = ("float32", "float16"), ("float16",)


class Right(Protocol):
    """Knows the right answer."""

    def accepts(self, answer: Any, *, ours: bool) -> bool:
        """Whether an answer is right."""


@dataclass(frozen=True)
class FactoredCase:
    """One measured operation.

    name: what the table says.
    arguments, draw, contenders: as of ``case.Case``; a contender that keeps a float32 copy of the layer is left out
        where the layer is float32.
    expected: the right answer for one draw.
    work: bytes read and written by one call, or its floating-point operations, counted once each.
    limit: reading memory, copying into fresh memory, or multiplying matrices; None: not measured.
    """

    name: str
    arguments: tuple[str, ...]
    draw: Callable[[FactoredWorld], tuple[Any, ...]]
    contenders: Mapping[str, str]
    expected: Callable[..., Right]
    work: Callable[[FactoredWorld], int]
    limit: Literal["read", "copy", "sgemm"] | None
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...] = BOTH


def nothing(_world: FactoredWorld) -> tuple[()]:
    """No argument."""
    return ()


def a_query(world: FactoredWorld) -> tuple[int]:
    """A random query position."""
    return (int(world.rng.integers(world.shape.seq_q)),)


def a_key(world: FactoredWorld) -> tuple[int]:
    """A random key position."""
    return (int(world.rng.integers(world.shape.seq_k)),)


def some_keys(world: FactoredWorld) -> tuple[Array]:
    """Many random key positions."""
    return (world.rng.integers(world.shape.seq_k, size=MANY),)


def a_block(world: FactoredWorld) -> tuple[Array, Array]:
    """A few random query and key positions."""
    return world.rng.integers(world.shape.seq_q, size=SOME), world.rng.integers(world.shape.seq_k, size=SOME)


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
    return world.shape.key_items * world.itemsize


def row_of(world: FactoredWorld, position: int) -> Bounded:
    """One row of every head, [head, key]."""
    exact = of_heads(exact_rows(world.stored, np.array([position])))
    return Bounded(exact.values[:, 0], (exact.bounds[0][:, 0], exact.bounds[1][:, 0]))


def mean_row_of(world: FactoredWorld, position: int) -> Bounded:
    """One row of the mean, [key]."""
    exact = of_mean(exact_rows(world.stored, np.array([position])))
    return Bounded(exact.values[0], (exact.bounds[0][0], exact.bounds[1][0]))


def ranked(bounded: Bounded) -> Bounded:
    """The same for an answer that ranks."""
    return Bounded(bounded.values, bounded.bounds, is_ranking=True)


def sampled(world: FactoredWorld, of: Callable[[ExactRows], Bounded]) -> Bounded:
    """The answer about a whole layer on ``world.sample`` only."""
    return replace(of(world.sampled_rows), part=world.sample)


def edges_of(world: FactoredWorld, first: Array, second: Array) -> Bounded:
    """Some queries with some keys, [head, query, key]."""
    exact = exact_rows(world.stored, first)
    return Bounded(exact.weights[..., second], (exact.bounds[0][..., second], exact.bounds[1][..., second]))


def columns_of(world: FactoredWorld, positions: Array) -> Bounded:
    """Some columns of the mean, [key, query], on the sampled queries."""
    mean = of_mean(world.sampled_rows)
    ours, others = (bound[:, positions].T for bound in mean.bounds)
    return Bounded(mean.values[:, positions].T, (ours, others), world.sample, axis=-1)


def column_of(world: FactoredWorld, position: int) -> Bounded:
    """One column of the mean, [query], on the sampled queries."""
    found = columns_of(world, np.array([position]))
    return Bounded(found.values[0], (found.bounds[0][0], found.bounds[1][0]), world.sample, axis=-1)


def lse_of(exact: ExactRows) -> Bounded:
    """The normalisers, [head, query]."""
    return Bounded(exact.lse, exact.lse_bounds, axis=-1)


def pattern_of(world: FactoredWorld) -> Bounded:
    """The whole pattern in the layer's dtype, on the sampled queries."""
    return rounded_to(world.dtype, sampled(world, of_heads))


def score_flops(world: FactoredWorld) -> int:
    """A multiplication and an addition for each item of each visible pair."""
    return 2 * world.shape.head_dim * world.shape.pairs


def stored_bytes(world: FactoredWorld) -> int:
    """All queries and keys."""
    return (world.shape.query_items + world.shape.key_items) * world.itemsize


def row_case(name: str, ours: str, contenders: dict[str, str], expected: Callable[..., Right]) -> FactoredCase:
    """A question about one query of the long layer."""
    return FactoredCase(
        name, ("position",), a_query, {OURS: ours, **contenders}, expected, key_bytes, "read", (LONG,), HALF
    )


def edges_case(name: str, ours: str, *, sums_known: bool) -> FactoredCase:
    """A few queries with a few keys in every head of the long layer."""
    call = f"({{}}, query, key, sums_known={sums_known})"
    return FactoredCase(
        f"edges, {SOME} x {SOME} in every head, {name}",
        ("query", "key"),
        a_block,
        {OURS: f"{ours}.edges(query, key, layers=0)", **by_hand(f"numpy_edges{call}", f"torch_edges{call}")},
        edges_of,
        key_bytes,
        None if sums_known else "read",
        (LONG,),
        HALF,
    )


MEAN_ROW = by_hand("numpy_mean_row({}, position)", "torch_mean_row({}, position)")
TOP = by_hand(f"heaviest(numpy_mean_row({{}}, position), {K})", f"torch_heaviest(torch_mean_row({{}}, position), {K})")

LINES = (
    row_case("attention_from_position, first", "fresh().attention_from_position(0, position)", MEAN_ROW, mean_row_of),
    row_case(
        "attention_from_position, sums known", "cache.attention_from_position(0, position)", MEAN_ROW, mean_row_of
    ),
    row_case(
        "rows, one query of every head, first",
        "fresh().rows(0, position, heads=None)",
        by_hand("numpy_row({}, position)", "torch_row({}, position)"),
        row_of,
    ),
    row_case(
        f"top_k, one query of the mean, k={K}, first",
        f"fresh().top_k({K}, layers=0, positions=position)",
        TOP,
        lambda world, position: ranked(mean_row_of(world, position)),
    ),
    row_case(
        f"top_k, one query of every head, k={K}, first",
        f"fresh().top_k({K}, layers=0, positions=position, heads=None)",
        by_hand(f"heaviest(numpy_row({{}}, position), {K})", f"torch_heaviest(torch_row({{}}, position), {K})"),
        lambda world, position: ranked(row_of(world, position)),
    ),
    edges_case("first", "fresh()", sums_known=False),
    edges_case("sums known", "cache", sums_known=True),
)

LAYERS = (
    FactoredCase(
        "lse",
        (),
        nothing,
        {OURS: "fresh().lse(0)[0]", NUMPY: "numpy_lse(factors)", TORCH: "torch_lse(tensors)"},
        lambda world: sampled(world, lse_of),
        score_flops,
        "sgemm",
        (MODEL, all_seen(MODEL), LARGE, all_seen(LARGE)),
    ),
    FactoredCase(
        "attention_to_position, sums known",
        ("position",),
        a_key,
        {
            OURS: "cache.attention_to_position(0, position)",
            **by_hand("numpy_columns({}, np.array([position]))[0]", "torch_columns({}, np.array([position]))[0]"),
        },
        column_of,
        lambda world: world.shape.query_items * world.itemsize,
        "read",
        (MODEL, LARGE),
    ),
    FactoredCase(
        f"columns, {MANY} keys of the mean, sums known",
        ("positions",),
        some_keys,
        {
            OURS: "cache.columns(0, positions)",
            **by_hand("numpy_columns({}, positions)", "torch_columns({}, positions)"),
        },
        columns_of,
        lambda world: MANY * 2 * world.shape.query_items,
        "sgemm",
        (MODEL, LARGE),
    ),
    FactoredCase(
        "head_mean, sums known",
        (),
        nothing,
        {OURS: "cache.head_mean(0)", NUMPY: "numpy_head_mean(factors)", TORCH: "torch_head_mean(tensors)"},
        lambda world: sampled(world, of_mean),
        score_flops,
        "sgemm",
        (MODEL, LARGE),
    ),
    FactoredCase(
        "pattern_from_qk",
        (),
        nothing,
        {
            OURS: "pattern_from_qk(query, key, dtype=dtype, causal=causal)[0]",
            NUMPY: "numpy_pattern(factors, dtype)",
            TORCH: "torch_pattern(tensors, dtype)",
        },
        pattern_of,
        score_flops,
        "sgemm",
        (MODEL,),
    ),
    FactoredCase(
        "get_layer, sums known",
        (),
        nothing,
        {
            OURS: "cache.get_layer(0)[0]",
            NUMPY: "numpy_pattern(factors, dtype)",
            TORCH: "torch_pattern(tensors, dtype)",
        },
        pattern_of,
        score_flops,
        "sgemm",
        (MODEL,),
    ),
)

STORE = (
    FactoredCase(
        "push_qk, copied",
        (),
        nothing,
        {
            OURS: "pushed_qk(query, key, causal=causal, copy=True)",
            NUMPY: "(query.copy(), key.copy())",
            TORCH: "(tensors.query[None].clone(), tensors.key[None].clone())",
        },
        lambda world: SameItems(world.factors, row_of(world, world.shape.seq_q - 1)),
        lambda world: 2 * stored_bytes(world),
        "copy",
        (MODEL, LARGE),
    ),
    FactoredCase(
        "push_qk, borrowed",
        (),
        nothing,
        {OURS: "pushed_qk(query, key, causal=causal, copy=False)"},
        lambda world: SameItems(world.factors, row_of(world, world.shape.seq_q - 1)),
        lambda _world: 0,
        None,
        (MODEL, LARGE),
    ),
    FactoredCase(
        "append_qk, one position",
        (),
        nothing,
        {
            OURS: "appended_qk(grown, last_query, last_key)",
            NUMPY: "(np.concatenate([query, last_query], 2), np.concatenate([key, last_key], 2))",
            TORCH: "(torch.cat([tensors.query, tensors.query[:, -1:]], 1)[None], "
            "torch.cat([tensors.key, tensors.key[:, -1:]], 1)[None])",
        },
        lambda world: Longer(world.factors),
        lambda _world: 0,
        None,
        (MODEL, LARGE),
    ),
)

CASES = (*LINES, *LAYERS, *STORE)
