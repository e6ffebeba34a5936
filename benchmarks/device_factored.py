"""What is measured of queries and keys on a device: rows of a long layer, ours beside torch's softmax of products.

Rates are judged over the keys alone: bytes of keys, read once for each bundle of up to 8 lines that share them
(cpp/cuda/factored_scores.cuh), per second.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np

from benchmarks.device_case import DeviceCase, Goal
from benchmarks.device_worlds import Array, FactoredDeviceWorld
from benchmarks.factored_answers import Bounded, ExactRows, exact_rows, of_heads, of_mean
from benchmarks.factored_world import Shape

LONG = Shape(32, 8, 128, 64, 131072, causal=False)
TINY = Shape(4, 2, 16, 20, 300, causal=False)

LINES_OF_BUNDLE = 8
SEVERAL = 16
ROUNDINGS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}  # of a score that torch keeps in the dtype
GOAL = Goal(share=0.7)

FactoredCase: TypeAlias = DeviceCase[FactoredDeviceWorld]


def first_of(world: FactoredDeviceWorld, *, n: int) -> tuple[int]:
    """The first of n positions in a row."""
    return (int(world.rng.integers(world.layer.seq_q - n + 1)),)


def key_bytes(world: FactoredDeviceWorld, n: int) -> int:
    """The keys of n positions, read once a bundle."""
    shape = world.layer
    bundles = math.ceil(n * (shape.heads // shape.key_heads) / LINES_OF_BUNDLE)
    return bundles * shape.key_items * world.itemsize


def touched(world: FactoredDeviceWorld, n: int, heads: int) -> int:
    """The keys of n positions, and their weights written."""
    return key_bytes(world, n) + n * heads * world.layer.seq_k * 4


def checked(n: int) -> Array:
    """Which of n positions are checked: the first and the last."""
    return np.unique([0, n - 1])


def with_rounded_scores(exact: ExactRows, dtype: str) -> ExactRows:
    """The same with room for scores that are rounded to the dtype, as torch's product leaves them."""
    scores = np.log(exact.weights) + exact.lse[..., None]
    shift = 2 * ROUNDINGS[dtype] * np.abs(scores).max(axis=-1, keepdims=True)
    ours, theirs = exact.bounds
    return exact._replace(bounds=(ours, theirs + exact.weights * np.expm1(shift)))


def right_rows(world: FactoredDeviceWorld, first: int, *, n: int, mean: bool) -> Bounded:
    """The checked rows: [head, position, key] or the mean's [position, key]; without the position where it is one."""
    exact = with_rounded_scores(exact_rows(world.factors, first + checked(n)), world.dtype)
    bounded = of_mean(exact) if mean else of_heads(exact)
    if n > 1:
        return bounded
    ours, theirs = (np.squeeze(bound, -2) for bound in bounded.bounds)
    return replace(bounded, values=np.squeeze(bounded.values, -2), bounds=(ours, theirs))


def rows_case(name: str, n: int, *, mean: bool) -> FactoredCase:
    """The rows of n positions: of every head or of the mean."""
    heads = "'mean'" if mean else "None"
    positions = "first" if n == 1 else f"np.arange(first, first + {n})"
    rows = f"torch_qk_rows(query[:, first : first + {n}], key, scale)"
    theirs = f"{rows}.mean(0)" if mean else rows
    return DeviceCase(
        name,
        ("first",),
        partial(first_of, n=n),
        f"cache.rows(0, {positions}, heads={heads}, device_result=True)",
        theirs if n > 1 else f"{theirs}.squeeze(-2)",
        partial(right_rows, n=n, mean=mean),
        lambda world: touched(world, n, 1 if mean else world.layer.heads),
        GOAL,
        part=lambda _world: None if n == 1 else checked(n),
        judged=lambda world: key_bytes(world, n),
    )


CASES = (
    rows_case("rows of queries and keys, one query of every head", 1, mean=False),
    rows_case(f"rows of queries and keys, {SEVERAL} queries of every head", SEVERAL, mean=False),
    rows_case("rows of queries and keys, one query of the mean", 1, mean=True),
    rows_case(f"rows of queries and keys, {SEVERAL} queries of the mean", SEVERAL, mean=True),
)
