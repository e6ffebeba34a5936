"""What test_runs.py asks of runs in other processes, which import it from here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from attncache import AttentionCache


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
