"""Questions for the interpreted kernels: small, and between them through every branch of every kernel.

Sizes: around the width of a read (8 items of half), a warp, a tile of each kernel, and the heads on their way at once
(2 to 8), so below, at and above each; all dtypes; aligned and not; every index list with repeats and out of order.
Dense queries and top_k are compared bit by bit with reference.py, factored rows within the bound that it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from attncache import reference
from attncache.reference import heaviest
from cuda.ptx.library import Interpreted
from tests.support.patterns import DTYPES, Array, assert_same, make, meaning, rng, spread

Run: TypeAlias = Callable[[Interpreted], None]


@dataclass(frozen=True)
class Case:
    """A question and the check of its answer; with `blocks`, over so few blocks that each has several units of work."""

    query: str
    name: str
    run: Run
    blocks: int | None = None

    @property
    def id(self) -> str:
        return f"{self.query}, {self.name}"


def asked(query: str, patterns: Sequence[Array], *lists: Sequence[int], **options: Any) -> Run:
    """A dense question, judged by its meaning in NumPy."""

    def run(device: Interpreted) -> None:
        got = device.ask(query, patterns, *lists, **options)
        shown: Any = options.get("heads")
        shown = ("mean", shown) if options.get("mean") else shown
        chosen = (None, *lists) if query != "edges" else lists
        expected = meaning(query, patterns, *chosen, heads=shown, batch=list(options.get("batches", (0,))))
        assert_same(got, expected.reshape(got.shape), query)

    return run


def every_other(n: int) -> list[int]:
    """Positions out of order, with a repeat."""
    return [*range(n - 1, -1, -2), 0, 0]


def row_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for keys in (1, 7, 8, 24, 40, 136, 1100, 1101):  # one item a read, and 16 bytes
            many = make("extremes", (1, 7, 3, keys), dtype)
            yield Case("rows", f"{dtype}, {keys} keys, mean", asked("rows", [many], [2, 0, 2], mean=True))
        for keys in (1101, 2000):
            many = make("extremes", (1, 3, 3, keys), dtype)
            yield Case("rows", f"{dtype}, {keys} keys, each", asked("rows", [many], [2, 0], heads=[2, 1]))
        patterns = [make("infinities", (2, 5, 4, 40), dtype, layer) for layer in range(2)]
        for mean in (True, False):
            name = f"{dtype}, layers, batches and heads picked, {'mean' if mean else 'each'}"
            options = {"heads": [3, 0, 3], "batches": [1, 0], "mean": mean}
            yield Case("rows", name, asked("rows", patterns, every_other(4), **options))
            yield Case("rows", f"{name}, two blocks", asked("rows", patterns, every_other(4), **options), blocks=2)
            yield Case("rows", f"{name}, unaligned", asked("rows", patterns, [1], shift=4, **options))
            yield Case("rows", f"{name}, unaligned out", asked("rows", patterns, [1], out_shift=4, **options))
        for axis, name in enumerate(("batches", "heads", "queries")):
            steps = asked("rows", [spread(make("extremes", (2, 2, 2, 24), dtype), axis)], [1, 0], batches=[1, 0])
            yield Case("rows", f"{dtype}, only {name} begin off 16 bytes", steps)
        yield Case("rows", f"{dtype}, no heads", asked("rows", patterns, [0], heads=[], mean=True))
        none = asked("rows", [make("soft", (1, 2, 3, 1101), dtype)], [2, 0, 1], heads=[], mean=True)
        yield Case("rows", f"{dtype}, no heads, one item a read, two blocks", none, blocks=2)
        yield Case(
            "rows", f"{dtype}, whole", asked("rows", [make("soft", (1, 12, 20, 64), dtype)], range(20), mean=True)
        )


def column_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        many = make("extremes", (1, 7, 70, 41), dtype)
        for positions in ([3], [40, 2, 2, 0], every_other(41), list(range(41))):
            name = f"{dtype}, {len(positions)} keys"
            yield Case("columns", f"{name}, mean", asked("columns", [many], positions, mean=True))
            yield Case("columns", f"{name}, each", asked("columns", [many], positions, heads=[6, 1]))
        whole = make("extremes", (1, 7, 68, 72), dtype)
        for mean in (True, False):
            name = f"{dtype}, in sequence, {'mean' if mean else 'each'}"
            options = {"heads": [6, 0, 1, 5, 2, 0] if mean else [6, 1], "mean": mean}
            yield Case("columns", name, asked("columns", [whole], range(8, 53), **options))
            yield Case("columns", f"{name}, two blocks", asked("columns", [whole], range(72), **options), blocks=2)
        tall = make("ties", (1, 9, 1100, 3), dtype)
        yield Case("columns", f"{dtype}, many queries", asked("columns", [tall], [2], mean=True))
        patterns = [make("infinities", (2, 5, 33, 4), dtype, layer) for layer in range(2)]
        options = {"heads": [3, 0, 3], "batches": [1, 0], "shift": 4}
        for mean in (True, False):
            picked = asked("columns", patterns, [3, 3, 1], mean=mean, **options)
            yield Case("columns", f"{dtype}, all picked, {'mean' if mean else 'each'}", picked)
            yield Case("columns", f"{dtype}, all picked, {'mean' if mean else 'each'}, two blocks", picked, blocks=2)
        yield Case("columns", f"{dtype}, no heads", asked("columns", patterns, [0], heads=[], mean=True))


def edge_cases() -> Iterator[Case]:
    for dtype in DTYPES:
        patterns = [make("infinities", (2, 11, 9, 140), dtype, layer) for layer in range(2)]
        for to in ([5], [139, 0, 0], list(range(140))):
            for mean in (True, False):
                name = f"{dtype}, {len(to)} keys, {'mean' if mean else 'each'}"
                options: dict[str, Any] = {"heads": None if mean else [3, 0, 3], "batches": [1, 0], "mean": mean}
                yield Case("edges", name, asked("edges", patterns, [8, 0, 8], to, **options))
                yield Case("edges", f"{name}, two blocks", asked("edges", patterns, [8, 0], to, **options), blocks=2)
        none = asked("edges", patterns, range(9), range(140), heads=[], mean=True)
        yield Case("edges", f"{dtype}, no heads", none)
        yield Case("edges", f"{dtype}, no heads, four blocks", none, blocks=4)


def ranked(lines: Array, k: int) -> Run:
    """The k heaviest of lines, judged by the reference's stable sort."""

    def run(device: Interpreted) -> None:
        positions, weights = device.top_k(lines, k)
        expected = heaviest(lines, k)
        assert_same(positions, expected, "positions")
        assert_same(weights, np.take_along_axis(lines, expected, axis=-1), "weights")

    return run


