"""Runs, and what the tests of them ask in this process and in others, which import it from here."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from attncache import AttentionCache, RunErrors


class TwoArgumentError(Exception):
    """Pickles, and cannot be read back: it is rebuilt from one argument."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def place(cache: AttentionCache) -> tuple[Any, int, str, bytes]:
    """Which run it is, who was asked, where it was opened from, and an answer."""
    return cache.metadata["n"], os.getpid(), str(cache.path), cache.rows(0, -1).tobytes()


def number_but_not_three(cache: AttentionCache) -> int:
    if cache.metadata["n"] == 3:
        raise ValueError("three is not allowed")
    return int(cache.metadata["n"])


def number_or_an_error_that_cannot_be_read_back(cache: AttentionCache) -> int:
    if cache.metadata["n"] == 1:
        raise TwoArgumentError("one", "is not allowed")
    return int(cache.metadata["n"])


def end_of_the_process_at_three(cache: AttentionCache) -> int:
    if cache.metadata["n"] == 3:
        sys.stdout.flush()
        os._exit(1)
    return int(cache.metadata["n"])


def write_runs(directory: Path, n_runs: int) -> list[str]:
    """Runs 1, 2, .., files and directories in turn, that tell their number and have different answers; their names."""
    names = []
    for n in range(1, n_runs + 1):
        pattern = [[[[1 / n, 1 - 1 / n], [0.5, 1 / n]]]]
        names.append(f"run-{n}.safetensors" if n % 2 else f"run-{n}")
        cache = AttentionCache() if n % 2 else AttentionCache.create(directory / names[-1])
        cache.push(pattern)
        cache.metadata = {"n": n}
        if n % 2:
            cache.save(directory / names[-1])
    return names


LONG = 30.0  # seconds before a test that waits for another thread gives up


def number(cache: AttentionCache) -> int:
    return int(cache.metadata["n"])


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
        threading.Timer(0.1, self.release).start()
        return future

    def release(self) -> None:
        future, fn, args = self._waiting.pop()
        if self.cancels:
            future.cancel()
        elif future.set_running_or_notify_cancel():
            future.set_result(fn(*args))
