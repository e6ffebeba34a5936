"""Threads: the count, the environment variable, queries beside pushes, pushes beside pushes, and fork.

Sizes: [1, 8, 384, 512] where the pool must be used, small layers where many threads meet. Every run in another process
has a time limit, so that a hang is a failure. Tolerance: none.
Not covered: data races that show no wrong answer (the thread sanitizer's job), speed.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attncache
from attncache import AttentionCache
from attncache.reference import QUERIES
from tests.support.patterns import SEED, Array, assert_same, cache_of, make, meaning

LARGE = (1, 8, 384, 512)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def fresh_process(tmp_path: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a new interpreter; the environment variables of attncache are only those given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ATTNCACHE_")}
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=clean | environment,
        check=False,
    )


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


@pytest.mark.parametrize("count", [True, 1.0, "2", None, np.float64(2)], ids=repr)
def test_a_thread_count_of_the_wrong_kind_is_a_type_error(count: Any) -> None:
    before = attncache.get_num_threads()
    with pytest.raises(TypeError):
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


@pytest.mark.parametrize("name", QUERIES)
def test_large_queries_have_the_same_bits_on_every_thread_count(name: str, threads: int) -> None:
    pattern, cache = large()
    call = LARGE_CALLS[name]
    assert_same(call(cache), meaning_of_large(name), f"{name} on {threads} threads")
    assert_same(cache[0], pattern)


def test_every_registered_query_is_tried_on_a_large_layer() -> None:
    assert sorted(LARGE_CALLS) == sorted(QUERIES)


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


class Meaning:
    """The reference, called like a cache."""

    def __init__(self, patterns: list[Array]) -> None:
        self.patterns = patterns

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **options: meaning(name, self.patterns, *args, **options)


@functools.cache
def large() -> tuple[Array, AttentionCache]:
    pattern = make("extremes", LARGE, "float16")
    return pattern, cache_of([pattern])


@functools.cache
def meaning_of_large(name: str) -> Any:
    return LARGE_CALLS[name](Meaning([large()[0]]))


def test_many_threads_may_ask_at_once(threads: int) -> None:
    _, cache = large()
    names = sorted(QUERIES) * 6
    for name in QUERIES:
        meaning_of_large(name)
    with ThreadPoolExecutor(6) as pool:
        for name, answer in zip(names, pool.map(lambda name: LARGE_CALLS[name](cache), names), strict=True):
            assert_same(answer, meaning_of_large(name), name)


def layer(place: int) -> Array:
    """A layer that tells by every weight which one it is."""
    return np.full((1, 2, 3 + place % 5, 4), place + 1, np.float32)


def run_together(*jobs: Callable[[], None], seconds: float = 60) -> None:
    """Runs the jobs in threads of their own, started together; the first exception is raised here."""
    start, errors = threading.Barrier(len(jobs)), []

    def run(job: Callable[[], None]) -> None:
        start.wait()
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    running = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(seconds)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


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


def test_threads_ask_while_another_clears() -> None:
    cache, pattern = AttentionCache(), make("soft", (1, 3, 65, 129), "float16")
    mean = meaning("head_mean", [pattern], 0)
    done = threading.Event()

    def push_and_clear() -> None:
        try:
            for _ in range(300):
                cache.push(pattern)
                cache.clear()
        finally:
            done.set()

    def ask() -> None:
        while not done.is_set():
            view = cache.get_layer(0)
            if view is not None:
                assert_same(view, pattern)
            for query, expected in (
                (lambda: cache.head_mean(0), mean),
                (lambda: cache.attention_from_position(0, 64), mean[64]),
                (lambda: cache.attention_to_position(0, 128), np.ascontiguousarray(mean[:, 128])),
            ):
                try:
                    answer = query()
                except IndexError:
                    continue
                assert_same(answer, expected)

    run_together(push_and_clear, ask, ask)


def test_the_thread_count_and_level_may_change_while_threads_ask() -> None:
    _, cache = large()
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


# Fork

USES_THE_POOL = f"""
import os, sys, threading
import numpy as np
import attncache
attncache.set_num_threads(3)
pattern = np.random.default_rng({SEED}).random((1, 8, 384, 512), dtype=np.float32).astype(np.float16)
cache = attncache.AttentionCache()
cache.push(pattern)
expected = pattern[0].mean(axis=0, dtype=np.float32)
def right():
    top = cache.top_k(3, layers=0, heads=None).positions
    return bool((cache.head_mean(0) == expected).all() and (cache.rows(0, slice(0, 300)) == expected[:300]).all()
        and (pattern[0].argmax(axis=-1) == top[..., 0]).all() and attncache.get_num_threads() == 3)
"""

FORK = (
    USES_THE_POOL
    + """
