"""What push accepts and refuses: sources, layouts, borrowing, failed pushes.

Sizes: [2, 3, 7, 37]. Tolerance: none. Not covered: whose memory is borrowed unasked (test_borrowing.py), conversions
(test_conversions.py), torch (test_push_torch.py), the look at what is pushed (test_pattern_check.py).
"""

from __future__ import annotations

import array
import ctypes
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attncache import AttentionCache
from tests.support.patterns import (
    DTYPES,
    Array,
    Shape,
    address,
    as_stored,
    assert_same,
    cache_of,
    locked,
    make,
    strided,
)

SHAPE: Shape = (2, 3, 7, 37)


# Layouts


@pytest.mark.parametrize("layout", strided(make("soft", SHAPE)))
def test_any_layout_is_stored_as_the_same_values(layout: str, dtype: str) -> None:
    pattern = strided(make("infinities", SHAPE, dtype))[layout]
    for copy in (None, True):
        view = as_stored(pattern, copy=copy)
        assert_same(view, np.ascontiguousarray(pattern))
        assert view.flags.c_contiguous
    for target, kind in DTYPES.items():
        with np.errstate(all="ignore"):
            converted = np.ascontiguousarray(pattern.astype(np.float32).astype(kind))
        assert_same(as_stored(pattern, target), converted)


# Sources


