"""Forked children ask with threads that were used before the fork, whatever the parent was doing.

Each case is a process of its own with a time limit, so that a hang is a failure. Sizes: [1, 8, 384, 512].
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.processes import USES_THE_POOL, assert_done

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


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
    assert_done(tmp_path, FORK)


@needs_fork
def test_a_pool_of_forked_processes_asks_with_threads_used_before_the_fork(tmp_path: Path) -> None:
    assert_done(tmp_path, POOL_OF_PROCESSES)
