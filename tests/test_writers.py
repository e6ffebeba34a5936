"""Who may write a file or a directory: one at a time, across threads, processes and forks; and what readers meanwhile see.

Covered: a second writer of a directory and of a file, writers that are forgotten, closed or forked, a change amid a change,
threads that push, replace and compact under readers. Not covered: what a killed writer leaves (test_writes.py, tests/faults).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.files import InUseError
from attncache.files import directory as disk
from attncache.files.atomic import hidden_name, replacing
from tests.support.patterns import cache_of
from tests.support.stored import push_dense, replace, state, tokened

ONE = np.ones((1, 1, 1, 1), np.float32)


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run"):
        with pytest.raises(InUseError, match=f"process {os.getpid()} writes this cache.*run"):
            AttentionCache.create(tmp_path / "run")
        code = f"from attncache import AttentionCache as C; C.create({str(tmp_path / 'run')!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
        assert f"process {os.getpid()} writes this cache" in other.stderr
    AttentionCache.create(tmp_path / "run").close()


def test_a_writer_that_is_forgotten_lets_the_next_one_in(tmp_path: Path) -> None:
    cache = AttentionCache.create(tmp_path / "run")
    del cache
    AttentionCache.create(tmp_path / "run").close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_change_amid_a_change_is_refused_and_both_ends_stay_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        write = disk.write_file
        refused = []

        def amid(*args: Any, **options: Any) -> Any:
            try:
                cache.push(np.ones((1, 1, 2, 2), np.float32), check=False)
            except RuntimeError as error:
                refused.append(str(error))
            return write(*args, **options)

        monkeypatch.setattr(disk, "write_file", amid)
        cache.push(np.zeros((1, 1, 2, 2), np.float32))
        monkeypatch.undo()
        cache.push(np.full((1, 1, 2, 2), 0.5, np.float32))
        assert len(refused) == 1
        assert "must not be changed amid a change of it" in refused[0]
        assert [layer.flat[0] for layer in cache] == [0, 0.5]
    assert [layer.flat[0] for layer in AttentionCache.load(tmp_path / "run")] == [0, 0.5]


def test_a_forked_child_may_read_but_not_write(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        push_dense(cache, "float16")
        child = os.fork()
        if child == 0:
            try:
                cache.rows(0, 0)
                cache.push(ONE)
            except InUseError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        push_dense(cache, "float16")
        assert AttentionCache.load(tmp_path / "run").n_layers == 2


def test_threads_push_into_one_directory_and_readers_see_whole_layers(tmp_path: Path) -> None:
    n_each, seen = 10, []
    with AttentionCache.create(tmp_path / "run") as cache:

        def write(number: int) -> None:
            for _ in range(n_each):
                cache.push(np.full((1, 1, 2, 2), number, np.float32))

        writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            found = AttentionCache.load(tmp_path / "run", verify=True)
            seen.append(found.n_layers)
            assert all(np.ptp(view) == 0 for view in found)
        for writer in writers:
            writer.join()
        values = sorted(view[0, 0, 0, 0] for view in cache)
    assert values == [number for number in range(3) for _ in range(n_each)]
    assert seen == sorted(seen)


def test_a_reader_meets_a_writer_that_replaces_and_compacts(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        for _ in range(3):
            cache.push(np.zeros((1, 1, 2, 2), np.float32))
        stop = threading.Event()

        def write() -> None:
            for number in range(40):
                replace(cache, number % 3, cache_of([np.full((1, 1, 2, 2), number, np.float32)]))
                if number % 5 == 0:
                    cache.compact()
            stop.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not stop.is_set():
            found = AttentionCache.load(tmp_path / "run")
            assert (found.n_layers, [np.ptp(view) for view in found]) == (3, [0, 0, 0])
        writer.join()


def test_a_second_writer_of_one_path_is_told_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    with replacing(path) as fd:
        os.write(fd, b"first")
        with pytest.raises(InUseError, match="writing this file"):
            tokened().save(path)
        with pytest.raises(FileNotFoundError):
            AttentionCache.load(path)
        assert hidden_name(path).exists(), "a reader must not remove what is being written"
    assert path.read_bytes() == b"first"


def test_savers_of_one_path_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    caches = {seed: AttentionCache() for seed in range(4)}
    for seed, cache in caches.items():
        cache.push([[[[seed / 4, 1 - seed / 4]]]])
    wrong = []

    def save_on(cache: AttentionCache) -> None:
        for _ in range(25):
            with suppress(InUseError):
                cache.save(path)

    def load_on() -> None:
        while any(writer.is_alive() for writer in writers):
            try:
                found = state(AttentionCache.load(path, verify=True))
            except FileNotFoundError:
                continue
            if found not in whole:
                wrong.append(found)

    whole = [state(cache) for cache in caches.values()]
    writers = [threading.Thread(target=save_on, args=(cache,)) for cache in caches.values()]
    reader = threading.Thread(target=load_on)
    for thread in (*writers, reader):
        thread.start()
    for thread in (*writers, reader):
        thread.join()
    assert wrong == []
    assert state(AttentionCache.load(path, verify=True)) in whole
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


CREATING = """
import os, sys, time
from attncache import AttentionCache
cache = AttentionCache.create(sys.argv[1])
if os.fork() == 0:
    os.close(1)
    time.sleep(60)  # as a worker that outlives who began it
print(os.getpid(), flush=True)
sys.stdin.read(1)
os._exit(0)
"""


def test_a_forked_process_does_not_keep_a_directory_in_use(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", CREATING, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as writer:
        try:
            assert writer.stdout is not None
            assert int(writer.stdout.readline()) == writer.pid
            with pytest.raises(InUseError, match=f"process {writer.pid} writes this cache"):
                AttentionCache.create(tmp_path / "run")
            writer.communicate(b"x", timeout=60)
            AttentionCache.create(tmp_path / "run").close()
        finally:
            os.killpg(writer.pid, signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_cache_that_is_closed_is_free_though_forked_workers_live(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        with AttentionCache.create(tmp_path / "run") as cache:
            cache.push([[[[1.0]]]])
            assert pool.submit(abs, -1).result(60) == 1
        AttentionCache.create(tmp_path / "run").close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_push_after_a_fork_in_the_middle_of_one_is_refused_at_once(tmp_path: Path) -> None:
    in_push, forked = threading.Event(), threading.Event()
    with AttentionCache.create(tmp_path / "run") as cache:

        def push_slowly() -> None:
            with cache._changing():
                in_push.set()
                forked.wait(60)

        pushing = threading.Thread(target=push_slowly)
        pushing.start()
        in_push.wait(60)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            try:
                cache.push([[[[1.0]]]])
            except InUseError:
                os._exit(7)
            os._exit(1)
        forked.set()
        pushing.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
