"""Code in an interpreter of its own, and jobs in threads that start together, for tests in which something may hang."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.support.patterns import SEED


def fresh_process(
    folder: Path, code: str, *arguments: str, seconds: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs code in a new interpreter; the environment variables of attncache are only those given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ATTNCACHE_")}
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=folder,
        env=clean | environment,
        check=False,
    )


def run_together(*jobs: Callable[[], None], seconds: float = 60) -> None:
    """Runs the jobs in threads of their own, started together; the first exception is raised here."""
    start, errors = threading.Barrier(len(jobs)), []

    def run(job: Callable[[], None]) -> None:
        start.wait()
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    running = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(seconds)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def assert_done(folder: Path, code: str, *arguments: str, seconds: float = 60, **environment: str) -> None:
    """Runs code that must print "done" at its end, and nothing else."""
    ran = fresh_process(folder, code, *arguments, seconds=seconds, **environment)
    assert (ran.returncode, ran.stdout.strip()) == (0, "done"), ran.stderr


# What uses threads, and whether its answers are right; a program to be gone on with.
USES_THE_POOL = f"""
import os, sys, threading
import numpy as np
import attncache
attncache.set_num_threads(3)
pattern = np.random.default_rng({SEED}).random((1, 8, 384, 512), dtype=np.float32).astype(np.float16)
cache = attncache.AttentionCache()
cache.push(pattern)
expected = pattern[0].mean(axis=0, dtype=np.float32)
def right():
    top = cache.top_k(3, layers=0, heads=None).positions
    return bool((cache.head_mean(0) == expected).all() and (cache.rows(0, slice(0, 300)) == expected[:300]).all()
        and (pattern[0].argmax(axis=-1) == top[..., 0]).all() and attncache.get_num_threads() == 3)
"""
