"""The pass that makes the sums of a factored layer: progress, Ctrl-C, threads, fork, and the memory that it takes.

Sizes: layers that take some tenths of a second on the scalar level, one of 20,000 positions. Tolerance: none.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attncache
from attncache import progress
from tests.support.factored import all_rows, factored_of, layer
from tests.support.patterns import Array, assert_same
from tests.support.processes import fresh_process


def test_progress_is_told_and_may_stop_the_pass() -> None:
    query, key = layer(3000, 3000, batch=1, heads=8, key_heads=1, head_dim=64)
    cache = factored_of(query, key)
    with attncache.simd.use("scalar"):  # slow enough to be looked at
        told: list[tuple[int, int]] = []

        def stop(done: int, total: int) -> None:
            told.append((done, total))
            raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            cache.lse(0, progress=stop)
    assert len(told) == 1
    assert 0 < told[0][0] < told[0][1]
    assert np.isfinite(cache.lse(0)).all()
    with pytest.raises(TypeError, match="progress must be True, False, None or callable, got int"):
        cache.lse(0, progress=3)  # type: ignore[arg-type]


def test_a_bar_shows_how_far_the_pass_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    cache = factored_of(*layer(3000, 3000, batch=1, heads=8, key_heads=1, head_dim=64))
    with attncache.simd.use("scalar"):  # slow enough to be looked at
        cache.lse(0, progress=True)
    assert re.search(r"summing rows: percent [0-9]+ of 100 \n$", capsys.readouterr().err)


ASKS_A_LONG_LAYER = """
import resource
import numpy as np
import attncache

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

rng = np.random.default_rng(0)
query, key = (rng.standard_normal((1, heads, 20000, 16), np.float32) for heads in (4, 2))
cache = attncache.AttentionCache()
cache.push_qk(query, key)
before = peak()
cache.rows(0, [0, 9999, -1], heads=None)
cache.lse(0)
cache.columns(0, [0, 5, 19999])
cache.attention_to_position(0, 7)
cache.top_k(3, positions=slice(0, 20000, 100), heads=None)
cache.top_k(3, positions=[1, 2], direction="to")
cache.edges(slice(0, 200), slice(0, 200))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process in the unit that Linux has")
def test_no_query_holds_the_square_of_a_long_sequence(tmp_path: Path) -> None:
    run = fresh_process(tmp_path, ASKS_A_LONG_LAYER)
    dense = 4 * 4 * 20000**2
    slab, buffers = 64 * 2**20, 32 * 2**20
    assert int(run.stdout) < slab + buffers < dense / 50


@pytest.mark.skipif(os.name != "posix", reason="sends itself a signal")
@pytest.mark.parametrize("ask", ["lse", "columns", "get_layer"])
def test_ctrl_c_ends_long_work_and_leaves_the_layer_as_it_was(ask: str, ctrl_c: None) -> None:
    query, key = layer(3000, 3000, batch=1, heads=8, key_heads=1, head_dim=64)
    cache = factored_of(query, key)
    before = cache.nbytes
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    with attncache.simd.use("scalar"):
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            getattr(cache, ask)(0)
    timer.join()
    assert cache.nbytes == before
    assert_same(cache.attention_to_position(0, 5), cache.head_mean(0)[:, 5])


def test_threads_that_need_the_sums_at_once_wait_for_one_pass() -> None:
    query, key = layer(800, 800, batch=1, heads=8, key_heads=1, head_dim=64)
    cache = factored_of(query, key)
    told: list[int] = []
    answers: list[Array] = []

    def ask(progress: Any) -> None:
        answers.append(cache.lse(0, progress=progress))

    with attncache.simd.use("scalar"):
        first = threading.Thread(target=ask, args=(lambda _, total: told.append(total),))
        first.start()
        while not told:
            time.sleep(0.01)
        others = [threading.Thread(target=ask, args=(lambda _, total: told.append(-total),)) for _ in range(2)]
        for thread in others:
            thread.start()
        for thread in (first, *others):
            thread.join()
    assert_same(answers[0], answers[1])
    assert_same(answers[0], answers[2])
    assert {total for total in told if total < 0} <= {-1}, "a thread that waits has no pieces of its own"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_during_the_pass_makes_its_own() -> None:
    query, key = layer(1500, 1500, batch=1, heads=4, key_heads=1, head_dim=32)
    cache = factored_of(query, key)
    right = factored_of(query, key).lse(0)
    told: list[int] = []
    with attncache.simd.use("scalar"):
        summing = threading.Thread(target=lambda: cache.lse(0, progress=lambda done, _: told.append(done)))
        summing.start()
        while not told and summing.is_alive():
            time.sleep(0.01)
        child = os.fork()
        if child == 0:
            attncache.simd.use("auto")
            os._exit(0 if np.array_equal(cache.lse(0), right) else 1)
        _, status = os.waitpid(child, 0)
        summing.join()
    assert os.waitstatus_to_exitcode(status) == 0


def test_threads_may_ask_while_another_appends() -> None:
    query, key = layer(200, 200, batch=1)
    whole = all_rows(factored_of(query, key))
    cache = factored_of(query[:, :, :1], key[:, :, :1])
    failures: list[str] = []

    def ask() -> None:
        for _ in range(60):
            rows = all_rows(cache)
            n = rows.shape[2]
            if not np.array_equal(rows, whole[:, :, :n, :n]):
                failures.append(f"rows of {n} positions differ")
            cache.attention_to_position(0, 0)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for position in range(1, 200):
        cache.append_qk(0, query[:, :, [position]], key[:, :, [position]])
    for thread in threads:
        thread.join()
    assert failures == []
    assert_same(all_rows(cache), whole)
