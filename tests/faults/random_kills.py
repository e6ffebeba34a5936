"""Random kills: writers that append to one directory and are killed at any time, while a reader looks at it all the time.

Layer n is made from the number n, so the reader knows what it must find: a prefix, whole, never shorter than the layers
whose push had returned before it looked.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from attncache import AttentionCache
from tests.faults.forking import fork
from tests.faults.judging import Verdict
from tests.faults.matrix import Row
from tests.faults.states import State, layer_states
from tests.faults.write_paths import litter_of, pattern, push_factored

NAME = "append in a loop"
_AFTER = 40  # layers, after which the writers begin anew in an empty directory
_MOST = 100
_LONGEST = 0.03  # seconds until a kill
_ROUND, _WRITTEN, _READS, _END, _LENGTH = range(5)


class _Shared:
    """What the processes tell each other: the directory in use, layers in it, reads, and what the reader found wrong."""

    def __init__(self) -> None:
        self._room = mmap.mmap(-1, 1 << 13)

    def __getitem__(self, at: int) -> int:
        return int.from_bytes(self._room[8 * at : 8 * at + 8], "little")

    def __setitem__(self, at: int, value: int) -> None:
        self._room[8 * at : 8 * at + 8] = value.to_bytes(8, "little")

    def tell(self, text: str) -> None:
        raw = text.encode()[-4000:]
        self._room[4096 : 4096 + len(raw)] = raw
        self[_LENGTH] = len(raw)

    @property
    def told(self) -> str:
        return self._room[4096 : 4096 + self[_LENGTH]].decode("utf-8", "replace")


def row(folder: Path, n_kills: int, seed: int) -> Row:
    """A row with a point for each kill; its note says how often the reader looked."""
    found = Row(NAME, "SIGKILL at random")
    shared, chance, layers = _Shared(), random.Random(seed), _layers()
    reader = _forked(partial(_look_on, folder, layers, shared))
    for kill in range(n_kills):
        directory = folder / f"run{shared[_ROUND]}"
        writer = _forked(partial(_append_on, directory, shared))
        time.sleep(chance.random() * _LONGEST)
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        found.add(f"kill {kill}", _judged(directory, layers, shared))
        if shared[_WRITTEN] >= _AFTER:
            shared[_WRITTEN] = 0
            shared[_ROUND] += 1
            shutil.rmtree(folder / f"run{shared[_ROUND] - 2}", ignore_errors=True)
    shared[_END] = 1
    os.waitpid(reader, 0)
    if shared.told:
        found.failures.append(f"{found.path}, the reader: {shared.told}")
    found.note = f"another process looked {shared[_READS]} times"
    return found


def _push(cache: AttentionCache, number: int) -> None:
    """Layer ``number``."""
    if number % 3 == 2:
        push_factored(cache, number)
    else:
        cache.push(pattern(number), check=False)


def _layers() -> tuple[State, ...]:
    """What each layer must be."""
    cache = AttentionCache()
    for number in range(_MOST):
        _push(cache, number)
    return layer_states(cache)


def _forked(work: Callable[[], None]) -> int:
    pid = fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def _append_on(directory: Path, shared: _Shared) -> None:
    """Open the directory and push until the kill comes."""
    try:
        cache = AttentionCache.create(directory)
        while cache.n_layers < _MOST:
            _push(cache, cache.n_layers)
            shared[_WRITTEN] = cache.n_layers
    except BaseException:
        shared.tell(f"the writer: {traceback.format_exc()}")
    time.sleep(_LONGEST * 100)


def _look_on(folder: Path, layers: tuple[State, ...], shared: _Shared) -> None:
    """Read the directory again and again; all layers that were written before must be there, and each be whole."""
    try:
        while not shared[_END]:
            directory = folder / f"run{shared[_ROUND]}"
            written = shared[_WRITTEN]
            try:
                found = layer_states(AttentionCache.load(directory, verify=True))
            except FileNotFoundError:
                found = ()
            if len(found) < written or found != layers[: len(found)]:
                shared.tell(f"found {len(found)} layers of at least {written}, or others than were pushed")
            shared[_READS] += 1
    except BaseException:
        shared.tell(traceback.format_exc())


def _judged(directory: Path, layers: tuple[State, ...], shared: _Shared) -> Verdict:
    """What a killed writer has left, before and after the next opens."""
    written, had_litter, wrong = shared[_WRITTEN], bool(litter_of(directory)), []
    found: tuple[State, ...] = ()
    try:
        with suppress(FileNotFoundError):
            found = layer_states(AttentionCache.load(directory, verify=True))
        if len(found) not in (written, written + 1) or found != layers[: len(found)]:
            wrong.append(f"found {len(found)} layers after {written} pushes, or others than were pushed")
        AttentionCache.create(directory).close()
        wrong += [f"after the next open there lies {left}" for left in litter_of(directory)]
    except Exception:
        wrong.append(traceback.format_exc()[-1500:])
    shared[_WRITTEN] = len(found)
    return Verdict("new" if len(found) > written else "old", False, had_litter, wrong)
