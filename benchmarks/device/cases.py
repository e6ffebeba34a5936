"""What is measured on a device: questions about stored patterns and about queries and keys, ours beside torch's.

Answers are written into ``out``, an array on the device, unless the host's time to a NumPy array is measured; rankings
always come as NumPy arrays. Rates of queries and keys are those of the keys alone, read once for each bundle of up to 8
lines that share them (cpp/cuda/factored_scores.cuh).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.core.answers import Expected
from benchmarks.core.case import OURS, TORCH, Case, Goal, K
from benchmarks.dense import questions as q
from benchmarks.dense.cases import CASES as DENSE
from benchmarks.device.world import Array, DenseDeviceWorld, FactoredDeviceWorld
from benchmarks.factored.answers import Bounded, ExactRows, exact_rows, of_heads, of_mean

LONG_K = 300  # beyond what a block sorts by counting
LINES_OF_BUNDLE, SEVERAL = 8, 16
ROUNDINGS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}  # of a score that torch keeps in the dtype
DTYPES = ("float16", "bfloat16", "float32")
FACTORED = "queries and keys"  # the kind of world of such layers

WHOLE, RANKED, ONE = Goal(share=0.85), Goal(share=0.5, ratio=2), Goal(ratio=1)


@dataclass(frozen=True)
class DeviceCase(Case):
    """A case on a device.

    out: the shape of the answer that is left there; None: it comes as NumPy arrays.
    is_small: the host's times are measured too.
    """

    out: Callable[[Any], tuple[int, ...]] | None = None
    is_small: bool = False


def next_layer(world: DenseDeviceWorld) -> tuple[int]:
    """The layers in turn, so that none is asked for while a cache holds it."""
    return (next(world.turn),)


def next_line(world: DenseDeviceWorld) -> tuple[int, int]:
    """A layer in turn and a random position."""
    return (*next_layer(world), *q.a_position(world))


@dataclass(frozen=True)
class OnHost:
    """A right answer, of which the answers that lie on the device bring only what it covers to the host."""

    world: DenseDeviceWorld | FactoredDeviceWorld
    right: Expected | Bounded

    def accepts(self, answer: Any, contender: str) -> bool:
        """Whether an answer is right."""
        found = self.world.place.on_host(answer, self.right.part)
        return replace(self.right, part=None).accepts(found, contender)


def dense(
    name: str, goal: Goal, out: Any = None, torch: str | None = None, base: str | None = None, **more: Any
) -> DeviceCase:
    """The case that the CPU has by that name, or by ``base``, with torch's expression as on a device."""
    (found,) = (case for case in DENSE if case.name == (base or name))
    named = {OURS: found.contenders[OURS], TORCH: torch or found.contenders[TORCH]}
    draws = {("layer",): next_layer, ("layer", "position"): next_line}
    return DeviceCase(
        name,
        found.arguments,
        draws.get(found.arguments, found.draw),
        more.get("contenders", named),
        lambda world, *drawn: OnHost(world, more.get("right", found.right)(world, *drawn)),
        more.get("work", found.work),
        "copy",
        goal,
        DTYPES,
        checks=found.checks,
        out=out,
        is_small=found.arguments != ("layer",),
    )


def plane(world: DenseDeviceWorld) -> tuple[int, ...]:
    """The shape of a mean."""
    return (world.size.seq, world.size.seq)


def planes(world: DenseDeviceWorld) -> tuple[int, ...]:
    """The shape of all heads."""
    return (world.size.heads, *plane(world))


def line_of_layers(world: DenseDeviceWorld) -> tuple[int, ...]:
    """The shape of a line of every layer."""
    return (world.size.layers, world.size.seq)


