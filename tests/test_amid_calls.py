"""Questions from signal handlers, progress callbacks and finalisers, amid a long call of the same thread.

Covered: every kind of call, small and large, the sums that the long call is just making, other threads that ask meanwhile or
are waited for, and fork. Each case is a process with a watchdog, so that a hang is a failure (support/asked_amid_calls.py). Sizes: as many queries
and keys of 4 heads as take a quarter of a second of two threads.
Not covered: handlers that raise (test_factored.py has Ctrl-C).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

WAYS = [
    pytest.param(
        "handler", marks=pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer signals")
    ),
    "progress",
    pytest.param(
        "finaliser",
        marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="the collector runs only between bytecodes"),
    ),
]

ASKS = f"""
import sys
sys.path.append({str(Path(__file__).resolve().parents[1])!r})
import tests.support.asked_amid_calls
"""


def run(case: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", ASKS, *case.split()],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "done"), ran.stderr


@pytest.mark.parametrize("way", WAYS)
def test_everything_may_be_asked_amid_a_long_call(way: str, tmp_path: Path) -> None:
    run(f"{way} everything", tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_the_sums_that_are_just_being_made_may_be_asked_for(way: str, tmp_path: Path) -> None:
    run(f"{way} the same", tmp_path)


@pytest.mark.parametrize("way", WAYS[:1])
def test_everything_may_be_asked_amid_a_query(way: str, tmp_path: Path) -> None:
    run(f"{way} columns", tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_other_threads_may_ask_meanwhile(way: str, tmp_path: Path) -> None:
    run(f"{way} threads", tmp_path)


def test_two_threads_may_ask_for_the_sums_that_the_other_makes(tmp_path: Path) -> None:
    run("crosswise", tmp_path)


def test_progress_may_wait_for_a_thread_that_asks_for_the_same_sums(tmp_path: Path) -> None:
    run("waits", tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_amid_a_long_call_leaves_no_process_hanging(tmp_path: Path) -> None:
    run("forks", tmp_path)
