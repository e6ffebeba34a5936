"""What is measured of dense layers on a device: each query, ours beside what a user of torch writes.

Answers stay on the device (``device_result=True``) unless the host's time to a NumPy array is measured.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from attncache import reference
from benchmarks.answers import Expected
from benchmarks.device_case import DeviceCase, Exact, Goal
from benchmarks.device_worlds import DeviceWorld

K = 10
LONG_K = 300  # beyond what a block sorts by counting

WHOLE = Goal(share=0.85)
RANKED = Goal(share=0.5, ratio=2)
ONE = Goal(ratio=1)

DenseCase: TypeAlias = DeviceCase[DeviceWorld]


def next_layer(world: DeviceWorld) -> tuple[int]:
    """The layers in turn, so that none is asked for while a cache holds it."""
    return (next(world.turn),)


def a_position(world: DeviceWorld) -> tuple[int]:
    """A random position."""
    return (int(world.rng.integers(world.size.seq)),)


def a_line(world: DeviceWorld) -> tuple[int, int]:
    """A layer and a random position."""
    return (*next_layer(world), *a_position(world))


def a_pair(world: DeviceWorld) -> tuple[int, int]:
    """Two random positions."""
    return (*a_position(world), *a_position(world))


def line_bytes(world: DeviceWorld) -> int:
    """One position of every head read, its float32 mean written."""
    return world.size.seq * (world.size.heads * world.itemsize + 4)


def mean_bytes(world: DeviceWorld) -> int:
    """A layer read, its float32 head mean written."""
    return world.size.seq * line_bytes(world)


def widened_bytes(world: DeviceWorld) -> int:
    """A layer read, and written in float32."""
    return world.size.weights * (world.itemsize + 4)


def top_bytes(world: DeviceWorld, lines: int, k: int) -> int:
    """So many lines read, the int64 position and float32 weight of k of each written."""
    return lines * (world.size.seq * world.itemsize + k * 12)


def whole(name: str, ours: str, torch: str, right: Any, touched: Any, *, goal: Goal = WHOLE) -> DenseCase:
    """A question about every position of a layer, checked on some; right: the reference's answer to that."""
    return DeviceCase(
        name,
        ("layer",),
        next_layer,
        ours,
        torch,
        lambda world, layer: Exact(right(world, layer), world.size.heads),
        touched,
        goal,
        part=lambda world: world.sample,
    )


def small(  # noqa: PLR0917 - the columns of the table below
    name: str, arguments: tuple[str, ...], draw: Any, ours: str, torch: str, right: Any, touched: Any
) -> DenseCase:
    """A question so small that the host's time matters."""
    return DeviceCase(
        name,
        arguments,
        draw,
        ours,
        torch,
        lambda world, *drawn: Exact(right(world, *drawn), world.size.heads),
        touched,
        ONE,
        is_small=True,
    )


def top_of_rows(k: int) -> DenseCase:
    """The k heaviest of every query of every head."""
    return whole(
        f"top_k, every query of every head, k={k}",
        f"cache.top_k({k}, layers=layer, heads=None, device_result=True)",
        f"torch_heaviest(tensors[layer][0], {k})",
        lambda world, layer: Expected(
            reference.top_k(world.queries(layer, world.sample), k, layers=0, heads=None),
            reference.rows(world.queries(layer, world.sample), 0, heads=None),
        ),
        lambda world: top_bytes(world, world.size.heads * world.size.seq, k),
        goal=RANKED,
    )


WHOLE_LAYERS = (
    whole(
        "head_mean",
        "cache.head_mean(layer, device_result=True)",
        "tensors[layer][0].mean(0, dtype=torch.float32)",
        lambda world, layer: Expected(reference.rows(world.queries(layer, world.sample), 0)),
        mean_bytes,
    ),
    whole(
        "rows, every query of every head",
        "cache.rows(layer, heads=None, device_result=True)",
        "tensors[layer][0].to(torch.float32, copy=True)",
        lambda world, layer: Expected(reference.rows(world.queries(layer, world.sample), 0, heads=None)),
        widened_bytes,
    ),
    whole(
        "columns, every key of the mean",
        "cache.columns(layer, device_result=True)",
        "tensors[layer][0].mean(0, dtype=torch.float32).T.contiguous()",
        lambda world, layer: Expected(reference.columns(world.keys(layer, world.sample), 0)),
        mean_bytes,
    ),
    whole(
        "columns, every key of every head",
        "cache.columns(layer, heads=None, device_result=True)",
        "tensors[layer][0].mT.to(torch.float32, memory_format=torch.contiguous_format, copy=True)",
        lambda world, layer: Expected(reference.columns(world.keys(layer, world.sample), 0, heads=None)),
        widened_bytes,
    ),
    top_of_rows(K),
    top_of_rows(LONG_K),
    whole(
        f"top_k, every key of every head, k={K}",
        f"cache.top_k({K}, layers=layer, heads=None, direction='to', device_result=True)",
        f"torch_heaviest(tensors[layer][0].mT.contiguous(), {K})",
        lambda world, layer: Expected(
            reference.top_k(world.keys(layer, world.sample), K, layers=0, heads=None, direction="to"),
            reference.columns(world.keys(layer, world.sample), 0, heads=None),
        ),
        lambda world: top_bytes(world, world.size.heads * world.size.seq, K),
        goal=Goal(ratio=2),
    ),
)

SMALL = (
    small(
        "rows, one query of every layer",
        ("position",),
        a_position,
        "cache.rows(positions=position, device_result=True)",
        "torch.stack([t[0, :, position].mean(0, dtype=torch.float32) for t in tensors])",
        lambda world, position: Expected(
            reference.rows([pattern[:, :, [position]] for pattern in world.patterns], positions=0)
        ),
        lambda world: world.size.layers * line_bytes(world),
    ),
    small(
        "rows, one query of one layer",
        ("layer", "position"),
        a_line,
        "cache.rows(layer, position, device_result=True)",
        "tensors[layer][0, :, position].mean(0, dtype=torch.float32)",
        lambda world, layer, position: Expected(reference.rows(world.queries(layer, [position]), 0, 0)),
        line_bytes,
    ),
    small(
        "columns, one key of every layer",
        ("position",),
        a_position,
        "cache.columns(positions=position, device_result=True)",
        "torch.stack([t[0, :, :, position].mean(0, dtype=torch.float32) for t in tensors])",
        lambda world, position: Expected(
            reference.columns([pattern[..., [position]] for pattern in world.patterns], positions=0)
        ),
        lambda world: world.size.layers * line_bytes(world),
    ),
    small(
        f"top_k, one query of every head, k={K}",
        ("layer", "position"),
        a_line,
        f"cache.top_k({K}, layers=layer, positions=position, heads=None, device_result=True)",
        f"torch_heaviest(tensors[layer][0, :, position], {K})",
        lambda world, layer, position: Expected(
            reference.top_k(world.queries(layer, [position]), K, layers=0, positions=0, heads=None),
            reference.rows(world.queries(layer, [position]), 0, 0, heads=None),
        ),
        lambda world: top_bytes(world, world.size.heads, K),
    ),
    small(
        "edges, one pair in every layer and head",
        ("query", "key"),
        a_pair,
        "cache.edges(query, key, device_result=True)",
        "torch.stack([t[0, :, query, key] for t in tensors]).float()",
        lambda world, query, key: Expected(
            np.stack([pattern[0, :, query, key] for pattern in world.patterns]).astype(np.float32)
        ),
        lambda world: world.size.layers * world.size.heads * (world.itemsize + 4),
    ),
)

CASES = WHOLE_LAYERS + SMALL