MEAN = "tensors[layer][0].mean(0, dtype=torch.float32)"
RANKS = "cache.top_k({}, layers=layer, heads=None{})"
TO = ", direction='to'"
EVERY_TOP = f"top_k, every query of every head, k={K}"
PATTERNS = (
    dense("head_mean", WHOLE, plane, MEAN, "head_mean, direct"),
    dense("rows, every query of every head", WHOLE, planes),
    dense("columns, every key of the mean", WHOLE, plane, f"{MEAN}.T.contiguous()"),
    dense(
        "columns, every key of every head",
        WHOLE,
        planes,
        base="columns, every key of the mean",
        contenders={
            OURS: "cache.columns(layer, heads=None)",
            TORCH: "tensors[layer][0].mT.to(torch.float32, memory_format=torch.contiguous_format, copy=True)",
        },
        right=partial(q.columns, heads=None),
        work=q.widened_bytes,
    ),
    dense(EVERY_TOP, RANKED),
    dense(
        f"top_k, every query of every head, k={LONG_K}",
        RANKED,
        base=EVERY_TOP,
        contenders={OURS: RANKS.format(LONG_K, ""), TORCH: f"torch_heaviest(tensors[layer][0], {LONG_K})"},
        right=partial(q.top_of_rows, k=LONG_K),
        work=lambda world: q.top_bytes(world, world.size.heads * world.size.seq, LONG_K),
    ),
    dense(
        f"top_k, every key of every head, k={K}",
        Goal(ratio=2),
        base=EVERY_TOP,
        contenders={OURS: RANKS.format(K, TO), TORCH: f"torch_heaviest(tensors[layer][0].mT.contiguous(), {K})"},
        right=partial(q.top_of_columns, heads=None),
    ),
    dense("rows, one query of every layer", ONE, line_of_layers),
    dense(
        "rows, one query of one layer",
        ONE,
        lambda world: (world.size.seq,),
        base="attention_from_position, direct",
        contenders={
            OURS: "cache.rows(layer, position)",
            TORCH: "tensors[layer][0, :, position].mean(0, dtype=torch.float32)",
        },
    ),
    dense("columns, one key of every layer", ONE, line_of_layers),
    dense(f"top_k, one query of every head, k={K}", ONE),
    dense(
        "edges, one pair in every layer and head",
        ONE,
        lambda world: (world.size.layers, world.size.heads),
        right=lambda world, first, second: Expected(
            np.stack([pattern[0, :, first, second] for pattern in world.patterns]).astype(np.float32), world.size.heads
        ),
    ),
)


def first_of(world: FactoredDeviceWorld, *, n: int) -> tuple[int]:
    """The first of n positions in a row."""
    return (int(world.rng.integers(world.layer.seq_q - n + 1)),)


def key_bytes(world: FactoredDeviceWorld, *, n: int) -> int:
    """The keys of n positions, read once a bundle."""
    layer = world.layer
    bundles = math.ceil(n * (layer.heads // layer.key_heads) / LINES_OF_BUNDLE)
    return bundles * layer.key_items * world.itemsize


def checked(n: int) -> Array:
    """Which of n positions are checked: the first and the last."""
    return np.unique([0, n - 1])


def with_rounded_scores(exact: ExactRows, dtype: str) -> ExactRows:
    """The same with room for scores that are rounded to the dtype, as torch's product leaves them."""
    scores = np.log(exact.weights) + exact.lse[..., None]
    shift = 2 * ROUNDINGS[dtype] * np.abs(scores).max(axis=-1, keepdims=True)
    ours, theirs = exact.bounds
    return exact._replace(bounds=(ours, theirs + exact.weights * np.expm1(shift)))


def right_rows(world: FactoredDeviceWorld, first: int, *, n: int, mean: bool) -> OnHost:
    """The checked rows: [head, position, key] or the mean's [position, key]; without the position where it is one."""
    exact = with_rounded_scores(exact_rows(world.factors, first + checked(n)), world.dtype)
    bounded = of_mean(exact) if mean else of_heads(exact)
    if n > 1:
        return OnHost(world, replace(bounded, part=checked(n)))
    return OnHost(world, bounded.cut(lambda rows: np.squeeze(rows, -2)))


def rows_case(what: str, n: int, *, mean: bool) -> DeviceCase:
    """The rows of n positions: of every head or of the mean."""
    positions = "first" if n == 1 else f"np.arange(first, first + {n})"
    theirs = f"torch_qk_rows(query[:, first : first + {n}], key, scale)" + (".mean(0)" if mean else "")

    def out(world: FactoredDeviceWorld) -> tuple[int, ...]:
        return (*(() if mean else (world.layer.heads,)), *(() if n == 1 else (n,)), world.layer.seq_k)

    return DeviceCase(
        f"rows of queries and keys, {what}",
        ("first",),
        partial(first_of, n=n),
        {
            OURS: f"cache.rows(0, {positions}, heads={'mean' if mean else None!r})",
            TORCH: theirs if n > 1 else f"{theirs}.squeeze(-2)",
        },
        partial(right_rows, n=n, mean=mean),
        partial(key_bytes, n=n),
        "copy",
        Goal(share=0.7),
        DTYPES,
        (FACTORED,),
        checks=1,
        out=out,
    )


ROWS = (
    rows_case("one query of every head", 1, mean=False),
    rows_case(f"{SEVERAL} queries of every head", SEVERAL, mean=False),
    rows_case("one query of the mean", 1, mean=True),
    rows_case(f"{SEVERAL} queries of the mean", SEVERAL, mean=True),
)

CASES: tuple[DeviceCase, ...] = PATTERNS + ROWS
