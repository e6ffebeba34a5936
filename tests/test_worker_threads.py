"""Work on the pieces of a file in threads: order, errors, interrupts, and threads that cannot start or die at once.

Covered: every way in which a thread may fail to do its piece, and saving and loading in a process whose memory is limited
to what little it has (with a watchdog, so that a hang is a failure). Not covered: speed.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attncache.files import bytes as files_bytes
from attncache.files.bytes import in_threads

WORTH_IT = 1 << 30
start_new_thread = files_bytes.start_new_thread


def refuse(*_: Any) -> int:
    raise RuntimeError("can't start new thread")


def lack_memory(*_: Any) -> int:
    raise MemoryError


def die_at_once(*_: Any) -> int:
    return start_new_thread(lambda: None, ())


def start_late(run: Callable[[], None], _: Any) -> int:
    return start_new_thread(lambda: (time.sleep(0.05), run()), ())


STARTS = {
    "refused": refuse,
    "no memory": lack_memory,
    "dies": die_at_once,
    "late": start_late,
    "at once": start_new_thread,
}


@pytest.fixture(params=STARTS)
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(files_bytes, "start_new_thread", STARTS[request.param])
    monkeypatch.setattr(files_bytes, "get_num_threads", lambda: 4)
    return str(request.param)


@pytest.mark.usefixtures("start")
def test_results_come_in_the_order_of_the_pieces_and_each_is_done_once() -> None:
    done = []

    def work(piece: int) -> int:
        time.sleep(0.001 * (piece % 3))
        done.append(piece)
        return piece * piece

    assert in_threads(work, iter(range(50)), WORTH_IT) == [piece * piece for piece in range(50)]
    time.sleep(0.1)  # for threads that begin late
    assert sorted(done) == list(range(50))
    assert in_threads(work, [], WORTH_IT) == []


@pytest.mark.usefixtures("start")
def test_the_first_error_stops_what_has_not_begun_and_nothing_runs_after_it() -> None:
    begun, ended = [], []

    def work(piece: int) -> None:
        begun.append(piece)
        time.sleep(0.005)
        if piece == 7:
            raise OSError("the disk is full")
        ended.append(piece)

    with pytest.raises(OSError, match="the disk is full"):
        in_threads(work, iter(range(1000)), WORTH_IT)
    assert len(begun) < 50
    assert len(ended) == len(begun) - 1
    time.sleep(0.1)
    assert len(ended) == len(begun) - 1


@pytest.mark.usefixtures("start")
def test_an_error_of_the_pieces_waits_for_those_that_run() -> None:
    running = []

    def pieces() -> Iterator[int]:
        yield from range(3)
        raise KeyboardInterrupt

    def work(piece: int) -> None:
        running.append(piece)
        time.sleep(0.02)
        running.remove(piece)

    with pytest.raises(KeyboardInterrupt):
        in_threads(work, pieces(), WORTH_IT)
    assert not running


def test_large_work_uses_several_threads_and_small_work_only_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_bytes, "get_num_threads", lambda: 4)

    def work(_: int) -> int:
        time.sleep(0.01)
        return threading.get_ident()

    assert 2 <= len(set(in_threads(work, range(12), WORTH_IT))) <= 12
    assert set(in_threads(work, range(3), 100)) == {threading.get_ident()}


WITHOUT_MEMORY = """
import faulthandler, resource, sys
faulthandler.dump_traceback_later(50, exit=True)
import numpy as np
import attncache
from attncache import AttentionCache
attncache.set_num_threads(4)
cache = AttentionCache(index="off")
cache.push(np.random.default_rng(0).random((1, 8, 1024, 768), np.float32))
expected = cache.rows(0, 5)
path = sys.argv[2]
cache.save(path)
calls = {"save": lambda: cache.save(path), "load": lambda: AttentionCache.load(path, mmap=False),
         "verify": lambda: AttentionCache.load(path, verify=True)}
call = calls[sys.argv[1]]
call()
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
for extra in [*range(0, 4 << 20, 256 << 10), *range(4 << 20, 96 << 20, 8 << 20)]:
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + extra, hard))
    try:
        call()
    except (MemoryError, OSError):
        pass
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    assert (cache.rows(0, 5) == expected).all()
call()
assert (AttentionCache.load(path).rows(0, 5) == expected).all()
print("done")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of the process is read from /proc")
@pytest.mark.parametrize("call", ["save", "load", "verify"])
def test_files_are_written_and_read_or_refused_where_memory_is_short(call: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_MEMORY, call, str(tmp_path / "cache.safetensors")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, "done"), ran.stderr
