"""Zero-copy views: where they point, who keeps their memory alive, that nobody writes through them, DLPack export.

Sizes: small layers; leaks are looked for with layers of 1 MiB in the process's resident size (Linux only).
Tolerance: none. Not covered: views of memory-mapped files and of factored layers.
"""

from __future__ import annotations

import gc
import mmap
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from tests.support.patterns import DTYPES, Array, address, assert_same, cache_of, make
from tests.support.processes import assert_done

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the resident size is read from /proc")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_every_way_to_a_layer_gives_a_plain_view_of_the_same_memory(dtype: str) -> None:
    cache = cache_of([make("soft", (1, 2, 3, 4), dtype)] * 2)
    views = [
        cache.get_layer(1),
        cache[1],
        cache[-1],
        list(cache)[1],
        cache.patterns[1],
        cache[1:][0],
        cache.get_layer(-1),
    ]
    assert len({id(view) for view in views}) == len(views)
    for view in views:
        assert view is not None
        assert (address(view), view.dtype, view.shape) == (address(cache[1]), DTYPES[dtype], (1, 2, 3, 4))
        assert type(view) is np.ndarray
        assert view.flags.c_contiguous
        assert view.flags.aligned
        assert not view.flags.owndata
        assert np.shares_memory(np.asarray(memoryview(view)) if dtype != "bfloat16" else view, view)


def test_a_view_cannot_be_written(dtype: str) -> None:
    pattern = make("soft", (1, 2, 3, 4), dtype)
    cache = AttentionCache()
    cache.push(pattern)
    cache.push(pattern, copy=False)
    for view in cache:
        assert dtype == "bfloat16" or memoryview(view).readonly
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
        for array in (view, view[0], view.view(), view.T):
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.setflags(write=True)
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True
        with pytest.raises((ValueError, TypeError)):
            np.add(view, view, out=view)
    assert_same(cache.patterns, (pattern, pattern))


@pytest.mark.parametrize("result", ["attention_from_position", "attention_to_position", "head_mean"])
def test_a_read_only_result_outlives_its_cache(result: str, dtype: str) -> None:
    pattern = make("soft", (1, 4, 33, 65), dtype)
    cache = cache_of([pattern])
    args = (0,) if result == "head_mean" else (0, 3)
    kept = [getattr(cache, result)(*args) for _ in range(20)]
    expected = kept[0].copy()
    cache.clear()
    del cache
    gc.collect()
    disturb()
    for one in kept:
        assert_same(one, expected)


def disturb() -> None:
    """Allocate and fill, so that memory given back by mistake is overwritten."""
    for size in (64, 1 << 10, 1 << 14, 1 << 18):
        for _ in range(20):
            cache_of([np.full((1, 1, 1, size), -7.0, np.float32)])
            np.full(size, -7.0, np.float32)


@pytest.mark.parametrize("copy", [True, False], ids=["owned", "borrowed"])
def test_a_view_outlives_clearing_and_collecting_its_cache(copy: bool, dtype: str) -> None:
    expected = make("soft", (1, 4, 33, 65), dtype)
    cache = AttentionCache()
    cache.push(expected.copy(), copy=copy)
    view = cache[0]
    part = cache[0][0, 1, 2:, ::2]
    everything, iterator = cache.patterns, iter(cache)
    cache.clear()
    disturb()
    assert_same(view, expected)
    del cache, everything
    gc.collect()
    disturb()
    assert_same(view, expected)
    assert_same(next(iterator), expected)
    del view, iterator
    gc.collect()
    disturb()
    assert_same(part.copy(), np.ascontiguousarray(expected[0, 1, 2:, ::2]))


class Owner(np.ndarray[Any, Any]):
    """Memory that can be watched."""


def borrowed(read_only: bool) -> tuple[AttentionCache, weakref.ref[Owner], Array]:
    pattern = make("soft", (1, 2, 3, 4))
    owner = Owner(pattern.shape, np.float32)
    owner[...] = pattern
    owner.setflags(write=not read_only)
    source = owner.view(np.ndarray)
    cache = AttentionCache()
    cache.push(source, copy=None if read_only else False)
    assert address(cache[0]) == address(source)
    return cache, weakref.ref(owner), pattern


@pytest.mark.parametrize("read_only", [True, False], ids=["copy=None", "copy=False"])
def test_a_borrowed_source_lives_as_long_as_the_cache_or_a_view(read_only: bool) -> None:
    cache, owner, pattern = borrowed(read_only)
    gc.collect()
    assert owner() is not None, "the cache must keep what it borrows alive"
    assert_same(cache[0], pattern)
    view = cache[0]
    cache.attention_from_position(0, 0)
    cache.clear()
    gc.collect()
    assert owner() is not None, "a view must keep what it borrows alive"
    assert_same(view, pattern)
    del view
    gc.collect()
    assert owner() is None, "nobody is left who needs the source"


def test_a_copied_source_is_let_go_at_once() -> None:
    pattern = make("soft", (1, 2, 3, 4))
    before = sys.getrefcount(pattern)
    cache = AttentionCache()
    for _ in range(10):
        cache.push(pattern)
        cache.push(pattern, copy=True)
    assert sys.getrefcount(pattern) == before
    with pytest.raises(ValueError, match="pattern"):
        cache.push(pattern[0])
    with pytest.raises(ValueError, match="copy=False"):
        cache.push(pattern[..., ::2], copy=False)
    assert sys.getrefcount(pattern) == before


