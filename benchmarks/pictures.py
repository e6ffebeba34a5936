"""What each figure shows: its cases, sizes and title."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import cases, hot_cases
from benchmarks.case import NUMPY, OURS, READY, TORCH, Case
from benchmarks.curves import Bench, Panel, Picture, add_point, together, with_thread_counts
from benchmarks.factored_pictures import factored_by_seq
from benchmarks.measuring import measure
from benchmarks.worlds import SEED, Size, World, causal_softmax

Array = npt.NDArray[Any]
BY_NAME = {case.name: case for case in cases.CASES}


@dataclass(frozen=True)
class Scale:
    """How large everything is: the x axes, and the layers of those figures whose x axis is something else."""

    seqs: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192)
    heads: tuple[int, ...] = (4, 8, 16, 32, 64)
    ks: tuple[int, ...] = (1, 2, 8, 32, 128, 512, 2048)
    hard_ks: tuple[int, ...] = (10, 256)
    questions: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096, 16384)
    some_heads: int = 12
    many_heads: int = 32
    middle: int = 1024
    long: int = 2048
    long_seqs: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
    weights: int = 1 << 29  # in all layers together: one layer at least, eight at most

    def size(self, heads: int, seq: int) -> Size:
        """Enough layers that random rows do not stay in a core's caches, as far as memory allows."""
        return Size(heads, seq, max(1, min(8, self.weights // (heads * seq * seq))))


FULL = Scale()
QUICK = Scale(
    seqs=(16, 32),
    heads=(2, 3),
    ks=(1, 16),
    hard_ks=(2,),
    questions=(1, 8),
    some_heads=3,
    many_heads=4,
    middle=16,
    long=16,
    long_seqs=(16, 32),
    weights=1 << 12,
)


def latency(bench: Bench, sizes: dict[int, Size], x_label: str) -> list[Panel]:
    """The four questions about the mean, ours direct and indexed, at every size."""
    shown = {
        "attention_from_position": together(hot_cases.direct(hot_cases.FROM), hot_cases.indexed(hot_cases.FROM)),
        "attention_to_position": together(hot_cases.direct(hot_cases.TO), hot_cases.indexed(hot_cases.TO)),
        "top_attended_positions, k = 10": together(hot_cases.direct(hot_cases.TOP), hot_cases.indexed(hot_cases.TOP)),
        "head_mean of a layer": together(BY_NAME["head_mean, direct"], BY_NAME["head_mean, indexed"]),
    }
    panels = {title: Panel(title, x_label) for title in shown}
    for x, size in sizes.items():
        world = World(size, "float16", bench.threads)
        for title, case in shown.items():
            add_point(panels[title], x, case, world, bench)
    return list(panels.values())


def latency_by_seq(scale: Scale, bench: Bench) -> Picture:
    """One question against the length of the sequence."""
    sizes = {seq: scale.size(scale.some_heads, seq) for seq in scale.seqs}
    title = f"One question against the length of the sequence: {scale.some_heads} heads, float16"
    return Picture("latency-by-seq", title, "lines", latency(bench, sizes, "positions"))


def latency_by_heads(scale: Scale, bench: Bench) -> Picture:
    """One question against the number of heads."""
    sizes = {heads: scale.size(heads, scale.middle) for heads in scale.heads}
    title = f"One question against the number of heads: {scale.middle} positions, float16"
    return Picture("latency-by-heads", title, "lines", latency(bench, sizes, "heads"))


def top_k_by_k(scale: Scale, bench: Bench) -> Picture:
    """Top-k of one query against k."""
    world = World(scale.size(scale.some_heads, scale.long), "float16", bench.threads)
    mean = Panel("mean row: top_attended_positions, a list of pairs", "k")
    heads = Panel(f"each of {scale.some_heads} heads: top_k(heads=None), two arrays", "k")
    for k in scale.ks:
        line = hot_cases.top_of_mean(k)
        add_point(mean, k, together(hot_cases.direct(line), hot_cases.indexed(line)), world, bench)
        add_point(heads, k, together(cases.top_of_heads(k)), world, bench)
    title = f"The k heaviest keys of one query: {scale.some_heads} heads, rows of {scale.long}, float16"
    return Picture("top-k-by-k", title, "lines", [mean, heads])


def hard_rows(scale: Scale, threads: int) -> Iterator[tuple[str, Array]]:
    """Layers whose rows are easy or hard to rank, by name."""
    size = Size(scale.some_heads, scale.long, 1)
    shape = (1, size.heads, size.seq, size.seq)
    rng = np.random.default_rng([SEED, size.seq])
    rows = rng.random(shape, np.float32) + np.float32(2**-24)
    yield "random", rows
    yield "causal\nsoftmax", causal_softmax(size, "float32", (SEED, size.seq), threads)
    yield "all equal", np.full(shape, 1 / size.seq, np.float32)
    yield "a tenth\nNaN", np.where(rows < 0.1, np.float32(np.nan), rows)
    yield "all NaN", np.full(shape, np.nan, np.float32)
    rows = np.sort(rows, axis=-1)
    yield "ascending", rows
    yield "descending", np.ascontiguousarray(rows[..., ::-1])
    yield "up, then\ndown", np.concatenate([rows[..., ::2], rows[..., ::-2]], axis=-1)


def top_k_of_hard_rows(scale: Scale, bench: Bench) -> Picture:
    """Top-k of rows in orders that partitioning may be slow on."""
    panels = [Panel(f"k = {k}", "") for k in scale.hard_ks]
    for kind, pattern in hard_rows(scale, bench.threads):
        world = World(Size(scale.some_heads, scale.long, 1), "float32", bench.threads, [pattern])
        for k, panel in zip(scale.hard_ks, panels, strict=True):
            case = together(cases.top_of_heads(k))
            if "NaN" in kind:  # only a NaN-last spelling answers what is asked; torch has none
                spelling = f"heaviest_nan_last(patterns[layer][0, :, position], {k})"
                case = replace(case, contenders={**without_torch(case), NUMPY: spelling})
            add_point(panel, kind, case, world, bench)
    title = f"Top-k of rows in easy and hard orders: {scale.some_heads} rows of {scale.long}, float32"
    return Picture("top-k-hard-rows", title, "kinds", panels)


def without_torch(case: Case) -> dict[str, str]:
    """The contenders but torch."""
    return {name: code for name, code in case.contenders.items() if name != TORCH}


def threads(scale: Scale, bench: Bench) -> Picture:
    """Work on whole layers with one thread and with all."""
    panel = Panel("", "time of a call")
    size = Size(scale.many_heads, scale.long, 2)
    shown = {
        "head_mean": "head_mean, direct",
        "columns of the mean": "columns, every key of the mean",
        "top_k, every row\nof every head": "top_k, every query of every head, k=10",
        "rows of every head": "rows, every query of every head",
        "push, copied": "push, copied",
        "push, float32\nas float16": "push, float32 as float16",
    }
    for dtype in ("float16", "float32"):
        chosen = {
            title: BY_NAME[name]
            for title, name in shown.items()
            if dtype == ("float16" if "float16" in BY_NAME[name].dtypes else "float32")
        }
        with_thread_counts(chosen, World(size, dtype, bench.threads), bench, panel)
    title = f"Whole layers with one thread and with more: {size.heads} heads x {size.seq} positions, float16"
    return Picture("threads", title, "bars", [panel])


POLICIES = {index: f'{OURS}, "{index}"' for index in ("off", "auto", "eager")}
FIRST = "NumPy, mean first"


def asked_often(scale: Scale, bench: Bench) -> Picture:
    """What a number of questions to a fresh cache cost in all, for each rule of when to build the index."""
    panels = []
    world = World(Size(scale.some_heads, scale.middle, 1), "float16", bench.threads)
    for line in (hot_cases.FROM, hot_cases.TO):
        panel = Panel(line.name, "questions")
        fresh = {index: hot_cases.from_fresh(line, index) for index in POLICIES}
        contenders = {label: fresh[index].contenders[OURS] for index, label in POLICIES.items()}
        contenders |= {NUMPY: fresh["off"].contenders[NUMPY], FIRST: fresh["off"].contenders[READY]}
        case = replace(fresh["off"], contenders=contenders)
        for count in scale.questions:
            world.size = replace(world.size, questions=count)
            for label, found in measure(case, world, bench.plan).timings.items():
                panel.add(label, count, found, times=count)
        panels.append(panel)
    title = (
        "Many questions to a fresh cache, all together, with its push: "
        f"{scale.some_heads} heads x {scale.middle} positions, float16"
    )
    return Picture("asked-often", title, "lines", panels)


def factored(scale: Scale, bench: Bench) -> Picture:
    """A layer as pattern and as queries and keys."""
    return factored_by_seq(scale.long_seqs, bench)


PICTURES: dict[str, Callable[[Scale, Bench], Picture]] = {
    "latency-by-seq": latency_by_seq,
    "latency-by-heads": latency_by_heads,
    "top-k-by-k": top_k_by_k,
    "top-k-hard-rows": top_k_of_hard_rows,
    "threads": threads,
    "asked-often": asked_often,
    "factored-by-seq": factored,
}
