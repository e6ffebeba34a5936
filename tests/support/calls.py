"""Every query with its arguments, right and wrong ones, for all tests that ask every query something."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from attncache import AttentionCache
from tests.support.patterns import Array, Shape, cache_of, make, meaning

Call = tuple[tuple[Any, ...], dict[str, Any]]


def calls_of_attention(n_layers: int, size: int) -> list[Call]:
    last = size - 1
    return [((0, 0), {}), ((n_layers - 1, last), {"batch": 1}), ((-1, -size), {"batch": -1}), ((0, size // 2), {})]


def calls_of_lines(n_layers: int, size: int) -> list[Call]:
    some = [size - 1, 0, -1, size // 2, 0]
    return [
        ((), {}),
        ((0, 0), {}),
        ((None, size - 1), {"heads": None}),
        ((slice(None, None, -1), some), {"heads": [2, 0, 2], "batch": None}),
        (([0, 0, -1], slice(None, None, 2)), {"heads": ("mean", [2, 0]), "batch": [1, 0, 1]}),
        ((0, [0]), {"heads": 1}),
        ((range(n_layers), np.array(some)), {"heads": ("mean", slice(1, None)), "batch": -1}),
        ((0, []), {}),
    ]


CASES: dict[str, Callable[[Shape], list[Call]]] = {
    "attention_from_position": lambda shape: calls_of_attention(2, shape[2]),
    "attention_to_position": lambda shape: calls_of_attention(2, shape[3]),
    "top_attended_positions": lambda shape: [
        ((layer, position, k), {"batch": batch})
        for layer, position, batch in ((0, 0, 0), (1, -1, 1))
        for k in {0, 1, 2, 3, 10, shape[3] - 1, shape[3], shape[3] + 100}
    ],
    "head_mean": lambda _: [((0,), {}), ((-1,), {"batch": 1})],
    "rows": lambda shape: calls_of_lines(2, shape[2]),
    "columns": lambda shape: calls_of_lines(2, shape[3]),
    "edges": lambda shape: [
        ((0, -1), {}),
        ((None, None), {"heads": "mean"}),
        ((range(shape[2]), [shape[3] - 1, 0, 0]), {"layers": 1, "heads": [1, 0], "batch": None}),
        ((slice(None, None, -1), slice(0, None, 3)), {"layers": [1, 0], "heads": ("mean", [1]), "batch": [0]}),
        (([0, -1], 0), {"layers": slice(None), "heads": 2}),
    ],
    "top_k": lambda shape: [
        ((k,), {"direction": direction, **options})
        for direction in ("from", "to")
        for k in (0, 1, 3, 10, max(shape[2:]) + 1)
        for options in (
            {},
            {"layers": 0, "positions": -1, "heads": 1},
            {"layers": [1, 0], "positions": slice(None, None, 2), "heads": None, "batch": None},
            {"heads": ("mean", [0, 2]), "positions": [0, 0]},
        )
    ],
}


@cache
def two_layers(kind: str, shape: Shape, dtype: str) -> tuple[Array, Array]:
    return make(kind, shape, dtype, 0), make(kind, shape, dtype, 1)


@cache
def meanings(name: str, kind: str, shape: Shape, dtype: str) -> list[tuple[Call, Any]]:
    """Every case of one query with what the reference answers."""
    patterns = two_layers(kind, shape, dtype)
    return [((args, options), meaning(name, patterns, *args, **options)) for args, options in CASES[name](shape)]


def picks_none(selector: Any, size: int) -> bool:
    """Whether a selector picks nothing: of layers, the reference has no meaning for that (test_contracts.py has)."""
    if isinstance(selector, slice):
        return len(range(size)[selector]) == 0
    return np.ndim(selector) == 1 and len(selector) == 0


SELECTING = ("rows", "columns", "edges", "top_k")


HOT = ("attention_from_position", "attention_to_position", "top_attended_positions", "head_mean")


def small() -> AttentionCache:
    """One layer of shape [1, 2, 4, 6]."""
    return cache_of([make("soft", (1, 2, 4, 6))])


def call(cache: AttentionCache, name: str, **options: Any) -> Any:
    """A selecting query with whatever it needs besides the options."""
    needed: dict[str, Any] = {"edges": {"from_positions": 0, "to_positions": 0}, "top_k": {"k": 2}}.get(name, {})
    return getattr(cache, name)(**(needed | options))


OUT_OF_RANGE: list[tuple[str, str, Callable[[AttentionCache], Any]]] = [
    ("position 10 is out of range for seq_q=4", "from", lambda c: c.attention_from_position(0, 10)),
    ("position 4 is out of range for seq_q=4", "from edge", lambda c: c.attention_from_position(0, 4)),
    ("position -5 is out of range for seq_q=4", "from negative", lambda c: c.attention_from_position(0, -5)),
    ("position 6 is out of range for seq_k=6", "to", lambda c: c.attention_to_position(0, 6)),
    ("position -7 is out of range for seq_k=6", "to negative", lambda c: c.attention_to_position(0, -7)),
    ("from_position 4 is out of range for seq_q=4", "top", lambda c: c.top_attended_positions(0, 4, 1)),
    ("layer 3 is out of range for n_layers=1", "from layer", lambda c: c.attention_from_position(3, 0)),
    ("layer -2 is out of range for n_layers=1", "to layer", lambda c: c.attention_to_position(-2, 0)),
    ("layer 1 is out of range for n_layers=1", "top layer", lambda c: c.top_attended_positions(1, 0, 1)),
    ("layer 1 is out of range for n_layers=1", "mean layer", lambda c: c.head_mean(1)),
    ("batch 2 is out of range for batch_size=1", "from batch", lambda c: c.attention_from_position(0, 0, 2)),
    ("batch -2 is out of range for batch_size=1", "to batch", lambda c: c.attention_to_position(0, 0, batch=-2)),
    ("batch 1 is out of range for batch_size=1", "top batch", lambda c: c.top_attended_positions(0, 0, 1, batch=1)),
    ("batch 1 is out of range for batch_size=1", "mean batch", lambda c: c.head_mean(0, 1)),
    ("layer 3 is out of range for n_layers=1", "rows layers", lambda c: c.rows(3)),
    ("layer -2 is out of range for n_layers=1", "rows list of layers", lambda c: c.rows([0, -2])),
    ("position 10 is out of range for seq_q=4", "rows", lambda c: c.rows(0, 10)),
    ("position 10 is out of range for seq_q=4", "rows list", lambda c: c.rows(0, [0, 10, 11])),
    ("position -5 is out of range for seq_q=4", "rows array", lambda c: c.rows(0, np.array([0, -5]))),
    ("position 6 is out of range for seq_k=6", "columns", lambda c: c.columns(0, range(3, 9))),
    ("head 9 is out of range for n_heads=2", "rows heads", lambda c: c.rows(0, heads=9)),
    ("head 9 is out of range for n_heads=2", "rows mean of heads", lambda c: c.rows(0, heads=("mean", [0, 9]))),
    ("head -3 is out of range for n_heads=2", "edges heads", lambda c: c.edges(0, 0, heads=[-3])),
    ("batch 2 is out of range for batch_size=1", "rows batch", lambda c: c.rows(batch=2)),
    ("from_position 4 is out of range for seq_q=4", "edges from", lambda c: c.edges(4, 0)),
    ("to_position 6 is out of range for seq_k=6", "edges to", lambda c: c.edges(0, [6])),
    ("position 4 is out of range for seq_q=4", "top_k", lambda c: c.top_k(1, positions=4)),
    ("position 6 is out of range for seq_k=6", "top_k to", lambda c: c.top_k(1, positions=6, direction="to")),
    ("layer 1 is out of range for n_layers=1", "item", lambda c: c[1]),
    ("layer -2 is out of range for n_layers=1", "negative item", lambda c: c[-2]),
    (f"position {2**100} is out of range for seq_q=4", "huge", lambda c: c.attention_from_position(0, 2**100)),
    (f"layer {-(2**100)} is out of range for n_layers=1", "huge layer", lambda c: c.head_mean(-(2**100))),
    (f"position {2**63 - 1} is out of range", "largest", lambda c: c.attention_from_position(0, 2**63 - 1)),
    (f"position {-(2**63)} is out of range", "smallest", lambda c: c.attention_to_position(0, -(2**63))),
    (f"position {2**32} is out of range", "wraps in 32 bits", lambda c: c.attention_from_position(0, 2**32)),
    (f"position {2**64} is out of range", "wraps in 64 bits", lambda c: c.attention_from_position(0, 2**64)),
    (f"position {2**100} is out of range", "huge in rows", lambda c: c.rows(0, [2**100])),
    (f"position {2**64 - 1} is out of range", "uint64", lambda c: c.rows(0, np.array([2**64 - 1], np.uint64))),
]


NOT_A_SELECTOR: dict[str, Any] = {
    "bool": True,
    "float": 1.0,
    "string": "0",
    "bool array": np.array([True]),
    "bool list": [False, True],
    "bool in list": [0, True],
    "float list": [0.0],
    "float array": np.array([0.0, 1.0]),
    "2-D array": np.array([[0]]),
    "nested list": [[0]],
    "string list": ["0"],
    "None in list": [None],
    "object": object(),
    "set": {0},
    "dict": {0: 0},
    "numpy bool": np.True_,
    "numpy float": np.float32(0),
    "bytes": b"\0",
    "bytearray": bytearray(b"1"),
    "array of True": np.array(True),
    "numpy text": np.str_("1"),
    "numpy bytes": np.bytes_(b"1"),
    "numpy duration": np.timedelta64(1, "s"),
    "complex": 1 + 0j,
    "numpy complex": np.complex64(1),
    "list of objects": [object()],
    "list of complex": [1 + 0j],
    "list of durations": [np.timedelta64(1, "s")],
}


LARGE = (1, 8, 384, 512)


class Meaning:
    """The reference, called like a cache."""

    def __init__(self, patterns: list[Array]) -> None:
        self.patterns = patterns

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **options: meaning(name, self.patterns, *args, **options)


LARGE_CALLS: dict[str, Callable[[Any], Any]] = {
    "attention_from_position": lambda cache: cache.attention_from_position(0, 383),
    "attention_to_position": lambda cache: cache.attention_to_position(0, 511),
    "top_attended_positions": lambda cache: cache.top_attended_positions(0, 200, 512),
    "head_mean": lambda cache: cache.head_mean(0),
    "rows": lambda cache: cache.rows(0, slice(None, None, -1), heads=("mean", [7, 0, 3])),
    "columns": lambda cache: cache.columns(0, heads=None),
    "edges": lambda cache: cache.edges(None, slice(None, None, 2), layers=0, heads="mean"),
    "top_k": lambda cache: (
        *cache.top_k(17, layers=0, heads=None),
        *cache.top_k(3, layers=0, positions=slice(0, None, 2), direction="to"),
    ),
}


@cache
def large() -> Array:
    """A layer whose queries use several threads and release the GIL."""
    return make("extremes", LARGE, "float16")


@cache
def meaning_of_large(name: str) -> Any:
    return LARGE_CALLS[name](Meaning([large()]))


def index_bytes(*shapes: Shape) -> int:
    """What the indexes of all batch items of such layers take; a layer of no heads has none."""
    return sum(8 * batches * queries * keys for batches, heads, queries, keys in shapes if heads)


def build_all(cache: AttentionCache) -> None:
    """Asks until every batch item of every layer has its index."""
    for layer, shape in enumerate(cache.shapes):
        for batch in range(shape[0]):
            cache.head_mean(layer, batch)
            cache.head_mean(layer, batch)
    assert cache.index_nbytes == index_bytes(*cache.shapes)
