"""What happens at a bad moment: arguments, sources and owners that change the cache they are given to, the end of the process.

Each case is a process of its own with a time limit, so that a hang is a failure. Sizes: [1, 8, 384, 512] where the pool of
threads must be used. Not covered: questions amid a long call (test_amid_calls.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import USES_THE_POOL, assert_done

CHANGES = """
import sys
import numpy as np
import attncache
pattern = np.linspace(0, 1, 2 * 64 * 64, dtype=np.float32).reshape(1, 2, 64, 64)
tiny = np.ones((1, 1, 1, 1), np.float32)
class Index:
    def __init__(self, act, value):
        self.act, self.value = act, value
    def __index__(self):
        self.act()
        return self.value
def clear(cache):
    cache.clear()
def replace(cache):
    cache.clear()
    for _ in range(2):
        cache.push(tiny)
def grow(cache):
    for _ in range(100):
        cache.push(tiny)
def drop(cache):
    cache.drop_index()
calls = {
    "from": lambda cache, index: cache.attention_from_position(1, index(60)),
    "from, batch": lambda cache, index: cache.attention_from_position(1, 60, index(0)),
    "to": lambda cache, index: cache.attention_to_position(1, index(60)),
    "top": lambda cache, index: cache.top_attended_positions(1, index(60), 3),
    "top, k": lambda cache, index: cache.top_attended_positions(1, 60, index(3)),
    "mean": lambda cache, index: cache.head_mean(1, index(0)),
    "layer": lambda cache, index: cache.attention_from_position(index(1), 0),
    "rows": lambda cache, index: cache.rows([0, 1], [0, index(60)]),
    "rows, layers": lambda cache, index: cache.rows([1, index(1)], 60),
    "rows, heads": lambda cache, index: cache.rows([1, 0], 60, heads=[index(1)]),
    "columns, batch": lambda cache, index: cache.columns([1, 0], 60, batch=index(0)),
    "edges": lambda cache, index: cache.edges([60], [index(60)], layers=1),
    "top_k": lambda cache, index: cache.top_k(index(3), layers=1, positions=60),
    "get_layer": lambda cache, index: cache.get_layer(index(1)),
    "item": lambda cache, index: cache[index(1)],
    "slice": lambda cache, index: cache[index(0):2],
}
n_right = 0
for policy in ("off", "auto", "eager"):
    for name, call in calls.items():
        for act in (clear, replace, grow, drop):
            cache = attncache.AttentionCache(index=policy)
            cache.push(pattern)
            cache.push(pattern)
            print(policy, name, act.__name__, file=sys.stderr, flush=True)
            right = call(cache, lambda value: value)
            try:
                found = call(cache, lambda value: Index(lambda: act(cache), value))
            except (IndexError, ValueError):
                assert act in (clear, replace)
                continue
            if found is None:
                assert (name, act) == ("get_layer", clear)
                continue
            same = found == right if isinstance(right, list) else all(map(np.array_equal, found, right))
            assert same or act is replace, "the answer is about the layers before or after the change"
            n_right += bool(same)
assert n_right >= 2 * 3 * len(calls)
print("done")
"""


LISTS_THAT_SHRINK = """
import numpy as np
import attncache
cache = attncache.AttentionCache()
cache.push(np.ones((1, 1, 4, 4), np.float32))
class Shrinks:
    def __index__(self):
        positions.clear()
        return 100
    def __str__(self):
        return "a position"
for _ in range(10):
    positions = [Shrinks(), 0, 1]
    try:
        cache.rows(0, positions)
    except IndexError:
        continue
    raise AssertionError("100 is out of range")
print("done")
"""


IMPORTS_THAT_CLEAR = """
import builtins
import ml_dtypes
import numpy as np
import attncache
pattern = np.ones((1, 2, 64, 64), np.float32)
cache = attncache.AttentionCache("bfloat16")
original = builtins.__import__
def clearing(*args, **options):
    if args[0] == "ml_dtypes":
        cache.clear()
    return original(*args, **options)
for view_of in (lambda: cache.get_layer(0), lambda: cache[0], lambda: cache[:][-1]):
    cache.push(pattern)
    cache.push(pattern)
    builtins.__import__ = clearing
    try:
        view = view_of()
    except IndexError:
        continue
    finally:
        builtins.__import__ = original
    junk = [np.full((1, 2, 64, 64), 7.0) for _ in range(20)]
    assert (view.astype(np.float32) == 1).all()
print("done")
"""


COLLECTIONS_THAT_CLEAR = """
import gc
import numpy as np
import attncache
class Cycle:
    def __init__(self, cache):
        self.cache, self.me = cache, self
    def __del__(self):
        self.cache.clear()
for ask in (lambda c: c.shapes, lambda c: c.dtypes, lambda c: c[:], lambda c: c.patterns, lambda c: c.nbytes,
            lambda c: c.attention_from_position(0, 0), lambda c: c.top_attended_positions(0, 0, 2),
            lambda c: c.rows(), lambda c: c.head_mean(0)):
    for threshold in range(1, 40):
        cache = attncache.AttentionCache()
        for _ in range(60):
            cache.push(np.ones((1, 1, 2, 2), np.float32))
        gc.collect()
        gc.disable()
        Cycle(cache)
        gc.set_threshold(threshold, 1, 1)
        gc.enable()
        try:
            found = ask(cache)
        except (IndexError, ValueError):
            found = None
        gc.set_threshold(700, 10, 10)
        repr(found)
print("done")
"""


@pytest.mark.parametrize(
    "code",
    [CHANGES, LISTS_THAT_SHRINK, IMPORTS_THAT_CLEAR, COLLECTIONS_THAT_CLEAR],
    ids=["indices", "lists that shrink", "an import", "a garbage collection"],
)
def test_a_cache_that_changes_while_a_question_is_read_answers_or_says_no(code: str, tmp_path: Path) -> None:
    assert_done(tmp_path, code, PYTHONMALLOC="debug")  # what is freed is overwritten


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
    assert_done(tmp_path, THREADS_THAT_CANNOT_START)


@pytest.mark.parametrize(
    "code",
    [ENDS_WHILE_ASKING, SOURCE_THAT_USES_THE_CACHE, OWNER_THAT_USES_THE_CACHE],
    ids=["the process ends while threads ask", "a source uses the cache", "an owner uses the cache when it goes"],
)
def test_nothing_hangs_or_crashes_at_a_bad_moment(code: str, tmp_path: Path) -> None:
    assert_done(tmp_path, code)
