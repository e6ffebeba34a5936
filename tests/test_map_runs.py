"""Many prompts on disk, asked one function: ``map_runs``.

Covered: results of threads, of spawned processes and of dask's local cluster in the order of the runs; what an executor is
given and how much at a time; progress. Sizes: up to 12 runs of one 2 x 2 layer. Results are exact.
Not covered: clusters of several machines, other executors (loky, MPI).
"""

from __future__ import annotations

import os
import pickle
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from attncache import AttentionCache, RunErrors, map_runs, open_runs, progress, set_num_threads
from attncache.runs import map_runs as mapping
from tests.support.asked_of_runs import (
    LONG,
    Opened,
    Recording,
    check_that_three_failed,
    number,
    number_but_not_three,
    place,
    write_runs,
)


@pytest.fixture
def three_threads() -> Iterator[None]:
    from attncache import get_num_threads

    before = get_num_threads()
    set_num_threads(3)
    yield
    set_num_threads(before)


def test_results_come_in_the_order_of_the_runs_whichever_ends_first(folder: Path, three_threads: None) -> None:
    later = threading.Event()

    def number_after_the_next(cache: AttentionCache) -> int:
        if number(cache) == 1:
            assert later.wait(LONG)
        if number(cache) == 3:
            later.set()
        return number(cache)

    assert map_runs(number_after_the_next, folder) == [1, 2, 3, 4, 5]
    assert map_runs(number, open_runs(folder)[3:0:-1]) == [4, 3, 2]


def test_as_many_threads_ask_as_attncache_uses(tmp_path: Path, three_threads: None, opened: Opened) -> None:
    write_runs(tmp_path, 12)
    meeting = threading.Barrier(3)
    alive = []

    def meet(cache: AttentionCache) -> int:
        meeting.wait(LONG)
        alive.append(opened.n_alive)
        meeting.wait(LONG)
        return number(cache)

    assert map_runs(meet, tmp_path) == list(range(1, 13))
    assert alive == [3] * 12  # and no run was opened before its turn, or kept open after it
    assert opened.n_alive == 0


def test_an_executor_is_used_as_it_is_and_left_open(folder: Path) -> None:
    with ThreadPoolExecutor(1, "mine") as pool:
        assert map_runs(lambda _: threading.current_thread().name, folder, pool) == ["mine_0"] * 5
        assert map_runs(number, folder, pool) == [1, 2, 3, 4, 5]
        assert pool.submit(int, 3).result() == 3


def test_spawned_processes_open_the_runs_themselves(folder: Path, opened: Opened) -> None:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        found = map_runs(place, folder, pool)
        assert opened.names == []
    assert [n for n, _, _, _ in found] == [1, 2, 3, 4, 5]
    assert os.getpid() not in {process for _, process, _, _ in found}
    assert [Path(path) for _, _, path, _ in found] == [folder / name for name in open_runs(folder).names]
    assert [answer for _, _, _, answer in found] == map_runs(lambda cache: cache.rows(0, -1).tobytes(), folder)


def test_an_executor_is_given_the_function_and_a_path_and_nothing_is_opened_before(
    folder: Path, opened: Opened
) -> None:
    recording = Recording()
    assert map_runs(number_but_not_three, open_runs(folder)[3:], recording) == [4, 5]
    assert [arguments[1:] for arguments in recording.given] == [
        (number_but_not_three, folder / name) for name in ("run-4", "run-5.safetensors")
    ]
    assert all(len(pickle.dumps(arguments)) < 1000 for arguments in recording.given)
    assert sorted(opened.names) == ["run-4", "run-5.safetensors"]


def test_an_executor_has_a_limited_number_of_runs_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_runs(tmp_path, 12)
    monkeypatch.setattr(mapping, "_AT_ONCE", 4)
    recording = Recording()
    assert map_runs(number, tmp_path, recording) == list(range(1, 13))
    assert recording.most_waiting == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fn": 3}, "fn must be callable, got int"),
        ({"executor": 3}, "executor must be None or a concurrent.futures.Executor, got int"),
        ({"executor": Executor}, "executor must be None or a concurrent.futures.Executor, got type"),
        ({"progress": 1}, "progress must be True, False, None or callable, got int"),
    ],
)
def test_wrong_arguments_are_refused_before_a_run_is_opened(
    folder: Path, opened: Opened, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        map_runs(**{"fn": number, "directory": folder, **arguments})
    assert opened.names == []


@pytest.mark.parametrize("has_tqdm", [True, False], ids=["tqdm", "a line"])
def test_progress_counts_runs_on_stderr(
    has_tqdm: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if has_tqdm:
        pytest.importorskip("tqdm", reason="without it there is a line instead")
    else:
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(progress, "DELAY", 0.0)
    with pytest.raises(RunErrors):
        map_runs(number_but_not_three, folder)
    output, errors = capsys.readouterr()
    assert output == ""
    assert "5/5" in errors if has_tqdm else "asking: run 5 of 5" in errors
    assert errors.endswith("\n")
    map_runs(number, folder, progress=False)
    assert capsys.readouterr() == ("", "")


def test_short_work_shows_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    map_runs(number, folder)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_a_dask_cluster_asks_the_runs(processes: bool, folder: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="dask's clusters come with distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=processes, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = client.get_executor(pure=False)
        found = map_runs(place, folder, executor)
        assert [(n, answer) for n, _, _, answer in found] == map_runs(
            lambda cache: (number(cache), cache.rows(0, -1).tobytes()), folder
        )
        assert (os.getpid() in {process for _, process, _, _ in found}) != processes
        with pytest.raises(RunErrors) as raised:
            map_runs(number_but_not_three, folder, executor)
        check_that_three_failed(raised.value, folder)
        with pytest.raises(TypeError, match=r"got Client \(for a dask client: client\.get_executor\(pure=False\)\)"):
            map_runs(number, folder, client)


def test_a_callable_is_told_of_each_run(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    map_runs(number, folder, progress=lambda *at: told.append(at))
    assert told == [(run + 1, 5) for run in range(5)]
