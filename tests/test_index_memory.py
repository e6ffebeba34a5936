"""The memory of an index: views of it, what drops it, sizes, threads that build and drop it at once, memory that cannot be had.

Sizes: some rows of 17 to 90, and layers of some MiB where threads are used. Tolerance: none.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test_threads import run_together
from tests.support.calls import LARGE, build_all, index_bytes, large, meaning_of_large
from tests.support.layers import SHAPE
from tests.support.patterns import Array, Shape, address, assert_same, cache_of, make, meaning
from tests.support.processes import assert_done


@pytest.mark.parametrize("policy", ["auto", "eager"])
def test_views_of_the_index_lie_in_one_block_and_are_not_copied(policy: str, dtype: str) -> None:
    shape: Shape = (2, 3, 17, 19)
    cache = cache_of([make("soft", shape, dtype)], index=policy)
    build_all(cache)
    for batch in range(2):
        start = address(cache.head_mean(0, batch))
        assert start % 64 == 0
        for query in range(17):
            row = cache.attention_from_position(0, query, batch)
            assert (
                address(row) == address(cache.attention_from_position(0, query - 17, batch)) == start + query * 19 * 4
            )
            assert row.shape == (19,)
        columns = address(cache.attention_to_position(0, 0, batch))
        assert columns % 64 == 0
        assert start + 17 * 19 * 4 <= columns < start + 17 * 19 * 4 + 64, "both halves are one allocation"
        for key in range(19):
            column = cache.attention_to_position(0, key, batch)
            assert address(column) == columns + key * 17 * 4
            assert column.shape == (17,)


def test_views_of_the_index_are_read_only_and_stay_so() -> None:
    cache = cache_of([make("soft", SHAPE, "float16")], index="eager")
    for view in (cache.head_mean(0), cache.attention_from_position(0, 1), cache.attention_to_position(0, 1)):
        assert type(view) is np.ndarray
        assert view.dtype == np.float32
        assert view.flags.c_contiguous
        assert view.flags.aligned
        assert not view.flags.owndata
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.setflags(write=True)
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
        assert memoryview(view).readonly


@pytest.mark.parametrize("forget", ["drop_index", "clear", "delete"])
def test_views_of_the_index_outlive_it(forget: str, dtype: str) -> None:
    pattern = make("extremes", (1, 3, 60, 90), dtype)
    mean = meaning("head_mean", [pattern], 0)
    for _ in range(2):
        cache = cache_of([pattern], index="eager")
        views = cache.head_mean(0), cache.attention_from_position(0, 7), cache.attention_to_position(0, 8)
        if forget == "delete":
            del cache
        else:
            getattr(cache, forget)()
        gc.collect()
        junk = [np.full((60, 180), 9.0, np.float32) for _ in range(20)]
        assert_same(views[0], mean)
        assert_same(views[1], mean[7])
        assert_same(views[2], np.ascontiguousarray(mean[:, 8]))
        del junk


def test_dropped_indexes_are_built_again_when_they_pay() -> None:
    for policy in ("auto", "eager"):
        cache = cache_of([make("soft", SHAPE, "float16")], index=policy)
        for _ in range(3):
            build_all(cache)
            before = cache.attention_from_position(0, 3).copy()
            cache.drop_index()
            cache.drop_index()
            assert cache.index_nbytes == 0
            assert_same(cache.attention_from_position(0, 3), before)
            assert cache.index_nbytes == 0, "one row does not pay for it"


def test_sizes_and_repr_tell_the_index() -> None:
    shape: Shape = (2, 4, 64, 64)
    cache = cache_of([make("soft", shape, "float16")] * 2, index="auto")
    layers = 2 * 2 * 4 * 64 * 64 * 2
    assert (cache.nbytes, cache.index_nbytes) == (layers, 0)
    assert "index" not in repr(cache)
    cache.head_mean(0)
    cache.head_mean(0)
    assert (cache.nbytes, cache.index_nbytes) == (layers + 32768, 32768)
    assert repr(cache) == "AttentionCache(2 layers of [2, 4, 64, 64] float16, 164 kB of which 32.8 kB index)"
    cache.drop_index()
    assert (cache.nbytes, cache.index_nbytes) == (layers, 0)
    assert "index" not in repr(cache)
    build_all(cache)
    cache.clear()
    assert (cache.nbytes, cache.index_nbytes) == (0, 0)


def test_first_queries_of_many_threads_build_one_index(threads: int) -> None:
    pattern, mean = large(), meaning_of_large("head_mean")
    cache = cache_of([pattern], index="auto")
    asks: list[Callable[[], tuple[Array, Array]]] = [
        lambda: (cache.head_mean(0), mean),
        lambda: (cache.rows(0), mean),
        lambda: (cache.columns(0), np.ascontiguousarray(mean.T)),
        lambda: (cache.attention_from_position(0, 383), mean[383]),
        lambda: (cache.attention_to_position(0, 511), np.ascontiguousarray(mean[:, 511])),
        lambda: (cache.edges(None, None, layers=0, heads="mean"), mean),
        lambda: (cache.head_mean(0), mean),
        lambda: (cache.head_mean(0, out=np.empty(mean.shape, np.float32)), mean),
    ]

    def job(ask: Callable[[], tuple[Array, Array]]) -> Callable[[], None]:
        return lambda: assert_same(*ask())

    for _ in range(4):
        for _ in range(2):
            run_together(*map(job, asks))
        assert cache.index_nbytes == index_bytes(LARGE)
        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(lambda _: address(cache.head_mean(0)), range(16)))) == 1
        cache.drop_index()


@pytest.mark.parametrize("change", ["drop", "push", "clear"])
@pytest.mark.parametrize("policy", ["auto", "eager"])
def test_threads_ask_while_another_changes_the_cache(policy: str, change: str) -> None:
    pattern, mean = large(), meaning_of_large("head_mean")
    cache = cache_of([pattern], index=policy)
    small = [np.full((1, 1, 1, place % 3), 1.0, np.float32) for place in range(50)]
    done = threading.Event()
    turned = np.ascontiguousarray(mean.T)

    def alter() -> None:
        try:
            for turn in range(60):
                if change == "drop":
                    cache.drop_index()
                    cache.head_mean(0)
                elif change == "push":
                    cache.push(small[turn % 50])
                    cache.push(pattern)
                elif turn % 3 == 2:
                    cache.clear()
                    cache.push(pattern)
                else:
                    cache.drop_index()
        finally:
            done.set()

    asks: list[tuple[Callable[[], Any], Array]] = [
        (lambda: cache.head_mean(0), mean),
        (lambda: cache.attention_from_position(0, 300), mean[300]),
        (lambda: cache.attention_to_position(0, 500), turned[500]),
        (lambda: cache.rows(0, slice(100, 384)), mean[100:]),
        (lambda: cache.columns(0), turned),
        (lambda: cache.top_k(1, layers=0).weights, np.max(mean, axis=1, keepdims=True)),
        (lambda: np.array(cache.top_attended_positions(0, 5, 1), np.float32)[:, 1], mean[5].max(keepdims=True)),
    ]

    def ask_all() -> None:
        views: list[tuple[Array, Array]] = []
        while not done.is_set():
            for ask, expected in asks:
                try:
                    answer = ask()
                except IndexError:  # between clear and push
                    continue
                except ValueError:
                    assert change == "clear"
                    continue
                assert_same(answer, expected)
                views.append((answer, expected))
            assert cache.index_nbytes % 8 == 0
            assert "AttentionCache" in repr(cache)
        for view, expected in views[-20:]:
            assert_same(view, expected)

    run_together(alter, ask_all, ask_all)
    for _ in range(2):
        assert_same(cache.head_mean(0), mean)
    pushed = 61 if change == "push" else 1
    if policy == "eager" and change == "push":
        assert cache.index_nbytes == index_bytes(*cache.shapes)
    assert sum(shape == LARGE for shape in cache.shapes) == pushed


NO_MEMORY = """
import resource
import numpy as np
import attncache
attncache.set_num_threads(1)
shape = (1, 2, 2900, 2900)  # an index of 67 MB
pattern = np.broadcast_to(np.linspace(0, 1, 2900, dtype=np.float16), shape).copy()
pattern.setflags(write=False)
cache, eager = attncache.AttentionCache(), attncache.AttentionCache(index="eager")
cache.push(pattern)
expected = pattern[0].mean(axis=0, dtype=np.float32)[0]
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20), hard))
for _ in range(3 * 2900):
    row = cache.attention_from_position(0, 7)