def ranked_rows(
    patterns: Sequence[Array],
    positions: Sequence[int],
    k: int,
    *,
    batches: Sequence[int] = (0,),
    heads: Sequence[int] | None = None,
    shift: int = 0,
) -> Run:
    """The same of rows as they are stored."""

    def run(device: Interpreted) -> None:
        got = device.top_k_rows(patterns, positions, k, batches=batches, heads=heads, shift=shift)
        shown = None if heads is None else list(heads)
        expected = meaning("top_k", patterns, k, None, list(positions), heads=shown, batch=list(batches))
        assert_same(got, tuple(each.reshape(got[0].shape) for each in expected), "rows")

    return run


def top_k_cases() -> Iterator[Case]:
    sizes = ((1, 1), (33, 5), (257, 257), (1000, 10), (1500, 1))  # by tournament, beyond 512 by radix
    for length, k in (*sizes, (1500, 1000), (600, 513)):
        for kind in ("soft", "ties", "infinities", "signed_zeros", "nans", "extremes"):
            yield Case("top_k", f"{k} of {length}, {kind}", ranked(make(kind, (1, 1, 2, length))[0, 0], k))
    yield Case("top_k", "3 of 9000, ties", ranked(make("ties", (1, 1, 1, 9000))[0, 0], 3))
    yield Case("top_k", "4700 of 5000, ties", ranked(make("ties", (1, 1, 1, 5000))[0, 0], 4700))
    several = make("extremes", (1, 1, 9, 600))[0, 0]
    yield Case("top_k", "40 of 9 lines, two blocks", ranked(several, 40), blocks=2)
    yield Case("top_k", "590 of 9 lines, two blocks", ranked(several, 590), blocks=2)
    rows = [make("ties", (2, 3, 4, 1190), dtype) for dtype in DTYPES]
    for k in (20, 520):
        picked = ranked_rows(rows, [3, 0], k, batches=[1, 0], heads=[2, 0])
        yield Case("top_k", f"{k} of rows of every dtype", picked)
        yield Case("top_k", f"{k} of rows, unaligned", ranked_rows(rows, [3], k, shift=4))
        yield Case("top_k", f"{k} of rows, one block", ranked_rows(rows, [3, 0], k), blocks=1)
    for dtype in DTYPES:
        long = make("soft", (1, 1, 1, 8200), dtype)
        yield Case("top_k", f"{dtype}, 60 of 8200", ranked_rows([long], [0], 60))


def normal(dtype: str, *shape: int) -> Array:
    return rng("factored", dtype, shape).standard_normal(shape, np.float32).astype(DTYPES[dtype])