def test_a_cache_that_borrows_its_own_view_is_collected() -> None:
    cache = cache_of([make("soft", (1, 2, 3, 4))])
    cache.push(cache[0])
    assert address(cache[0]) == address(cache[1]), "a view is read-only and contiguous, so it is borrowed"
    watched = weakref.ref(cache) if hasattr(cache, "__weakref__") else None
    view = cache[1]
    del cache
    gc.collect()
    assert watched is None or watched() is None
    assert_same(view, make("soft", (1, 2, 3, 4)))


REPEATED: dict[str, Callable[[AttentionCache], Any]] = {
    "view": lambda cache: cache[0],
    "patterns": lambda cache: cache.patterns,
    "lines": lambda cache: (cache.attention_from_position(0, 1), cache.attention_to_position(0, 1)),
    "top_attended_positions": lambda cache: cache.top_attended_positions(0, 1, 200),
    "head_mean": lambda cache: cache.head_mean(0),
    "rows": lambda cache: cache.rows(0, [0, 1], heads=[0, 1]),
    "columns": lambda cache: cache.columns(0, [0, 1], heads=("mean", [1])),
    "edges": lambda cache: cache.edges(None, None),
    "top_k": lambda cache: cache.top_k(200),
}


@needs_proc
@pytest.mark.parametrize("name", REPEATED)
def test_repeated_calls_do_not_grow_the_process(name: str) -> None:
    cache, call = cache_of([make("soft", (1, 2, 3, 1000))]), REPEATED[name]
    for _ in range(200):
        call(cache)
    gc.collect()
    before = resident_bytes()
    for _ in range(4000):
        call(cache)
    gc.collect()
    assert resident_bytes() - before < 4 << 20, "4000 results of at least 1000 weights would be 16 MB"


@needs_proc
def test_failing_calls_do_not_grow_the_process() -> None:
    cache = cache_of([make("soft", (1, 2, 3, 1000))])
    strided = np.zeros((1, 2, 3, 2000), np.float32)[..., ::2]

    def fail() -> None:
        with pytest.raises(IndexError):
            cache.attention_from_position(0, 10)
        with pytest.raises(TypeError):
            cache.rows([0, "x"])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="copy=False"):
            cache.push(strided, copy=False)

    for _ in range(100):
        fail()
    before = resident_bytes()
    for _ in range(1500):
        fail()
    gc.collect()
    assert resident_bytes() - before < 4 << 20


@needs_proc
def test_pushing_and_clearing_gives_memory_back(dtype: str) -> None:
    pattern = make("soft", (1, 4, 256, 256))
    with np.errstate(over="ignore"):
        converted = pattern.astype(DTYPES[dtype])
    cache = AttentionCache(dtype=dtype)

    def push_and_forget() -> None:
        for source in (pattern, converted, converted.transpose(0, 1, 3, 2)):
            cache.push(source)
        cache.attention_from_position(0, 0)
        cache.head_mean(2)
        cache.clear()
        cache_of([pattern, converted])

    for _ in range(3):
        push_and_forget()
    gc.collect()
    before = resident_bytes()
    for _ in range(60):
        push_and_forget()
    gc.collect()
    assert resident_bytes() - before < 16 << 20, "60 rounds of about 5 MB each must not stay"


# DLPack export


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="NumPy exports read-only arrays from 2.1 on")
@pytest.mark.parametrize("name", ["float16", "float32"])
def test_a_view_goes_out_through_dlpack_without_a_copy_and_read_only(name: str) -> None:
    pattern = make("soft", (1, 2, 3, 4), name)
    cache = cache_of([pattern])
    out = np.from_dlpack(cache[0])
    assert address(out) == address(cache[0])
    assert not out.flags.writeable
    cache.clear()
    del cache
    gc.collect()
    disturb()
    assert_same(out, pattern)


# bfloat16 without ml_dtypes

WITHOUT_ML_DTYPES = """
import sys
import numpy as np
import attncache
assert "ml_dtypes" not in sys.modules, "importing attncache must not import ml_dtypes"
assert "torch" not in sys.modules, "importing attncache must not import torch"
sys.modules["ml_dtypes"] = None
cache = attncache.AttentionCache(dtype="bfloat16")
cache.push(np.full((1, 2, 3, 4), 0.25, np.float32))
assert cache.n_layers == 1 and cache.nbytes == 48 and "bfloat16" in repr(cache)
assert (cache.attention_from_position(0, 1) == 0.25).all()
assert (cache.attention_to_position(0, 1) == 0.25).all()
assert cache.top_attended_positions(0, 0, 1) == [(0, 0.25)]
assert (cache.rows(heads=None) == 0.25).all() and (cache.head_mean(0) == 0.25).all()
assert (cache.top_k(2).positions == [0, 1]).all()
for view in (lambda: cache[0], lambda: cache.get_layer(0), lambda: cache.patterns, lambda: list(cache)):
    try:
        view()
    except ImportError as error:
        assert "ml_dtypes" in str(error), error
    else:
        raise AssertionError("a bfloat16 view without ml_dtypes must be an ImportError")
assert cache.get_layer(1) is None
print("done")
"""


def test_bfloat16_answers_queries_without_ml_dtypes_and_says_what_a_view_needs(tmp_path: Path) -> None:
    assert_done(tmp_path, WITHOUT_ML_DTYPES)