def in_child(work):
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
def in_grandchild():
    return right() and in_child(right) == 0
def with_a_new_layer():
    cache.push(pattern)
    attncache.set_num_threads(2)
    attncache.set_num_threads(3)
    return right() and (cache.head_mean(1) == expected).all()
assert right()
for turn in range(5):
    assert in_child(right) == 0, turn
assert in_child(in_grandchild) == 0
assert in_child(with_a_new_layer) == 0
assert right()
done = threading.Event()
def ask():
    while not done.is_set():
        right()
asking = threading.Thread(target=ask)
asking.start()
try:
    for turn in range(8):
        assert in_child(right) == 0, f"forked while another thread asks, turn {turn}"
finally:
    done.set()
    asking.join()
assert right()
print("done")
"""
)

POOL_OF_PROCESSES = (
    USES_THE_POOL
    + """
import multiprocessing
def work(position):
    return right() and cache.attention_from_position(0, position).tolist() == expected[position].tolist()
if __name__ == "__main__":
    assert right()
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(work, range(12)) == [True] * 12
    assert right()
    print("done")
"""
)


@needs_fork
def test_a_forked_child_asks_with_threads_used_before_the_fork(tmp_path: Path) -> None:
    ran = fresh_process(tmp_path, FORK)
    assert (ran.returncode, ran.stdout.strip()) == (0, "done"), ran.stderr


@needs_fork
def test_a_pool_of_forked_processes_asks_with_threads_used_before_the_fork(tmp_path: Path) -> None:
    ran = fresh_process(tmp_path, POOL_OF_PROCESSES)
    assert (ran.returncode, ran.stdout.strip()) == (0, "done"), ran.stderr


# Things that happen at a bad moment

ENDS_WHILE_ASKING = (
    USES_THE_POOL
    + """
def ask():
    while True:
        cache.head_mean(0)
for _ in range(2):
    threading.Thread(target=ask, daemon=True).start()
assert right()
kept = cache[0], cache.head_mean(0), cache.attention_from_position(0, 1), iter(cache)
print("done", flush=True)
"""
)

SOURCE_THAT_USES_THE_CACHE = (
    USES_THE_POOL
    + """
class Source:
    def __array__(self, dtype=None, copy=None):
        cache.push(pattern)
        assert right() and cache.n_layers == 2
        return pattern[:, :, :5]
cache.push(Source())
assert [view.shape for view in cache] == [pattern.shape, pattern.shape, (1, 8, 5, 512)]
class ClearingSource:
    def __array__(self, dtype=None, copy=None):
        cache.clear()
        return pattern
cache.push(ClearingSource())
assert cache.n_layers == 1 and right()
print("done")
"""
)

OWNER_THAT_USES_THE_CACHE = (
    USES_THE_POOL
    + """
told = []
class Owner(bytearray):
    def __del__(self):
        told.append(cache.n_layers)
        cache.push(pattern)
        cache.attention_from_position(0, 0)
for turn in range(20):
    cache.push(np.frombuffer(Owner(pattern.tobytes()), np.float16).reshape(pattern.shape), copy=False)
    assert right()
    cache.clear()
    cache.clear()
    cache.push(pattern)
assert len(told) == 20, told
print("done")
"""
)


THREADS_THAT_CANNOT_START = (
    USES_THE_POOL
    + """
import resource
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (20 << 20),) * 2)
attncache.set_num_threads(64)
for _ in range(3):
    try:
        mean = cache.head_mean(0)
    except MemoryError:
        continue
    assert (mean == expected).all()
attncache.set_num_threads(1)
assert (cache.head_mean(0) == expected).all()
try:
    cache.push(np.broadcast_to(np.float16(0), (1, 64, 1024, 1024)))
except MemoryError:
    assert cache.n_layers == 1
else:
    raise AssertionError("128 MiB do not fit in 20 MiB")
print("done")
"""
)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of the process is read from /proc")
def test_threads_and_memory_that_cannot_be_had_give_the_answer_or_a_memory_error(tmp_path: Path) -> None:
    ran = fresh_process(tmp_path, THREADS_THAT_CANNOT_START)
    assert (ran.returncode, ran.stdout.strip()) == (0, "done"), ran.stderr


@pytest.mark.parametrize(
    "code",
    [ENDS_WHILE_ASKING, SOURCE_THAT_USES_THE_CACHE, OWNER_THAT_USES_THE_CACHE],
    ids=["the process ends while threads ask", "a source uses the cache", "an owner uses the cache when it goes"],
)
def test_nothing_hangs_or_crashes_at_a_bad_moment(code: str, tmp_path: Path) -> None:
    ran = fresh_process(tmp_path, code)
    assert (ran.returncode, ran.stdout.strip()) == (0, "done"), ran.stderr
