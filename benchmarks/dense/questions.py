"""The parts of cases about stored patterns: arguments, bytes touched and right answers; devices are asked with them too.

A world has ``size``, ``itemsize`` and ``rng``, ``queries`` and ``keys`` cut down to some positions, and ``sample``, the
positions at which answers about whole layers are checked.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attncache import reference
from benchmarks.core.answers import Expected
from benchmarks.core.case import NUMPY, OURS, READY, TORCH, Case, K

SEVERAL = 16  # positions in each direction of a block of edges


def a_layer(world: Any) -> tuple[int]:
    """A random layer."""
    return (int(world.rng.integers(world.size.layers)),)


def a_position(world: Any) -> tuple[int]:
    """A random position."""
    return (int(world.rng.integers(world.size.seq)),)


def a_line(world: Any) -> tuple[int, int]:
    """A random layer and position."""
    return (*a_layer(world), *a_position(world))


def a_pair(world: Any) -> tuple[int, int]:
    """Two random positions."""
    return (*a_position(world), *a_position(world))


def a_block(world: Any) -> tuple[Any, Any]:
    """Two arrays of random positions."""
    first, second = world.rng.integers(world.size.seq, size=(2, SEVERAL))
    return first, second


def line_bytes(world: Any) -> int:
    """One position of every head read, its float32 mean written."""
    return int(world.size.seq * (world.size.heads * world.itemsize + 4))


def lines_bytes(world: Any) -> int:
    """The same in every layer."""
    return int(world.size.layers * line_bytes(world))


def mean_bytes(world: Any) -> int:
    """A layer read, its float32 head mean written."""
    return int(world.size.seq * line_bytes(world))


def widened_bytes(world: Any) -> int:
    """A layer read, and written in float32."""
    return int(world.size.weights * (world.itemsize + 4))


def index_bytes(world: Any) -> int:
    """The float32 head mean of a layer, written by query and by key."""
    return int(world.size.seq**2 * 8)


def top_bytes(world: Any, lines: int, k: int = K) -> int:
    """So many lines read, the int64 position and float32 weight of k of each written."""
    return int(lines * (world.size.seq * world.itemsize + k * 12))


def edge_bytes(world: Any, pairs: int) -> int:
    """So many pairs of every layer and head, read and written in float32."""
    return int(world.size.layers * world.size.heads * pairs * (world.itemsize + 4))


def row(world: Any, layer: int, position: int) -> Expected:
    """What a position attends to in the mean."""
    return Expected(reference.attention_from_position(world.queries(layer, [position]), 0, 0), world.size.heads)


def column(world: Any, layer: int, position: int) -> Expected:
    """Who attends to a position in the mean."""
    return Expected(reference.attention_to_position(world.keys(layer, [position]), 0, 0), world.size.heads)


def row_of_layers(world: Any, position: int) -> Expected:
    """One row of the mean of every layer."""
    return Expected(reference.rows([each[:, :, [position]] for each in world.patterns], positions=0), world.size.heads)


def column_of_layers(world: Any, position: int) -> Expected:
    """One column of the mean of every layer."""
    return Expected(
        reference.columns([each[..., [position]] for each in world.patterns], positions=0), world.size.heads
    )


def edges(world: Any, first: Any, second: Any) -> Expected:
    """Some pairs in every layer and head, from the asked queries alone: the same answer in less memory."""
    patterns = [pattern[:, :, np.atleast_1d(first)] for pattern in world.patterns]
    cut = 0 if np.ndim(first) == 0 else range(len(first))
    return Expected(reference.edges(patterns, cut, second), world.size.heads)


def top_of_row(world: Any, layer: int, position: int, *, k: int = K) -> Expected:
    """The k heaviest keys of one query in each head."""
    cut = world.queries(layer, [position])
    found = reference.top_k(cut, k, layers=0, positions=0, heads=None)
    return Expected(found, world.size.heads, reference.rows(cut, 0, 0, heads=None))


def top_of_mean_row(world: Any, layer: int, position: int, *, k: int = K) -> Expected:
    """The k heaviest keys of one query in the mean, as pairs."""
    cut = world.queries(layer, [position])
    found = reference.top_attended_positions(cut, 0, 0, k)
    return Expected(found, world.size.heads, reference.attention_from_position(cut, 0, 0))


def rows(world: Any, layer: int, *, heads: Any = "mean") -> Expected:
    """All rows of a layer, on its sample."""
    found = reference.rows(world.queries(layer, world.sample), 0, heads=heads)
    return Expected(found, world.size.heads, part=world.sample)


def columns(world: Any, layer: int, *, heads: Any = "mean") -> Expected:
    """All columns of a layer, on its sample."""
    found = reference.columns(world.keys(layer, world.sample), 0, heads=heads)
    return Expected(found, world.size.heads, part=world.sample)


def top_of_rows(world: Any, layer: int, *, k: int = K) -> Expected:
    """The k heaviest keys of every query of every head, on the sample."""
    found = reference.top_k(world.queries(layer, world.sample), k, layers=0, heads=None)
    return Expected(found, world.size.heads, rows(world, layer, heads=None).answer, world.sample)


def top_of_columns(world: Any, layer: int, *, heads: Any = "mean") -> Expected:
    """The heaviest queries of every key, on the sample."""
    found = reference.top_k(world.keys(layer, world.sample), K, layers=0, heads=heads, direction="to")
    return Expected(found, world.size.heads, columns(world, layer, heads=heads).answer, world.sample)


def stored(world: Any, layer: int, *, dtype: str | None = None) -> Expected:
    """A layer as it is stored, on its sample."""
    (found,) = world.queries(layer, world.sample)
    return Expected(found.astype(dtype or found.dtype), world.size.heads, part=world.sample)


def mean_as_float16(world: Any, layer: int) -> Expected:
    """The head mean of a layer that was narrowed, on its sample."""
    narrow = [stored(world, layer, dtype="float16").answer]
    return Expected(reference.head_mean(narrow, 0), world.size.heads, part=world.sample)


def whole(name: str, contenders: tuple[str, ...], right: Any, work: Any, limit: str = "read", **more: Any) -> Case:
    """An operation on a whole layer: ours, NumPy's and torch's expressions, or ours and a ready-made one."""
    names = (OURS, NUMPY, TORCH) if len(contenders) == 3 else (OURS, READY)
    named = dict(zip(names, contenders, strict=True))
    return Case(name, ("layer",), a_layer, named, right, work, limit, checks=1, **more)
