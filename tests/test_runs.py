"""Many prompts on disk: ``open_runs`` and ``map_runs``.

Covered: which entries of a directory are runs and in which order, choosing them, that a run is open only while it is held,
everything refused; results of threads, of spawned processes and of dask's local cluster in the order of the runs; what an
executor is given and how much at a time; runs that fail to open, to be asked or to come back, executors that break, cancel
or are closed, Ctrl-C; progress. Sizes: up to 12 runs of one 2 x 2 layer; once, every kind of layer. Results are exact.
Not covered: clusters of several machines, other executors (loky, MPI).
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, RunErrors, map_runs, mapping, open_runs, progress, set_num_threads
from attncache.files import DamagedFileError
from tests.support.asked_of_runs import (
    end_of_the_process_at_three,
    number_but_not_three,
    number_or_an_error_that_cannot_be_read_back,
    place,
    write_runs,
)
from tests.support.stored import everything, state, tokened

LONG = 30.0  # seconds before a test that waits for another thread gives up


def number(cache: AttentionCache) -> int:
    return int(cache.metadata["n"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory of five runs, run-1.safetensors, run-2, .."""
    directory = tmp_path / "runs"
    directory.mkdir()
    write_runs(directory, 5)
    return directory


@pytest.fixture
def three_threads() -> Iterator[None]:
    from attncache import get_num_threads

    before = get_num_threads()
    set_num_threads(3)
    yield
    set_num_threads(before)