class DLPackOnly:
    """An array that shows nothing but the DLPack protocol."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __dlpack__(self, **options: Any) -> Any:
        return self.source.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.source.__dlpack_device__()


class OldDLPackOnly(DLPackOnly):
    """The protocol as it was before versions: stream is the only option."""

    def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
        return self.source.__dlpack__(stream=stream)


class OnADevice:
    """A DLPack array that says it lives on another device."""

    def __init__(self, device: int) -> None:
        self.device = device

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.device, 0)

    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("asked for memory on a device that cannot be read")


class ArrayOnly:
    """An array that shows nothing but __array__."""

    def __init__(self, source: Array) -> None:
        self.source = source

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return self.source if dtype is None else self.source.astype(dtype)


def ctypes_pattern(pattern: Array) -> Any:
    kind: Any = ctypes.c_float
    for size in reversed(pattern.shape):
        kind = kind * size
    return kind.from_buffer_copy(pattern.astype(np.float32).tobytes())


SOURCES: dict[str, Callable[[Array], Any]] = {
    "array": lambda pattern: pattern,
    "read-only array": lambda pattern: locked(pattern.copy()),
    "memoryview": memoryview,
    "memoryview of bytes": lambda pattern: memoryview(pattern.tobytes()).cast("f", pattern.shape),
    "memoryview of array.array": lambda p: memoryview(array.array("f", p.ravel())).cast("B").cast("f", p.shape),
    "ctypes": ctypes_pattern,
    "nested lists": lambda pattern: pattern.tolist(),
    "nested tuples": lambda pattern: tuple(tuple(tuple(map(tuple, h)) for h in b) for b in pattern.tolist()),
    "list of arrays": list,
    "broadcast": lambda pattern: np.broadcast_to(pattern, pattern.shape),
    "memoryview of every second key": lambda pattern: memoryview(strided(pattern)["every second key"]),
    "DLPack of every second key": lambda pattern: DLPackOnly(strided(pattern)["every second key"]),
    "__array__": ArrayOnly,
    "DLPack": DLPackOnly,
    "DLPack before versions": OldDLPackOnly,
}


@pytest.mark.parametrize("copy", [None, True], ids=["copy=None", "copy=True"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_stored_as_its_values(source: str, copy: bool | None) -> None:
    pattern = make("soft", SHAPE)
    kept = pattern.copy()
    assert_same(as_stored(SOURCES[source](pattern), copy=copy), kept)


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_dlpack_carries_every_float(name: str) -> None:
    pattern = make("soft", SHAPE).astype(name)
    assert_same(as_stored(DLPackOnly(pattern)), pattern.astype(np.float32 if name == "float64" else name))


@pytest.mark.parametrize("source", ["array", "memoryview", "DLPack", "DLPack before versions", "__array__"])
def test_a_writable_source_is_not_changed_under_the_cache(source: str) -> None:
    pattern = make("soft", SHAPE)
    kept = pattern.copy()
    cache = cache_of([SOURCES[source](pattern)])
    pattern[...] = -1
    assert_same(cache[0], kept)


# CUDA is not among them: tests/cuda/test_cuda_library.py has what is said where it cannot be used.
@pytest.mark.parametrize("device", [4, 7, 8, 10, 14], ids=["opencl", "vulkan", "metal", "rocm", "oneapi"])
def test_a_source_on_another_device_is_refused(device: int) -> None:
    cache = AttentionCache()
    with pytest.raises(ValueError, match=r"(?i)device|cpu"):
        cache.push(OnADevice(device))
    assert cache.is_empty


def test_a_source_whose_protocol_fails_passes_its_error_on() -> None:
    class Broken:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
            raise RuntimeError("the source is broken")

    class BrokenDLPack(OnADevice):
        def __dlpack__(self, **options: Any) -> Any:
            raise RuntimeError("the source is broken")

    for broken in (Broken(), BrokenDLPack(1)):
        cache = AttentionCache()
        with pytest.raises(RuntimeError, match="the source is broken"):
            cache.push(broken)
        assert cache.is_empty


def test_broadcast_weights_are_stored_whole() -> None:
    assert_same(as_stored(np.broadcast_to(np.float32(0.5), SHAPE)), np.full(SHAPE, 0.5, np.float32))


def test_subclasses_of_array_are_stored_as_their_values() -> None:
    class Mine(np.ndarray):
        pass

    pattern = make("soft", SHAPE)
    view = as_stored(pattern.view(Mine))
    assert type(view) is np.ndarray
    assert_same(view, pattern)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (None, TypeError, "got None: the model returned no weights, as with a fused attention.*attncache.capture"),
        ((make("soft", SHAPE),) * 2, ValueError, "got a tuple of 2; AttentionCache.from_attentions takes several"),
        ([make("soft", SHAPE), None], ValueError, "got a list of 2; AttentionCache.from_attentions takes several"),
        (np.stack([make("soft", SHAPE)] * 2), ValueError, "shape .*; AttentionCache.from_attentions takes several"),
        (make("soft", SHAPE)[0], ValueError, r"shape .*; pass pattern\[None\] if the batch is missing"),
    ],
    ids=["None", "a tuple of layers", "a list with None", "an array of layers", "no batch"],
)
def test_what_a_model_returns_in_place_of_a_pattern_is_refused_with_the_way_in(
    given: Any, error: Any, words: str
) -> None:
    cache = AttentionCache()
    with pytest.raises(error, match=words):
        cache.push(given)
    assert cache.is_empty


# Borrowing and copying


def test_dlpack_only_sources_are_copied_unless_borrowing_is_asked_for() -> None:
    pattern = make("soft", SHAPE)
    assert address(as_stored(DLPackOnly(pattern))) != address(pattern)
    assert address(as_stored(DLPackOnly(pattern), copy=False)) == address(pattern)


def test_each_layer_keeps_its_dtype_when_none_is_asked_for() -> None:
    patterns = [make("soft", SHAPE, name) for name in DTYPES]
    cache = cache_of(patterns)
    assert [view.dtype for view in cache] == [pattern.dtype for pattern in patterns]
    assert cache.nbytes == sum(pattern.nbytes for pattern in patterns)


@pytest.mark.parametrize("shape", [(), (4,), (4, 4), (2, 4, 4), (1, 1, 2, 4, 4), (0,), (1,) * 32], ids=str)
def test_a_pattern_of_the_wrong_rank_is_refused_by_name_and_shape(shape: tuple[int, ...], dtype: str) -> None:
    cache = AttentionCache()
    shown = ", ".join(map(str, shape))
    for copy in (None, True, False):
        with pytest.raises(ValueError, match=rf"pattern.*{shown}"):
            cache.push(np.zeros(shape, DTYPES[dtype]), copy=copy)
    assert cache.is_empty


def test_a_pattern_too_large_to_hold_is_a_memory_error_and_changes_nothing() -> None:
    cache = cache_of([make("soft", SHAPE)])
    huge = np.broadcast_to(np.float32(0), (1 << 10, 1 << 10, 1 << 20, 1 << 20))  # 2**62 bytes
    for dtype in (None, "float16"):
        with pytest.raises((MemoryError, ValueError)):
            AttentionCache(dtype=dtype).push(huge)
    with pytest.raises((MemoryError, ValueError)):
        cache.push(huge)
    assert cache.n_layers == 1
    assert_same(cache[0], make("soft", SHAPE))


def test_push_gives_none_and_takes_its_arguments_by_name() -> None:
    cache = AttentionCache()
    assert cache.push(pattern=make("soft", SHAPE), copy=True) is None  # type: ignore[func-returns-value]
    with pytest.raises(TypeError):
        cache.push()  # type: ignore[call-arg]
    assert cache.n_layers == 1


def test_many_layers_are_held() -> None:
    patterns = [make("soft", (1, 1, 2, 3), "float16", place) for place in range(300)]
    cache = AttentionCache.with_capacity(2)
    first = None
    for pattern in patterns:
        cache.push(pattern)
        first = cache[0] if first is None else first
    assert first is not None
    assert address(first) == address(cache[0]), "layers must not move when the cache grows"
    assert_same(cache.patterns, tuple(patterns))


REFUSED: dict[str, tuple[Any, bool | None, Any, str | None]] = {
    **{
        f"of {name}": (np.ones(SHAPE, name), None, TypeError, name)
        for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint64", "bool", "complex64", "complex128")
    },
    "read-only integers": (locked(np.ones(SHAPE, int)), None, TypeError, "int64"),
    "strided integers": (np.ones(SHAPE, int)[..., ::2], None, TypeError, "int64"),
    **{
        f"of {name}": (np.ones(SHAPE, getattr(ml_dtypes, name)), None, TypeError, name)
        for name in ("float8_e4m3fn", "float8_e5m2", "int4")
    },
    **{f"of {kind}": (np.zeros(SHAPE, kind), None, TypeError, None) for kind in ("V2", "V4", [("w", "f4")], "M8[s]")},
    "text": ("pattern", None, (TypeError, ValueError), None),
    "a number": (1.0, None, (TypeError, ValueError), None),
    "an object": (object(), None, (TypeError, ValueError), None),
    "a dictionary": ({}, None, (TypeError, ValueError), None),
    "bytes": (b"\0" * 16, None, (TypeError, ValueError), None),
    "lists of uneven lengths": ([[[[0.5], [0.5, 0.5]]]], None, (TypeError, ValueError), None),
    "lists of words": ([[[["a"]]]], None, (TypeError, ValueError), None),
    "lists of None": ([[[[None]]]], None, (TypeError, ValueError), None),
    "strided to be borrowed": (np.ones(SHAPE, np.float32)[..., ::2], False, ValueError, "copy=False"),
    "on a device": (OnADevice(10), None, ValueError, r"(?i)device|cpu"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_pattern_is_refused_and_leaves_the_cache_as_it_was(case: str) -> None:
    wrong, copy, error, words = REFUSED[case]
    patterns = [make("soft", SHAPE), make("soft", (1, 1, 2, 2), "float16")]
    cache = cache_of(patterns)
    before = [address(view) for view in cache], cache.nbytes, repr(cache)
    for _ in range(5):
        with pytest.raises(error, match=words):
            cache.push(wrong, copy=copy)
        assert ([address(view) for view in cache], cache.nbytes, repr(cache)) == before
    assert_same(cache.patterns, tuple(patterns))