assert (row == expected).all() and row.base is None
top = cache.top_k(3, layers=0, positions=[5, 6])
assert (top.positions == np.argsort(-expected, kind="stable")[:3]).all()
assert cache.index_nbytes == 0
try:
    eager.push(pattern)
except MemoryError:
    assert eager.n_layers == 0 and eager.nbytes == 0
else:
    raise AssertionError("an eager push needs the memory")
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
for _ in range(2 * 2900):
    row = cache.attention_from_position(0, 7)
assert (row == expected).all()
assert cache.index_nbytes == 8 * 2900 * 2900
print("done")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of the process is read from /proc")
def test_no_memory_for_an_index_is_no_error_unless_it_was_asked_for(tmp_path: Path) -> None:
    assert_done(tmp_path, NO_MEMORY)


NO_HEADS = """
import numpy as np
import attncache
# No bytes of weights, but 2**61 (query, key) pairs: the bytes of an index do not fit into 64 bits.
endless = np.empty((1, 0, 2**31, 2**30), np.float16)
cache = attncache.AttentionCache()
cache.push(endless)
for _ in range(3):
    assert np.isnan(cache.edges(0, 0, layers=0, heads="mean"))
    assert np.isnan(cache.edges([1, 2], [3], layers=0, heads="mean")).all()
assert cache.index_nbytes == 0 and cache.nbytes == 0
eager = attncache.AttentionCache(index="eager")
try:
    eager.push(endless)
except (MemoryError, ValueError):
    assert eager.n_layers == 0
else:
    assert eager.index_nbytes == 0
print("done")
"""


def test_an_index_whose_bytes_overflow_is_not_built(tmp_path: Path) -> None:
    assert_done(tmp_path, NO_HEADS)
