"""Whose memory push lies over without being told to: memory that nobody may write any more, whoever owns it.

Covered: views of every kind over writable and read-only owners (NumPy arrays, bytes, bytearrays, mapped files, views of
caches, strangers), and what a cache holds once the owner has written. Tolerance: none.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, pattern_from_qk
from tests.support.patterns import Array, assert_same, cache_of, make

SHAPE = (1, 2, 3, 4)


def address(pattern: Array) -> int:
    return int(pattern.__array_interface__["data"][0])


def locked(array: Array) -> Array:
    array.flags.writeable = False
    return array


def frozen(values: Array) -> Array:
    """A copy that nobody may write."""
    return locked(values.copy())


class WithInterface:
    """A stranger that shows memory of its own as read-only."""

    def __init__(self, owner: Array) -> None:
        self.owner = owner
        interface = owner.__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], True)}


class GivesAView:
    """A stranger that shows a read-only view of its own."""

    def __init__(self, owner: Array) -> None:
        self.owner = owner

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return locked(self.owner[:])


READ_ONLY_VIEWS: dict[str, Callable[[Array], Any]] = {
    "view": lambda owner: locked(owner.view()),
    "slice": lambda owner: locked(owner[:]),
    "reshaped": lambda owner: locked(owner.reshape(-1)).reshape(owner.shape),
    "view of a read-only view": lambda owner: locked(owner.view()).view(),
    "broadcast": lambda owner: np.broadcast_to(owner, owner.shape),
    "memoryview": lambda owner: memoryview(owner).toreadonly(),
    "array of a memoryview": lambda owner: np.asarray(memoryview(owner).toreadonly()),
    "array of a memoryview of a view": lambda owner: np.asarray(memoryview(locked(owner.view()))),
    "buffer": lambda owner: locked(np.frombuffer(owner, owner.dtype)).reshape(owner.shape),
    "as strided": lambda owner: np.lib.stride_tricks.as_strided(owner, writeable=False),
    "stranger with __array_interface__": WithInterface,
    "stranger with __array__": GivesAView,
}
UNKNOWN = {"as strided", "stranger with __array_interface__", "stranger with __array__"}  # who owns it, to NumPy


@pytest.mark.parametrize("name", READ_ONLY_VIEWS)
def test_a_read_only_view_of_writable_memory_is_copied(name: str) -> None:
    expected = make("soft", SHAPE)
    owner = expected.copy()
    cache = AttentionCache()
    cache.push(READ_ONLY_VIEWS[name](owner))
    cache.push_qk(READ_ONLY_VIEWS[name](owner), READ_ONLY_VIEWS[name](owner))
    owner[...] = 9
    assert_same(cache[0], expected)
    assert_same(cache.get_queries(1), expected)
    assert_same(cache.get_keys(1), expected)


@pytest.mark.parametrize("name", READ_ONLY_VIEWS)
def test_a_view_of_writable_memory_is_borrowed_if_asked_for(name: str) -> None:
    owner = make("soft", SHAPE)
    cache = AttentionCache()
    cache.push(READ_ONLY_VIEWS[name](owner), copy=False)
    assert address(cache[0]) == address(owner)


@pytest.mark.parametrize("name", [name for name in READ_ONLY_VIEWS if name not in UNKNOWN])
def test_a_view_of_read_only_memory_is_borrowed(name: str) -> None:
    owner = frozen(make("soft", SHAPE))
    cache = AttentionCache()
    cache.push(READ_ONLY_VIEWS[name](owner))
    assert address(cache[0]) == address(owner)


def test_bytes_are_borrowed_and_bytearrays_are_not() -> None:
    expected = make("soft", SHAPE)
    for owner, is_borrowed in ((expected.tobytes(), True), (bytearray(expected.tobytes()), False)):
        for buffer in (owner, memoryview(owner).toreadonly()):
            pattern = locked(np.frombuffer(buffer, np.float32)).reshape(SHAPE)
            cache = cache_of([pattern])
            assert (address(cache[0]) == address(pattern)) is is_borrowed
            assert_same(cache[0], expected)


def test_mapped_files_are_borrowed_if_they_are_mapped_to_be_read(tmp_path: Path) -> None:
    expected = make("soft", SHAPE)
    path = tmp_path / "pattern"
    expected.tofile(path)
    with path.open("r+b") as file:
        mapped = {
            access: np.frombuffer(mmap.mmap(file.fileno(), expected.nbytes, access=access), np.float32).reshape(SHAPE)
            for access in (mmap.ACCESS_READ, mmap.ACCESS_WRITE, mmap.ACCESS_COPY)
        }
    for access, pattern in mapped.items():
        cache = cache_of([locked(pattern)])
        assert (address(cache[0]) == address(pattern)) is (access == mmap.ACCESS_READ)
        assert_same(cache[0], expected)
    for mode in ("r", "r+", "c"):
        memory_map: Any = np.memmap(path, np.float32, mode, shape=SHAPE)  # type: ignore[call-overload]
        cache = cache_of([locked(memory_map)])
        assert (address(cache[0]) == address(memory_map)) is (mode == "r")


def test_numpy_files_opened_to_be_read_are_borrowed(tmp_path: Path) -> None:
    np.save(tmp_path / "pattern.npy", make("soft", SHAPE))
    pattern = np.load(tmp_path / "pattern.npy", mmap_mode="r")
    assert address(cache_of([pattern])[0]) == address(pattern)


def test_views_of_caches_and_their_answers_are_borrowed(tmp_path: Path) -> None:
    cache = cache_of([make("soft", (1, 1, 4, 4))])
    cache.push_qk(make("soft", (1, 2, 5, 4)), make("soft", (1, 1, 5, 4)))
    cache.save(tmp_path / "cache.safetensors")
    loaded = AttentionCache.load(tmp_path / "cache.safetensors")
    in_memory = AttentionCache.load(tmp_path / "cache.safetensors", mmap=False)
    views = [each for source in (cache, loaded, in_memory) for each in (source[0], source[1], source.get_keys(1))]
    views += [pattern_from_qk(cache.get_queries(1), cache.get_keys(1)), cache[0][0, 0][None, None]]
    for view in views:
        assert address(cache_of([view])[0]) == address(view)
