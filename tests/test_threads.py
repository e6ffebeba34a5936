"""Threads: the count, the environment variable, queries beside pushes, pushes beside pushes.

Sizes: [1, 8, 384, 512] where the pool must be used, small layers where many threads meet. Every run in another process
has a time limit, so that a hang is a failure. Tolerance: none.
Not covered: data races that show no wrong answer (the thread sanitizer's job), speed; clearing (test_index_memory.py).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import attncache
from attncache import AttentionCache
from attncache.reference import QUERIES
from tests.support.calls import LARGE_CALLS, large, meaning_of_large
from tests.support.patterns import Array, assert_same, cache_of
from tests.support.processes import fresh_process, run_together

# The count


def test_the_thread_count_is_what_was_set(threads: int) -> None:
    assert attncache.get_num_threads() == threads
    assert type(attncache.get_num_threads()) is int


@pytest.mark.parametrize("count", [0, -1, -(2**31), -(2**70)])
def test_a_thread_count_below_one_is_a_value_error(count: int) -> None:
    before = attncache.get_num_threads()
    with pytest.raises(ValueError, match=str(count)):
        attncache.set_num_threads(count)
    assert attncache.get_num_threads() == before


def test_numpy_integers_are_thread_counts(threads: int) -> None:
    attncache.set_num_threads(np.int64(2))  # type: ignore[arg-type]
    assert attncache.get_num_threads() == 2


COUNT = "import attncache; print(attncache.get_num_threads())"


def test_the_environment_sets_the_thread_count(tmp_path: Path) -> None:
    for count in ("1", "3"):
        ran = fresh_process(tmp_path, COUNT, ATTNCACHE_NUM_THREADS=count)
        assert (ran.returncode, ran.stdout.strip()) == (0, count), ran.stderr


@pytest.mark.parametrize("count", ["0", "-1", "two", "1.5", "2 threads", "99999999999999999999"])
def test_a_wrong_thread_count_in_the_environment_fails_the_import_clearly(count: str, tmp_path: Path) -> None:
    ran = fresh_process(tmp_path, COUNT, ATTNCACHE_NUM_THREADS=count)
    assert ran.returncode == 1, f"an error, not a crash: {ran.stdout}"
    last = ran.stderr.strip().splitlines()[-1]
    assert "ATTNCACHE_NUM_THREADS" in last, ran.stderr
    assert count in last, ran.stderr


def test_a_fresh_process_uses_at_least_one_thread_and_not_more_than_the_machine_has(tmp_path: Path) -> None:
    ran = fresh_process(tmp_path, COUNT)
    assert 1 <= int(ran.stdout) <= (os.cpu_count() or 1), ran.stderr


# Many threads, one cache

FIRST_TO_FILES = """
import sys, threading, time
from attncache import AttentionCache

class Slow:  # finds nothing, and takes so long that all threads have come before the first is in
    def find_spec(self, name, path=None, target=None):
        if name == "attncache.files":
            time.sleep(0.2)

def load():
    try:
        AttentionCache.load("nothing")
    except FileNotFoundError:
        pass

jobs = [
    lambda: AttentionCache().save("saved.safetensors"),
    lambda: setattr(AttentionCache(), "metadata", {"turn": 1}),
    load,
    lambda: AttentionCache.create("created").close(),
]
done = []
sys.meta_path.insert(0, Slow())
threads = [threading.Thread(target=lambda job: done.append(job()), args=(job,)) for job in jobs]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(done))
"""


def test_threads_may_be_the_first_to_come_to_files_together(tmp_path: Path) -> None:
    ran = fresh_process(tmp_path, FIRST_TO_FILES)
    assert ran.stdout.strip() == "4", ran.stderr


def test_many_threads_may_ask_at_once(threads: int) -> None:
    cache = cache_of([large()])
    names = sorted(QUERIES) * 6
    for name in QUERIES:
        meaning_of_large(name)
    with ThreadPoolExecutor(6) as pool:
        for name, answer in zip(names, pool.map(lambda name: LARGE_CALLS[name](cache), names), strict=True):
            assert_same(answer, meaning_of_large(name), name)


def layer(place: int) -> Array:
    """A layer that tells by every weight which one it is."""
    return np.full((1, 2, 3 + place % 5, 4), place + 1, np.float32)


def test_threads_ask_while_one_pushes_and_see_whole_layers() -> None:
    cache = AttentionCache()
    total = 400
    done = threading.Event()

    def push() -> None:
        try:
            for place in range(total):
                cache.push(layer(place))
        finally:
            done.set()

    def ask() -> None:
        seen = 0
        while not (done.is_set() and seen == total):
            now = cache.n_layers
            assert now >= seen, "a layer went away"
            seen = now
            if not seen:
                continue
            last = seen - 1
            expected = layer(last)
            assert_same(cache[last], expected)
            assert_same(cache.attention_from_position(last, -1), expected[0, 0, -1])
            assert_same(cache.attention_to_position(last, 3), expected[0, 0, :, 3])
            assert cache.top_attended_positions(last, 0, 1) == [(0, float(last + 1))]
            assert_same(cache.rows(last), expected[0, 0])
            views = cache.patterns
            assert len(views) >= seen
            assert views[last].shape == expected.shape
            assert cache.get_layer(total) is None

    run_together(push, ask, ask, ask)
    assert_same(cache.patterns, tuple(layer(place) for place in range(total)))


def test_threads_push_at_once_and_no_layer_is_lost_or_torn() -> None:
    cache, each = AttentionCache(dtype="float16"), 60

    def push(first: int) -> Callable[[], None]:
        def job() -> None:
            for place in range(first, first + each):
                cache.push(layer(place))

        return job

    run_together(*(push(first * each) for first in range(4)))
    assert cache.n_layers == 4 * each
    assert sorted(int(view[0, 0, 0, 0]) for view in cache) == list(range(1, 4 * each + 1))
    for view in cache:
        assert_same(view, layer(int(view[0, 0, 0, 0]) - 1).astype(np.float16))


def test_the_thread_count_and_level_may_change_while_threads_ask() -> None:
    cache = cache_of([large()])
    expected = meaning_of_large("head_mean")
    before, level = attncache.get_num_threads(), attncache.simd.active()
    done = threading.Event()

    def change() -> None:
        try:
            for turn in range(60):
                attncache.set_num_threads(1 + turn % 4)
                attncache.simd.use(attncache.simd.available()[turn % len(attncache.simd.available())])
        finally:
            done.set()

    def ask() -> None:
        asked = 0
        while not (done.is_set() and asked >= 10):
            assert_same(cache.head_mean(0), expected)
            asked += 1

    try:
        run_together(change, ask, ask)
    finally:
        attncache.set_num_threads(before)
        attncache.simd.use(level)


def test_a_view_may_be_dropped_in_another_thread() -> None:
    cache = AttentionCache()
    views: list[Array] = []
    for place in range(100):
        pattern = layer(place)
        pattern.setflags(write=False)
        cache.push(pattern)
    views.extend(cache)
    cache.clear()

    def drop() -> None:
        for _ in range(25):
            views.pop()

    run_together(drop, drop, drop, drop)
    assert views == []
