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
from tests.support.patterns import (
    DTYPES,
    Array,
    address,
    as_stored,
    assert_same,
    cache_of,
    locked,
    make,
    strided,
)

SHAPE = (2, 2, 3, 4)


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
    np.save(tmp_path / "pattern.npy", expected)
    loaded = np.load(tmp_path / "pattern.npy", mmap_mode="r")
    assert address(cache_of([loaded])[0]) == address(loaded)
    for mode in ("r", "r+", "c"):
        memory_map: Any = np.memmap(path, np.float32, mode, shape=SHAPE)  # type: ignore[call-overload]
        cache = cache_of([locked(memory_map)])
        assert (address(cache[0]) == address(memory_map)) is (mode == "r")


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


def test_big_endian_patterns_are_stored_natively() -> None:
    for name in (">f2", ">f4", ">f8"):
        pattern = make("soft", SHAPE).astype(name)
        expected = pattern.astype(np.float32 if name == ">f8" else pattern.dtype.newbyteorder("="))
        assert_same(as_stored(pattern), expected)
        assert_same(as_stored(locked(pattern.copy())), expected)
        assert_same(as_stored(pattern[..., ::2]), np.ascontiguousarray(expected[..., ::2]))
        with pytest.raises(ValueError, match="copy=False"):
            as_stored(pattern, copy=False)


def test_unaligned_patterns_are_stored_aligned() -> None:
    for name in ("f2", "f4"):
        pattern = make("soft", SHAPE).astype(name)
        raw = np.frombuffer(b"\0" + pattern.tobytes(), np.uint8)
        unaligned = raw[1:].view(name).reshape(SHAPE)
        assert not unaligned.flags.aligned
        assert not unaligned.flags.writeable
        assert_same(as_stored(unaligned), pattern)
        assert as_stored(unaligned).flags.aligned
        with pytest.raises(ValueError, match="copy=False"):
            as_stored(unaligned, copy=False)


def test_a_read_only_contiguous_source_is_borrowed(dtype: str) -> None:
    pattern = locked(make("soft", SHAPE, dtype))
    for copy in (None, False):
        assert address(as_stored(pattern, copy=copy)) == address(pattern)
        assert address(as_stored(pattern, dtype, copy=copy)) == address(pattern)
    assert address(as_stored(pattern, copy=True)) != address(pattern)


def test_a_writable_source_is_copied_unless_borrowing_is_asked_for(dtype: str) -> None:
    pattern = make("soft", SHAPE, dtype)
    assert address(as_stored(pattern)) != address(pattern)
    assert address(as_stored(pattern, copy=True)) != address(pattern)
    cache = AttentionCache()
    cache.push(pattern, copy=False)
    assert address(cache[0]) == address(pattern)
    assert not cache[0].flags.writeable
    assert pattern.flags.writeable, "borrowing must not change the source"
    pattern[...] = 0.25
    assert_same(cache[0], pattern)


@pytest.mark.parametrize("layout", strided(make("soft", SHAPE)))
def test_borrowing_a_strided_source_is_refused(layout: str) -> None:
    pattern = strided(make("soft", SHAPE))[layout]
    for source in (pattern, locked(pattern.view())):
        cache = AttentionCache()
        with pytest.raises(ValueError, match="copy=False"):
            cache.push(source, copy=False)
        assert cache.is_empty
    assert address(as_stored(locked(pattern))) != address(pattern)


def test_borrowing_another_dtype_is_refused(dtype: str) -> None:
    for source in DTYPES:
        pattern = locked(make("soft", SHAPE, source))
        if source == dtype:
            continue
        cache = AttentionCache(dtype=dtype)
        with pytest.raises(ValueError, match="copy=False"):
            cache.push(pattern, copy=False)
        assert cache.is_empty
        cache.push(pattern)
        assert address(cache[0]) != address(pattern)
    pattern = make("soft", SHAPE)
    for needs_a_copy in (pattern.astype(np.float64), pattern.tolist(), list(pattern)):
        with pytest.raises(ValueError, match="copy=False"):
            AttentionCache().push(needs_a_copy, copy=False)


def test_axes_of_one_do_not_make_a_source_strided() -> None:
    pattern = make("soft", (1, 2, 4, 6))
    sliced = np.zeros((3, 2, 4, 6), np.float32)[::3]
    sliced[...] = pattern
    assert sliced.flags.c_contiguous
    assert address(as_stored(sliced, copy=False)) == address(sliced)


def test_owned_layers_start_at_64_bytes(dtype: str) -> None:
    for size in (1, 3, 17, 129, 4099):
        cache = cache_of([make("soft", (1, 2, 1, size), dtype) for _ in range(5)])
        assert [address(view) % 64 for view in cache] == [0] * 5
