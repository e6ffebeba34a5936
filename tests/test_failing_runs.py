"""Runs that fail to open, to be asked or to come back; executors that break, cancel or are closed; Ctrl-C; exits.

Sizes: up to 12 runs of one 2 x 2 layer.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import CancelledError, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import pytest

from attncache import AttentionCache, RunErrors, map_runs, open_runs
from attncache.files import DamagedFileError
from attncache.runs import map_runs as mapping
from tests.support.asked_of_runs import (
    LONG,
    Opened,
    Recording,
    check_that_three_failed,
    end_of_the_process_at_three,
    number,
    number_but_not_three,
    number_or_an_error_that_cannot_be_read_back,
    write_runs,
)


def test_a_message_of_many_failed_runs_is_short() -> None:
    errors: dict[str, Exception] = {f"run-{n}": ValueError("x" * 5000) for n in range(1000)}
    message = str(RunErrors(Path("runs"), [None] * 1000, errors))
    assert message.count("\n") == 21
    assert message.startswith("1000 of 1000 runs in runs failed")
    assert message.endswith("and 980 more, see errors")
    assert len(message) < 12_000


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
    with ProcessPoolExecutor(1, get_context("spawn")) as pool, pytest.raises(RunErrors, match="3 of 5 runs") as raised:
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
