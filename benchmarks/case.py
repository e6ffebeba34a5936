"""What a case is, and what most cases need: random arguments and the bytes they touch.

A contender is an expression as a user would write it. It is compiled once into a loop, so what is timed is
the expression and nothing around it, and what is timed is what is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.answers import Expected
from benchmarks.worlds import World

K = 10
SEVERAL = 16  # positions in each direction of a block of edges

OURS, NUMPY, TORCH, READY = "attncache", "NumPy", "torch", "ready-made"
TORCH_ALONE = "torch, 1 thread"  # torch's expression once more: threads cost more than they bring to small tensors


@dataclass(frozen=True)
class Case:
    """One measured operation.

    name: what the table says; the query's name alone, or followed by the variant.
    query: its name in the registry, or None for push and get_layer.
    arguments: the names that the expressions use; ``draw`` returns one random value for each.
    contenders: expression by contender; the names of ours begin with OURS.
    expected: the right answer for one draw, from the reference; for ``whole`` on ``world.sample`` only.
    touched: bytes read and written by one call, counted once each.
    limit: what bounds it: reading memory, copying into fresh memory or over old memory, the emptiest Python call;
        None: not measured.
    whole: the answer covers every position of a layer (on its axis -2).
    many: one call asks ``world.size.questions`` questions; times and bytes are for each of them.
    """

    name: str
    query: str | None
    arguments: tuple[str, ...]
    draw: Callable[[World], tuple[Any, ...]]
    contenders: Mapping[str, str]
    expected: Callable[..., Expected]
    touched: Callable[[World], int]
    limit: Literal["read", "copy", "overwrite", "call"] | None = "read"
    whole: bool = False
    many: bool = False
    dtypes: tuple[str, ...] = ("float32", "float16")


def a_layer(world: World) -> tuple[int]:
    """A random layer."""
    return (int(world.rng.integers(world.size.layers)),)


def a_position(world: World) -> tuple[int]:
    """A random position."""
    return (int(world.rng.integers(world.size.seq)),)


def a_line(world: World) -> tuple[int, int]:
    """A random layer and position."""
    return (*a_layer(world), *a_position(world))


def some_lines(world: World) -> tuple[list[tuple[int, int]]]:
    """Many random layers and positions."""
    return ([a_line(world) for _ in range(world.size.questions)],)


def a_pair(world: World) -> tuple[int, int]:
    """Two random positions."""
    return (*a_position(world), *a_position(world))


def a_block(world: World) -> tuple[Any, Any]:
    """Two arrays of random positions."""
    first, second = world.rng.integers(world.size.seq, size=(2, SEVERAL))
    return first, second


def line_bytes(world: World) -> int:
    """One position of every head read, its float32 mean written."""
    return world.size.seq * (world.size.heads * world.itemsize + 4)


def mean_bytes(world: World) -> int:
    """A layer read, its float32 head mean written."""
    return world.size.seq * line_bytes(world)


def index_bytes(world: World) -> int:
    """The float32 head mean of a layer, written by query and by key."""
    return world.size.seq**2 * 8


def top_bytes(world: World, lines: int, k: int = K) -> int:
    """So many lines read, the int64 position and float32 weight of k of each written."""
    return lines * (world.size.seq * world.itemsize + k * 12)


def no_bytes(_world: World) -> int:
    """Nothing read or written but a reference."""
    return 0
