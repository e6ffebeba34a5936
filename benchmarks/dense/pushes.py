"""What is measured of pushing layers, with and without the index, and of getting them back."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.core.case import OURS, Case, Goal, Judged, no_work, nothing
from benchmarks.dense import questions as q
from benchmarks.dense.world import DenseWorld as World


def push(name: str, how: str, others: tuple[str, str], right: Any, work: Any, **more: Any) -> Case:
    """A layer pushed into a fresh cache."""
    ours = f"pushed(patterns[layer], {how})"
    return q.whole(f"push, {name}", (ours, *others), right, work, **{"limit": "copy", **more})


def push_and_index(name: str, how: str, others: tuple[str, str], right: Any, work: Any, **more: Any) -> Case:
    """The same, and its index built."""
    ours = f"pushed_and_indexed(patterns[layer], {how})"
    both = (f"mean_both_ways({others[0]})[0]", f"torch_mean_both_ways({others[1]})[0]")
    full = lambda world: work(world) + q.index_bytes(world)
    return q.whole(f"push, {name}, and index", (ours, *both), right, full, **{"limit": "copy", **more})


def narrowed_bytes(world: World) -> int:
    """A float32 layer read, and written in float16."""
    return world.size.weights * 6


def copied_bytes(world: World) -> int:
    """A layer read and written."""
    return world.size.weights * 2 * world.itemsize


NARROWED = ("patterns[layer].astype(np.float16)", "tensors[layer].half()")
COPIED = ("patterns[layer].copy()", "tensors[layer].clone()")
BORROWED = ("listed(patterns[layer])", "listed(tensors[layer])")
ALONE: dict[str, Any] = {"dtypes": ("float32",)}

CASES = (
    push(
        "float32 as float16",
        "'float16'",
        NARROWED,
        partial(q.stored, dtype="float16"),
        narrowed_bytes,
        goal=Goal(share=0.8),
        **ALONE,
    ),
    push("copied", "copy=True", COPIED, q.stored, copied_bytes),
    push("borrowed", "copy=False", BORROWED, q.stored, no_work, limit="call"),
    push_and_index("float32 as float16", "'float16'", NARROWED, q.mean_as_float16, narrowed_bytes, **ALONE),
    push_and_index("copied", "copy=True", COPIED, q.rows, copied_bytes),
    push_and_index(
        "borrowed",
        "copy=False",
        ("patterns[layer]", "tensors[layer]"),
        q.rows,
        lambda world: world.size.weights * world.itemsize,
        limit="read",
    ),
    q.whole("get_layer", ("cache.get_layer(layer)", "patterns[layer]", "tensors[layer]"), q.stored, no_work, "call"),
    Case(
        "get_layer, absent",
        (),
        nothing,
        {OURS: "cache.get_layer(1000000)"},
        lambda _world: Judged(lambda _contender, answer: answer is None),
        limit="call",
        goal=Goal(seconds=20e-9),
    ),
)
