"""Ctrl-C at every line of the code that changes a cache on disk.

Covered: KeyboardInterrupt before each third line that files/{atomic,directory,locks,manifest}.py run while a directory is
created or changed in every way and while a file is saved; the ways begin at different lines, so that those they share are
all met. What is there is the old or the new, the cache in memory is that after its next change, locks are free, and
nothing is left in the folder once it is opened again. Sizes: two to four small layers.
Not covered: interrupts inside one line; kills (tests/faults).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.files import atomic
from attncache.files.directory import DiskCache
from tests.support.patterns import cache_of
from tests.support.stored import push_dense, push_factored, replace, state, tokened

TRACED = {str(Path(atomic.__file__).with_name(f"{name}.py")) for name in ("atomic", "directory", "locks", "manifest")}


def interrupted(call: Callable[[], object], at: int) -> bool:
    """Whether a KeyboardInterrupt came before the ``at``-th line that a call runs; else it ran to its end."""
    lines = iter(range(at))

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        callers = [each.f_code.co_name for each in (frame, frame.f_back) if each is not None]
        if frame.f_code.co_filename not in TRACED or "__del__" in callers:  # there Python would only report it
            return None
        if event == "line" and next(lines, None) is None:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def each_interrupt(
    prepared: Path, folder: Path, call: Callable[[Path], Callable[[], object]], first: int = 0
) -> Iterator[Path]:
    """A copy of what is prepared, for each third line at which the call that ``call`` makes for it was interrupted."""
    for at in count(first, 3):
        path = folder / prepared.name
        if prepared.is_dir():
            shutil.copytree(prepared, path)
        else:
            folder.mkdir()
            shutil.copyfile(prepared, path)
        if not interrupted(call(path), at):
            assert at > 20
            return
        yield path
        shutil.rmtree(folder)


def is_tidy(directory: Path) -> bool:
    """Whether every file there is one that the manifest names, the manifest or the lock."""
    files = {path.name for path in directory.iterdir()} - {"manifest.json", "lock"}
    manifest = (directory / "manifest.json").read_text(encoding="utf-8")
    return all(file in manifest for file in files)


def lengthen(cache: AttentionCache) -> None:
    random = np.random.default_rng(5)
    cache.append_qk(1, random.random((2, 4, 3, 8), np.float32), random.random((2, 2, 3, 8), np.float32))


def compact(cache: AttentionCache) -> None:
    if isinstance(cache, DiskCache):
        cache.compact()


CHANGES: dict[str, Callable[[AttentionCache], object]] = {
    "push": lambda cache: push_dense(cache, "float16"),
    "push_qk": push_factored,
    "append_qk": lengthen,
    "replace": lambda cache: replace(cache, 0, cache_of([np.full((2, 1, 3, 4), 0.25, np.float16)])),
    "compact": compact,
    "clear": lambda cache: cache.clear(),
    "tokens": lambda cache: setattr(cache, "tokens", ["a", "b", "c", "d", "e", "f", "g"]),
}


def filled(cache: AttentionCache) -> AttentionCache:
    push_dense(cache, "float32")
    push_factored(cache)
    return cache


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_directory_that_is_interrupted_is_done_or_not_done(change: str, tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "prepared") as cache:
        filled(cache)
    old, new = filled(AttentionCache()), filled(AttentionCache())
    CHANGES[change](new)
    for either in (old, new):
        either.push([[[[1.0]]]])
    opened: list[DiskCache] = []

    def call(path: Path) -> Callable[[], object]:
        opened.append(AttentionCache.create(path))
        return lambda: CHANGES[change](opened[-1])

    first = list(CHANGES).index(change) % 3
    for path in each_interrupt(tmp_path / "prepared", tmp_path / "run", call, first):
        opened[-1].push([[[[1.0]]]])
        found = state(opened[-1])
        assert found in (state(old), state(new))
        opened[-1].close()
        with AttentionCache.create(path) as again:
            assert state(again) == found
            assert is_tidy(path)
    opened[-1].close()


def test_a_directory_whose_opening_is_interrupted_is_not_in_use(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "prepared") as cache:
        filled(cache)
    (tmp_path / "prepared" / "segment-000077.safetensors").touch()
    (tmp_path / "prepared" / ".manifest.json.saving").touch()
    opened: list[DiskCache] = []
    for path in each_interrupt(
        tmp_path / "prepared", tmp_path / "run", lambda path: lambda: opened.append(AttentionCache.create(path))
    ):
        with AttentionCache.create(path) as again:
            assert state(again) == state(filled(AttentionCache()))
            assert is_tidy(path)
    opened[-1].close()


def test_a_creation_that_is_interrupted_can_be_repeated(tmp_path: Path) -> None:
    opened: list[DiskCache] = []
    (tmp_path / "prepared").mkdir()
    for path in each_interrupt(
        tmp_path / "prepared", tmp_path / "run", lambda path: lambda: opened.append(AttentionCache.create(path))
    ):
        with AttentionCache.create(path) as again:
            again.push([[[[1.0]]]])
        assert is_tidy(path)
    opened[-1].close()


def test_a_save_that_is_interrupted_has_saved_or_has_not(tmp_path: Path) -> None:
    old, new = filled(AttentionCache()), tokened()
    old.save(tmp_path / "run.safetensors")
    states = (state(old), state(new))
    for path in each_interrupt(tmp_path / "run.safetensors", tmp_path / "folder", lambda path: lambda: new.save(path)):
        assert state(AttentionCache.load(path, verify=True)) in states
        old.save(path)
        assert state(AttentionCache.load(path, verify=True)) == states[0]
        assert [each.name for each in path.parent.iterdir()] == ["run.safetensors"]
