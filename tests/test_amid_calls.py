"""Questions from signal handlers, progress callbacks and finalisers, amid a long call of the same thread.

Covered: every kind of call, small and large, the sums that the long call is just making, other threads that ask meanwhile
or are waited for, and fork. The cases of a way share a process with a watchdog, so that a hang is a failure
(support/asked_amid_calls.py). Sizes: as many queries and keys of 4 heads as take a quarter of a second of two threads.
Not covered: handlers that raise (test_factored_passes.py has Ctrl-C).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.support.processes import assert_done

ASKS = f"""
import sys
sys.path.append({str(Path(__file__).resolve().parents[1])!r})
import tests.support.asked_amid_calls
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer signals")
def test_a_handler_may_ask_everything_amid_a_long_call(tmp_path: Path) -> None:
    assert_done(
        tmp_path, ASKS, "handler everything", "handler the same", "handler columns", "handler threads", seconds=120
    )


def test_progress_may_ask_everything_and_wait_for_other_threads(tmp_path: Path) -> None:
    same = ("progress everything", "progress the same", "progress threads")
    assert_done(tmp_path, ASKS, *same, "progress crosswise", "progress waits", seconds=120)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the collector runs only between bytecodes")
def test_a_finaliser_may_ask_everything_amid_a_long_call(tmp_path: Path) -> None:
    assert_done(tmp_path, ASKS, "finaliser everything", "finaliser the same", "finaliser threads", seconds=120)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_amid_a_long_call_leaves_no_process_hanging(tmp_path: Path) -> None:
    assert_done(tmp_path, ASKS, "progress forks", seconds=120)
