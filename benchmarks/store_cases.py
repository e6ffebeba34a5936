"""Pushing layers, with and without the index, and getting them back."""

from __future__ import annotations

import numpy as np

from attncache import reference
from benchmarks.answers import Expected
from benchmarks.case import NUMPY, OURS, TORCH, Case, a_layer, index_bytes, no_bytes
from benchmarks.worlds import World


def mean_after_push(world: World, layer: int) -> Expected:
    """The head mean of a layer, on its sample."""
    return Expected(reference.head_mean(world.queries(layer, world.sample), 0))


def mean_as_float16(world: World, layer: int) -> Expected:
    """The head mean of a layer that was narrowed, on its sample."""
    return Expected(reference.head_mean([world.queries(layer, world.sample)[0].astype(np.float16)], 0))


CASES = (
    Case(
        "push, float32 as float16",
        None,
        ("layer",),
        a_layer,
        {
            OURS: "pushed(patterns[layer], 'float16')",
            NUMPY: "patterns[layer].astype(np.float16)",
            TORCH: "tensors[layer].half()",
        },
        lambda world, layer: Expected(world.queries(layer, world.sample)[0].astype(np.float16)),
        lambda world: world.size.weights * 6,
        "copy",
        whole=True,
        dtypes=("float32",),
    ),
    Case(
        "push, copied",
        None,
        ("layer",),
        a_layer,
        {
            OURS: "pushed(patterns[layer], copy=True)",
            NUMPY: "patterns[layer].copy()",
            TORCH: "tensors[layer].clone()",
        },
        lambda world, layer: Expected(world.queries(layer, world.sample)[0]),
        lambda world: world.size.weights * 2 * world.itemsize,
        "copy",
        whole=True,
    ),
    Case(
        "push, borrowed",
        None,
        ("layer",),
        a_layer,
        {
            OURS: "pushed(patterns[layer], copy=False)",
            NUMPY: "listed(patterns[layer])",
            TORCH: "listed(tensors[layer])",
        },
        lambda world, layer: Expected(world.queries(layer, world.sample)[0]),
        no_bytes,
        "call",
        whole=True,
    ),
    Case(
        "push, float32 as float16, and index",
        None,
        ("layer",),
        a_layer,
        {
            OURS: "pushed_and_indexed(patterns[layer], 'float16')",
            NUMPY: "mean_both_ways(patterns[layer].astype(np.float16))[0]",
            TORCH: "torch_mean_both_ways(tensors[layer].half())[0]",
        },
        mean_as_float16,
        lambda world: world.size.weights * 6 + index_bytes(world),
        "copy",
        whole=True,
        dtypes=("float32",),
    ),
    Case(
        "push, copied, and index",
        None,
        ("layer",),
        a_layer,
        {
            OURS: "pushed_and_indexed(patterns[layer], copy=True)",
            NUMPY: "mean_both_ways(patterns[layer].copy())[0]",
            TORCH: "torch_mean_both_ways(tensors[layer].clone())[0]",
        },
        mean_after_push,
        lambda world: world.size.weights * 2 * world.itemsize + index_bytes(world),
        "copy",
        whole=True,
    ),
    Case(
        "push, borrowed, and index",
        None,
        ("layer",),
        a_layer,
        {
            OURS: "pushed_and_indexed(patterns[layer], copy=False)",
            NUMPY: "mean_both_ways(patterns[layer])[0]",
            TORCH: "torch_mean_both_ways(tensors[layer])[0]",
        },
        mean_after_push,
        lambda world: world.size.weights * world.itemsize + index_bytes(world),
        whole=True,
    ),
    Case(
        "get_layer",
        None,
        ("layer",),
        a_layer,
        {OURS: "cache.get_layer(layer)", NUMPY: "patterns[layer]", TORCH: "tensors[layer]"},
        lambda world, layer: Expected(world.queries(layer, world.sample)[0]),
        no_bytes,
        "call",
        whole=True,
    ),
)