class Opened:
    """Counts the caches that were opened, and those that still are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self._alive: weakref.WeakSet[AttentionCache] = weakref.WeakSet()
        self._lock = threading.Lock()
        load = AttentionCache.load

        def counting(path: Path) -> AttentionCache:
            cache = load(path)
            with self._lock:
                self.names.append(path.name)
                self._alive.add(cache)
            return cache

        monkeypatch.setattr(AttentionCache, "load", counting)

    @property
    def n_alive(self) -> int:
        with self._lock:
            return len(self._alive)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(monkeypatch)


# ---- which runs there are


def test_runs_come_in_the_natural_order_of_their_names(tmp_path: Path) -> None:
    cache = tokened()
    names = ["2", "10", "a2b3", "a2b20", "a10b1", "a-2.safetensors", "a-10.safetensors", "b", "b-02", "b-2", "ü"]
    for name in reversed(names):
        cache.save(tmp_path / name)
        if not name.endswith(".safetensors"):
            (tmp_path / name).unlink()
            AttentionCache.create(tmp_path / name).close()
    assert open_runs(tmp_path).names == tuple(names)


def test_what_is_not_a_run_is_passed_over(folder: Path) -> None:
    names = open_runs(folder).names
    cache = tokened()
    cache.save(folder / ".hidden.safetensors")
    cache.save(folder / "other")
    AttentionCache.create(folder / ".hidden").close()
    AttentionCache.create(folder / "nested" / "run").close()
    (folder / ".run-9.safetensors.saving").write_bytes(b"")
    (folder / "notes.txt").write_text("not a run")
    (folder / "named.safetensors").mkdir()
    (folder / "nowhere.safetensors").symlink_to(folder / "nothing")
    (folder / "manifest").mkdir()
    assert open_runs(folder).names == names


def test_a_directory_without_runs_has_none(tmp_path: Path) -> None:
    runs = open_runs(tmp_path)
    assert len(runs) == 0
    assert list(runs) == []
    assert runs.names == ()
    assert map_runs(number, tmp_path) == []


def test_runs_are_those_that_were_there_when_the_directory_was_looked_at(folder: Path) -> None:
    runs = open_runs(folder)
    tokened().save(folder / "run-6.safetensors")
    (folder / "run-1.safetensors").unlink()
    assert len(runs) == 5
    with pytest.raises(FileNotFoundError, match=r"run-1\.safetensors"):
        runs[0]
    assert open_runs(folder).names == ("run-2", "run-3.safetensors", "run-4", "run-5.safetensors", "run-6.safetensors")


# ---- choosing and opening them


def test_runs_are_chosen_by_number_slice_and_name(folder: Path) -> None:
    runs = open_runs(str(folder))
    assert [number(runs[at]) for at in (0, 4, -1, np.int64(-5))] == [1, 5, 5, 1]
    assert [number(cache) for cache in runs[1:4]] == [2, 3, 4]
    assert [number(cache) for cache in runs[::-2]] == [5, 3, 1]
    assert [number(cache) for cache in reversed(runs)] == [5, 4, 3, 2, 1]
    assert number(runs["run-2"]) == 2
    assert number(runs[2:]["run-3.safetensors"]) == 3
    assert "run-2" in runs
    assert "run-2" not in runs[2:]
    assert runs.path("run-2") == folder / "run-2"
    assert runs.directory == folder
    assert repr(runs) == f"Runs(5 runs in {folder})"
    assert repr(runs[:1]) == f"Runs(1 run in {folder})"


def test_a_run_is_the_cache_that_was_saved(tmp_path: Path) -> None:
    saved = {"all.safetensors": everything(), "few.safetensors": tokened()}
    for name, cache in saved.items():
        cache.save(tmp_path / name)
    runs = open_runs(tmp_path)
    assert [state(run) for run in runs] == [state(cache) for cache in saved.values()]
    assert [run.path for run in runs] == [tmp_path / name for name in runs.names]


def test_a_run_is_opened_when_it_is_reached_and_open_only_while_it_is_held(folder: Path, opened: Opened) -> None:
    runs = open_runs(folder)
    assert len(runs[1:]) == 4
    assert "run-2" in runs
    assert (opened.names, opened.n_alive) == ([], 0)
    steps = iter(runs)
    assert opened.names == []
    held = next(steps)
    assert (opened.names, opened.n_alive) == (["run-1.safetensors"], 1)
    del held
    assert opened.n_alive == 0
    for n, cache in enumerate(steps, start=2):
        assert number(cache) == n
        assert len(opened.names) == n
        assert opened.n_alive == 1
    assert runs["run-2"].n_layers == 1
    assert opened.names[-1] == "run-2"


def test_an_index_error_while_a_run_is_opened_does_not_look_like_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path) -> AttentionCache:
        raise IndexError("while opening")

    monkeypatch.setattr(AttentionCache, "load", load)
    with pytest.raises(IndexError, match="while opening"):
        list(open_runs(folder))


def test_runs_pickle_as_names(folder: Path) -> None:
    runs = open_runs(folder)[1:3]
    raw = pickle.dumps(runs)
    assert len(raw) < 1000
    again = pickle.loads(raw)
    assert (again.names, [number(cache) for cache in again]) == (runs.names, [2, 3])


def test_a_relative_directory_is_found_from_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    runs = open_runs("runs")
    monkeypatch.chdir("/")
    assert number(runs[-1]) == 5
    assert map_runs(number, runs) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("which", "error", "message"),
    [
        (5, IndexError, "run 5 is out of range for 5 runs in "),
        (-6, IndexError, "run -6 is out of range for 5 runs in "),
        ("run-6", KeyError, "'run-6' is not the name of a run in "),
        ("run-1", KeyError, "'run-1' is not the name of a run in "),
        (1.0, TypeError, "a run is chosen by an int, a slice or its name, got float"),
        (None, TypeError, "a run is chosen by an int, a slice or its name, got NoneType"),
    ],
)
def test_what_chooses_no_run_is_refused(folder: Path, which: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        open_runs(folder)[which]


@pytest.mark.parametrize("call", [open_runs, lambda directory: map_runs(number, directory)], ids=["open", "map"])
def test_what_is_no_directory_of_runs_is_refused(folder: Path, call: Callable[[Any], object]) -> None:
    with pytest.raises(FileNotFoundError, match=r"^/.*nothing: directory must exist; capture or save runs"):
        call(folder / "nothing")
    with pytest.raises(
        NotADirectoryError, match=r"^/.*run-1\.safetensors: directory .*, got a file; AttentionCache\.load"
    ):
        call(folder / "run-1.safetensors")
    with pytest.raises(
        ValueError, match=r"run-2: directory must hold runs, got one that is a run; AttentionCache\.load"
    ):
        call(folder / "run-2")
    with pytest.raises(TypeError, match="directory must be a string or a path, got int"):
        call(3)


# ---- asking them


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


class Recording(Executor):
    """Does each piece of work when ``release`` is called, and knows all it was given."""

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []
        self._waiting: list[tuple[Future[Any], Any, tuple[Any, ...]]] = []
        self.most_waiting = 0
        self.cancels = False

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        assert not kwargs
        self.given.append((fn, *args))
        future: Future[Any] = Future()
        self._waiting.append((future, fn, args))
        self.most_waiting = max(self.most_waiting, len(self._waiting))
        threading.Timer(0.01, self.release).start()
        return future

    def release(self) -> None:
        future, fn, args = self._waiting.pop()
        if self.cancels:
            future.cancel()
        elif future.set_running_or_notify_cancel():
            future.set_result(fn(*args))


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
        ({"progress": 1}, "progress must be True or False, got int"),
    ],
)
def test_wrong_arguments_are_refused_before_a_run_is_opened(
    folder: Path, opened: Opened, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        map_runs(**{"fn": number, "directory": folder, **arguments})
    assert opened.names == []


# ---- runs that fail


def test_a_message_of_many_failed_runs_is_short() -> None:
    errors: dict[str, Exception] = {f"run-{n}": ValueError("x" * 5000) for n in range(1000)}
    message = str(RunErrors(Path("runs"), [None] * 1000, errors))
    assert message.count("\n") == 21
    assert message.startswith("1000 of 1000 runs in runs failed")
    assert message.endswith("and 980 more, see errors")
    assert len(message) < 12_000


def check_that_three_failed(raised: RunErrors, folder: Path) -> None:
    assert raised.results == [1, 2, None, 4, 5]
    assert list(raised.errors) == ["run-3.safetensors"]
    error = raised.errors["run-3.safetensors"]
    assert (type(error), str(error)) == (ValueError, "three is not allowed")
    assert raised.__cause__ is error
    assert str(raised) == (
        f"1 of 5 runs in {folder} failed (results has the others):\n"
        "  run-3.safetensors: ValueError: three is not allowed"
    )


def test_a_failing_run_is_named_and_the_others_are_asked(folder: Path) -> None:
    with pytest.raises(RunErrors) as raised:
        map_runs(number_but_not_three, folder)
    check_that_three_failed(raised.value, folder)
    check_that_three_failed(pickle.loads(pickle.dumps(raised.value)), folder)


def test_a_run_that_fails_in_a_process_is_named_and_the_others_are_asked(folder: Path) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.raises(RunErrors) as raised:
            map_runs(number_but_not_three, folder, pool)
        check_that_three_failed(raised.value, folder)
        with pytest.raises(RunErrors) as raised:
            map_runs(number_or_an_error_that_cannot_be_read_back, folder, pool)
        assert raised.value.results == [None, 2, 3, 4, 5]
        assert str(raised.value.__cause__) == "TwoArgumentError: one: is not allowed"


def test_runs_that_cannot_be_opened_are_named_in_their_order(folder: Path) -> None:
    (folder / "run-4" / "manifest.json").write_text("{}")
    runs = open_runs(folder)
    (folder / "run-1.safetensors").unlink()
    with pytest.raises(
        RunErrors, match=r"(?s)3 of 5 .*run-1.*FileNotFound.*run-3.*three.*run-4.*Damaged.*begin"
    ) as raised:
        map_runs(number_but_not_three, runs)
    errors = raised.value.errors
    assert [type(error) for error in errors.values()] == [FileNotFoundError, ValueError, DamagedFileError]
    assert raised.value.results == [None, 2, None, None, 5]
    assert raised.value.__cause__ is errors["run-1.safetensors"]


def test_a_failed_run_is_not_kept_open_by_its_error(folder: Path, opened: Opened) -> None:
    def fail_twice(cache: AttentionCache) -> None:
        try:
            fail_inside(cache)
        except ZeroDivisionError:
            raise ValueError("twice") from None

    def fail_inside(cache: AttentionCache) -> None:
        row = cache.rows(0, -1)
        raise ZeroDivisionError(row)

    with pytest.raises(RunErrors) as raised:
        map_runs(fail_twice, folder)
    assert len(raised.value.errors) == 5
    assert opened.n_alive == 0


def test_a_function_that_cannot_be_pickled_is_the_error_of_every_run(folder: Path) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.raises(RunErrors, match=r"5 of 5 runs .*(?s:.*)lambda") as raised:
            map_runs(lambda cache: cache.n_layers, folder, pool)
        assert raised.value.results == [None] * 5
        assert map_runs(number_but_not_three, open_runs(folder)[:1], pool) == [1]


def test_a_pool_that_breaks_is_the_error_of_every_run_it_had(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "_AT_ONCE", 1)  # so that the first two have ended, and the last two find it broken
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        pytest.raises(RunErrors, match="3 of 5 runs") as raised,
    ):
        map_runs(end_of_the_process_at_three, folder, pool)
    assert raised.value.results == [1, 2, None, None, None]
    assert {type(error) for error in raised.value.errors.values()} == {BrokenProcessPool}


def test_executors_that_are_closed_or_cancel_are_the_error_of_every_run(folder: Path) -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(RunErrors, match="cannot schedule new futures after shutdown"):
        map_runs(number, folder, pool)
    cancelling = Recording()
    cancelling.cancels = True
    with pytest.raises(RunErrors, match="CancelledError: the executor cancelled it") as raised:
        map_runs(number, folder, cancelling)
    assert [type(error) for error in raised.value.errors.values()] == [CancelledError] * 5


INTERRUPTED = """
import itertools, os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import attncache

signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background ignores it
attncache.set_num_threads(3)
_, directory, threads, when = sys.argv
pool = ThreadPoolExecutor(3) if threads == "given" else None
begun, numbers, go_on, ended = [], itertools.count(1), threading.Event(), threading.Semaphore(0)

def interrupt():
    if when == "giving out":
        os.kill(os.getpid(), signal.SIGINT)
    else:
        time.sleep(0.5)  # until map_runs has given out all runs and waits
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # here, it does not end the wait of the main thread

def wait(cache):
    begun.append(cache.path.name)
    if next(numbers) == 3:
        interrupt()
    assert go_on.wait(30)
    ended.release()

try:
    attncache.map_runs(wait, directory, pool, progress=False)
except KeyboardInterrupt:
    print("interrupted")
finally:
    go_on.set()
print(all(ended.acquire(timeout=30) for _ in range(3)))
if pool is not None:
    pool.shutdown()
print(len(begun))
"""


@pytest.mark.parametrize("when", ["giving out", "waiting"])
@pytest.mark.parametrize("threads", ["own", "given"])
def test_ctrl_c_begins_no_further_run(tmp_path: Path, threads: str, when: str) -> None:
    write_runs(tmp_path, 12)
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path), threads, when]
    run = subprocess.run(command, capture_output=True, text=True, timeout=4 * LONG, check=False)
    assert (run.stdout.split(), run.stderr) == (["interrupted", "True", "3"], "")


def test_an_exit_is_no_failure_of_a_run_but_the_end_of_all(folder: Path) -> None:
    def stop(cache: AttentionCache) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        map_runs(stop, folder)


# ---- progress


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


# ---- dask


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