def factored(query: Array, key: Array, positions: Sequence[int], **options: Any) -> Run:
    """Rows of queries and keys, judged by the bound that reference.py computes in float64."""

    def run(device: Interpreted) -> None:
        got = device.factored_rows(query, key, positions, **options).astype(np.float64)
        picks = ("batches", "heads", "mean", "shift")
        meant = reference.factored(query, key, **{name: options[name] for name in options if name not in picks})
        batches, heads = options.get("batches", [0]), options.get("heads", range(query.shape[1]))
        pattern, bound = (every[np.ix_(batches, heads, positions)] for every in (meant.pattern, meant.bound))
        if options.get("mean"):  # each addition and the division round once more
            pattern, bound = pattern.mean(axis=1, keepdims=True), bound.mean(axis=1, keepdims=True)
            bound = bound + (len(heads) + 1) * 2.0**-24 * pattern
        assert got.shape == pattern.shape
        assert (np.isnan(got) == np.isnan(pattern)).all()
        off = np.abs(np.nan_to_num(got) - np.nan_to_num(pattern)) - np.nan_to_num(bound)
        worst = np.unravel_index(np.argmax(off), off.shape)
        assert off[worst] <= 0, f"at {worst}: {got[worst]} for {pattern[worst]}, bound {bound[worst]}"

    return run


def factored_cases() -> Iterator[Case]:
    def case(name: str, *arguments: Any, blocks: int | None = None, **options: Any) -> Case:
        return Case("factored_rows", name, factored(*arguments, **options), blocks)

    for dtype in DTYPES:
        query, key = normal(dtype, 2, 6, 9, 24), normal(dtype, 2, 2, 300, 24)
        mask = rng("mask").random((2, 300)) > 0.3
        sinks = rng("sinks").standard_normal(6).astype(np.float32)
        yield case(f"{dtype}, all heads", query, key, [8, 0, 8])
        yield case(f"{dtype}, heads and batches picked", query, key, [3], batches=[1, 0], heads=[5, 0, 5])
        yield case(f"{dtype}, unaligned", query, key, [3, 0, 8], shift=4)
        yield case(f"{dtype}, mean", query, key, [3, 1], mean=True, causal=False)
        every = {"scale": 0.7, "window": 290, "softcap": 3.0, "key_mask": mask, "sinks": sinks}
        yield case(f"{dtype}, every option", query, key, [8, 0], batches=[0, 1], **every)
        yield case(f"{dtype}, every option, two blocks", query, key, [8, 0], blocks=2, **every)
        yield case(f"{dtype}, every option, few lines", query, key, [8], batches=[1, 0], **every)
        yield case(f"{dtype}, unaligned, few lines", query, key, [8], shift=4)
    query, key = normal("float16", 1, 4, 5, 264), normal("float16", 1, 2, 40, 264)
    yield case("items in two chunks, two blocks", query, key, range(5), blocks=2)
    yield case("items in two chunks, few lines, one block", query, key, [2], blocks=1)
    query, key = normal("float32", 1, 2, 70, 8), normal("float32", 1, 1, 70, 8)
    hidden = np.zeros((1, 70), np.bool_)
    lse = np.asarray(reference.factored(query, key).lse, np.float32)
    lse[0, 0, 3], lse[0, 1, 4] = -np.inf, np.nan
    yield case("head_dim 1", query[..., :1], key[..., :1], range(0, 70, 9))
    yield case("no visible key", query, key, [5, 69], key_mask=hidden)
    yield case("heavy sinks", query, key, [5, 69], sinks=np.full(2, 90, np.float32))
    yield case("window of one", query, key, [0, 69], window=1)
    yield case("both ways", query, key, [0, 69], window=4, causal=False)
    yield case("window beyond 32 bits", query, key, [0, 69], window=2**40)
    yield case("window beyond 32 bits both ways", query, key, [0, 69], window=2**40, causal=False)
    yield case("sums given", query, key, [2, 3, 69], lse=lse)
    yield case("sums given far below the scores", query, key, [2, 69], lse=np.full_like(lse, -100))
    query = query.copy()
    query[0, 0, 7] = np.nan
    yield case("a row of NaN", query, key, [7, 8])
    long = normal("float16", 1, 1, 2, 64), normal("float16", 1, 1, 2300, 64)
    yield case("more keys than a tile", *long, [1, 0])
    yield case("more keys than a tile, results anywhere", long[0], long[1][:, :, :2051], [1, 0])
    longer = (
        normal("float32", 1, 1, 1, 1),
        normal("float32", 1, 1, 196_700, 1),
    )  # 769 blocks of keys: 6 or 7 for each thread
    yield case("many keys", *longer, [0], window=3000)


CASES = [*row_cases(), *column_cases(), *edge_cases(), *top_k_cases(), *factored_cases()]
