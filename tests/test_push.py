"""What push accepts and what it stores: sources, layouts, dtypes, borrowing, conversions, failed pushes.

Sizes: layouts at [2, 3, 7, 37]; all 65536 float16 and bfloat16 values; float32 to float16 at every float16 value, its
neighbours and midpoints, every binade, subnormals and overflow; conversions in rows of 1 to 129 for the vector tails.
Tolerance: none: NumPy's and ml_dtypes' bits. Not covered: float64 to bfloat16 where rounding twice would differ
(ml_dtypes rounds twice itself); the payload of NaN; devices other than the CPU beyond being refused.
"""

from __future__ import annotations

import array
import ctypes
import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attncache import AttentionCache
from tests.support.patterns import (
    DTYPES,
    KINDS,
    SIZES,
    Array,
    Shape,
    assert_same,
    cache_of,
    make,
    meaning,
    rng,
    strided,
)

SHAPE: Shape = (2, 3, 7, 37)


def stored(pattern: Any, dtype: str | None = None, copy: bool | None = None) -> Array:
    """What a cache holds after pushing the pattern."""
    cache = AttentionCache(dtype=dtype)
    cache.push(pattern, copy=copy)
    return cache[0]


def read_only(pattern: Array) -> Array:
    pattern.setflags(write=False)
    return pattern


def address(pattern: Array) -> int:
    return int(pattern.__array_interface__["data"][0])


@pytest.fixture(scope="module")
def torch() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch", reason="torch is not installed")


# Layouts


@pytest.mark.parametrize("layout", strided(make("soft", SHAPE)))
def test_any_layout_is_stored_as_the_same_values(layout: str, dtype: str) -> None:
    pattern = strided(make("infinities", SHAPE, dtype))[layout]
    for copy in (None, True):
        view = stored(pattern, copy=copy)
        assert_same(view, np.ascontiguousarray(pattern))
        assert view.flags.c_contiguous


@pytest.mark.parametrize("layout", strided(make("soft", SHAPE)))
def test_any_layout_is_converted_to_the_same_values(layout: str, dtype: str, simd_level: str) -> None:
    for source in ("float16", "bfloat16", "float32"):
        pattern = strided(make("extremes", SHAPE, source))[layout]
        with np.errstate(over="ignore"):
            assert_same(stored(pattern, dtype), np.ascontiguousarray(pattern.astype(np.float32).astype(DTYPES[dtype])))


def test_broadcast_patterns_are_stored_whole() -> None:
    row = make("soft", (1, 1, 1, 9))
    pattern = np.broadcast_to(row, (2, 3, 4, 9))
    assert_same(stored(pattern), np.ascontiguousarray(pattern))
    assert_same(stored(np.broadcast_to(np.float32(0.5), (2, 3, 4, 9))), np.full((2, 3, 4, 9), 0.5, np.float32))


def test_queries_answer_from_what_was_strided(dtype: str) -> None:
    pattern = make("extremes", SHAPE, dtype)
    for layout, source in strided(pattern).items():
        assert_same(cache_of([source]).head_mean(0, 1), meaning("head_mean", [pattern], 0, 1), layout)


def test_big_endian_patterns_are_stored_natively() -> None:
    for name in (">f2", ">f4", ">f8"):
        pattern = make("soft", SHAPE).astype(name)
        expected = pattern.astype(np.float32 if name == ">f8" else pattern.dtype.newbyteorder("="))
        assert_same(stored(pattern), expected)
        assert_same(stored(read_only(pattern.copy())), expected)
        assert_same(stored(pattern[..., ::2]), np.ascontiguousarray(expected[..., ::2]))
        with pytest.raises(ValueError, match="copy=False"):
            stored(pattern, copy=False)


def test_unaligned_patterns_are_stored_aligned() -> None:
    for name in ("f2", "f4"):
        pattern = make("soft", SHAPE).astype(name)
        raw = np.frombuffer(b"\0" + pattern.tobytes(), np.uint8)
        unaligned = raw[1:].view(name).reshape(SHAPE)
        assert not unaligned.flags.aligned
        assert not unaligned.flags.writeable
        assert_same(stored(unaligned), pattern)
        assert stored(unaligned).flags.aligned
        with pytest.raises(ValueError, match="copy=False"):
            stored(unaligned, copy=False)


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
    "read-only array": lambda pattern: read_only(pattern.copy()),
    "memoryview": memoryview,
    "memoryview of bytes": lambda pattern: memoryview(pattern.tobytes()).cast("f", pattern.shape),
    "memoryview of array.array": lambda p: memoryview(array.array("f", p.ravel())).cast("B").cast("f", p.shape),
    "ctypes": ctypes_pattern,
    "nested lists": lambda pattern: pattern.tolist(),
    "nested tuples": lambda pattern: tuple(tuple(tuple(map(tuple, h)) for h in b) for b in pattern.tolist()),
    "list of arrays": list,
    "__array__": ArrayOnly,
    "DLPack": DLPackOnly,
    "DLPack before versions": OldDLPackOnly,
}


@pytest.mark.parametrize("copy", [None, True], ids=["copy=None", "copy=True"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_stored_as_its_values(source: str, copy: bool | None) -> None:
    pattern = make("soft", SHAPE)
    kept = pattern.copy()
    assert_same(stored(SOURCES[source](pattern), copy=copy), kept)


@pytest.mark.parametrize("source", ["array", "memoryview", "DLPack", "DLPack before versions", "__array__"])
def test_a_writable_source_is_not_changed_under_the_cache(source: str) -> None:
    pattern = make("soft", SHAPE)
    kept = pattern.copy()
    cache = cache_of([SOURCES[source](pattern)])
    pattern[...] = -1
    assert_same(cache[0], kept)


def test_strided_sources_come_through_dlpack_and_memoryview() -> None:
    for layout, pattern in strided(make("soft", SHAPE)).items():
        assert_same(stored(DLPackOnly(pattern)), np.ascontiguousarray(pattern), f"DLPack, {layout}")
        assert_same(stored(memoryview(pattern)), np.ascontiguousarray(pattern), f"memoryview, {layout}")


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_dlpack_carries_every_float(name: str) -> None:
    pattern = make("soft", SHAPE).astype(name)
    assert_same(stored(DLPackOnly(pattern)), pattern.astype(np.float32 if name == "float64" else name))


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


def test_subclasses_of_array_are_stored_as_their_values() -> None:
    class Mine(np.ndarray):
        pass

    pattern = make("soft", SHAPE)
    view = stored(pattern.view(Mine))
    assert type(view) is np.ndarray
    assert_same(view, pattern)


# torch


@pytest.mark.parametrize("copy", [None, True], ids=["copy=None", "copy=True"])
def test_torch_tensors_of_every_float_are_stored(torch: Any, dtype: str, copy: bool | None) -> None:
    pattern = make("soft", SHAPE)
    tensor = torch.from_numpy(pattern).to(getattr(torch, dtype))
    assert_same(stored(tensor, copy=copy), pattern.astype(DTYPES[dtype]))
    tensor.zero_()


def test_torch_bfloat16_is_stored_in_any_dtype(torch: Any, dtype: str, simd_level: str) -> None:
    tensor = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).reshape(1, 1, 256, 256)
    values = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    with np.errstate(over="ignore", invalid="ignore"):
        assert_same(stored(tensor, dtype), values.astype(np.float32).astype(DTYPES[dtype]))


def test_torch_double_is_narrowed(torch: Any) -> None:
    pattern = make("soft", SHAPE).astype(np.float64) / 3
    assert_same(stored(torch.from_numpy(pattern)), pattern.astype(np.float32))


def test_torch_tensors_of_any_strides_are_stored(torch: Any, dtype: str) -> None:
    tensor = torch.from_numpy(make("soft", SHAPE)).to(getattr(torch, dtype))
    for strided_tensor in (
        tensor.transpose(1, 2).contiguous().transpose(1, 2),
        tensor.transpose(2, 3).contiguous().transpose(2, 3),
        tensor.repeat_interleave(2, dim=3)[..., ::2],
        tensor[:1].expand(2, -1, -1, -1),
    ):
        expected = strided_tensor.contiguous().to(torch.float32).numpy().astype(DTYPES[dtype])
        assert_same(stored(strided_tensor), expected)


def test_a_torch_tensor_is_copied_unless_borrowing_is_asked_for(torch: Any, dtype: str) -> None:
    tensor = torch.from_numpy(make("soft", SHAPE)).to(getattr(torch, dtype))
    assert address(stored(tensor)) != tensor.data_ptr()
    cache = AttentionCache()
    cache.push(tensor, copy=False)
    where, kept = tensor.data_ptr(), make("soft", SHAPE).astype(DTYPES[dtype])
    assert address(cache[0]) == where
    del tensor
    torch.rand(SHAPE)
    assert_same(cache[0], kept)


def test_a_torch_tensor_that_needs_a_gradient_is_taken_without_it(torch: Any) -> None:
    pattern = make("soft", SHAPE)
    tensor = torch.from_numpy(pattern).requires_grad_()
    for needs_gradient in (tensor, tensor * 1, torch.nn.Parameter(tensor), tensor.to(torch.bfloat16).float()):
        cache = AttentionCache()
        cache.push(needs_gradient)
        assert needs_gradient.requires_grad
        assert_same(cache[0], needs_gradient.detach().numpy())


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


def test_torch_integers_are_refused(torch: Any) -> None:
    for kind in (torch.int32, torch.int64, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match=str(kind).removeprefix("torch.")):
            AttentionCache().push(torch.ones(SHAPE, dtype=kind))


def test_a_torch_tensor_of_the_wrong_rank_is_refused(torch: Any) -> None:
    for kind in (torch.float32, torch.bfloat16):
        with pytest.raises(ValueError, match=r"pattern.*3, 7, 37"):
            AttentionCache().push(torch.ones((3, 7, 37), dtype=kind))


# Borrowing and copying


def test_a_read_only_contiguous_source_is_borrowed(dtype: str) -> None:
    pattern = read_only(make("soft", SHAPE, dtype))
    for copy in (None, False):
        assert address(stored(pattern, copy=copy)) == address(pattern)
        assert address(stored(pattern, dtype, copy=copy)) == address(pattern)
    assert address(stored(pattern, copy=True)) != address(pattern)


def test_read_only_bytes_are_borrowed() -> None:
    raw = make("soft", SHAPE).tobytes()
    pattern = np.frombuffer(raw, np.float32).reshape(SHAPE)
    assert address(stored(pattern)) == address(pattern)
    assert address(stored(memoryview(raw).cast("f", SHAPE))) == address(pattern)


def test_a_writable_source_is_copied_unless_borrowing_is_asked_for(dtype: str) -> None:
    pattern = make("soft", SHAPE, dtype)
    assert address(stored(pattern)) != address(pattern)
    assert address(stored(pattern, copy=True)) != address(pattern)
    cache = AttentionCache()
    cache.push(pattern, copy=False)
    assert address(cache[0]) == address(pattern)
    assert not cache[0].flags.writeable
    assert pattern.flags.writeable, "borrowing must not change the source"


def test_a_borrowed_writable_source_shows_its_changes() -> None:
    pattern = make("soft", SHAPE)
    cache = AttentionCache()
    cache.push(pattern, copy=False)
    assert_same(cache.head_mean(0), meaning("head_mean", [pattern], 0))
    pattern[...] = 0.25
    assert_same(cache[0], pattern)


def test_dlpack_only_sources_are_copied_unless_borrowing_is_asked_for() -> None:
    pattern = make("soft", SHAPE)
    assert address(stored(DLPackOnly(pattern))) != address(pattern)
    assert address(stored(DLPackOnly(pattern), copy=False)) == address(pattern)


@pytest.mark.parametrize("layout", strided(make("soft", SHAPE)))
def test_borrowing_a_strided_source_is_refused(layout: str) -> None:
    pattern = strided(make("soft", SHAPE))[layout]
    for source in (pattern, read_only(pattern.view())):
        cache = AttentionCache()
        with pytest.raises(ValueError, match="copy=False"):
            cache.push(source, copy=False)
        assert cache.is_empty
    assert address(stored(read_only(pattern))) != address(pattern)


def test_borrowing_another_dtype_is_refused(dtype: str) -> None:
    for source in DTYPES:
        pattern = read_only(make("soft", SHAPE, source))
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
    assert address(stored(sliced, copy=False)) == address(sliced)


@pytest.mark.parametrize("copy", ["yes", 1.0, "None"], ids=repr)
def test_copy_of_the_wrong_kind_is_a_type_error(copy: Any) -> None:
    cache = AttentionCache()
    with pytest.raises(TypeError, match="copy"):
        cache.push(make("soft", SHAPE), copy=copy)
    assert cache.is_empty


def test_owned_layers_start_at_64_bytes(dtype: str) -> None:
    for size in (1, 3, 17, 129, 4099):
        cache = cache_of([make("soft", (1, 2, 1, size), dtype) for _ in range(5)])
        assert [address(view) % 64 for view in cache] == [0] * 5


# Conversions


def every_float16() -> Array:
    return np.arange(65536, dtype=np.uint16).view(np.float16)


def every_bfloat16() -> Array:
    return np.arange(65536, dtype=np.uint16).view(ml_dtypes.bfloat16)


def hard_float32() -> Array:
    """Every float16 value, its float32 neighbours, the midpoints and theirs, and every binade: both signs."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    above = np.append(halves[1:], np.float32(65536))
    middles = ((halves.astype(np.float64) + above) / 2).astype(np.float32)
    exact = np.concatenate([halves, middles])
    near = np.concatenate([exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(0))])
    exponents = np.arange(256, dtype=np.uint32) << 23
    mantissas = rng("binades").integers(0, 1 << 23, 64, dtype=np.uint32)
    edges = np.array([0, 1, 2, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x3000, 0x7FFFFF, 0x7FE000, 0x7FF000], np.uint32)
    binades = (exponents[:, None] | np.concatenate([mantissas, edges])).ravel().view(np.float32)
    values = np.concatenate([near, binades])
    return np.concatenate([values, -values])


def test_every_float16_value_is_widened_exactly_by_every_query(simd_level: str) -> None:
    pattern = every_float16().reshape(1, 1, 256, 256)
    cache = cache_of([pattern])
    assert_same(cache[0], pattern)
    with np.errstate(invalid="ignore"):  # NumPy warns of signalling NaNs: in the sum, and on Arm already in the cast
        widened = pattern[0, 0].astype(np.float32)
        mean = widened + np.float32(0)
    assert_same(cache.rows(0, heads=0), widened)
    assert_same(cache.columns(0, heads=0), np.ascontiguousarray(widened.T))
    assert_same(cache.edges(None, None, layers=0, heads=0), widened)
    assert_same(tuple(cache.top_k(256, layers=0, heads=0)), meaning("top_k", [pattern], 256, layers=0, heads=0))
    assert_same(cache.head_mean(0), mean)
    for position in range(256):
        assert_same(cache.attention_from_position(0, position), mean[position])
        assert_same(cache.attention_to_position(0, position), np.ascontiguousarray(mean[:, position]))


def test_every_bfloat16_value_is_widened_exactly_by_every_query(simd_level: str) -> None:
    pattern = every_bfloat16().reshape(1, 1, 256, 256)
    cache = cache_of([pattern])
    widened = (np.arange(65536, dtype=np.uint32) << 16).view(np.float32).reshape(256, 256)
    assert_same(cache.rows(0, heads=0), widened)
    assert_same(cache.columns(0, heads=0), np.ascontiguousarray(widened.T))
    assert_same(cache.edges(None, None, layers=0, heads=0), widened)
    with np.errstate(invalid="ignore"):
        mean = widened + np.float32(0)
    assert_same(cache.head_mean(0), mean)
    assert_same(tuple(cache.top_k(256, layers=0, heads=0)), meaning("top_k", [pattern], 256, layers=0, heads=0))


@pytest.mark.parametrize("size", [*range(1, 18), 31, 32, 33, 65])
def test_widening_is_exact_in_every_tail(size: int, simd_level: str) -> None:
    for values in (every_float16(), every_bfloat16()):
        pattern = values[rng("tail", size).integers(0, 65536, 64 * size)].reshape(1, 1, 64, size)
        with np.errstate(invalid="ignore"):
            assert_same(cache_of([pattern]).rows(0, heads=0), pattern[0, 0].astype(np.float32))


def test_float32_is_narrowed_to_float16_as_numpy_does(simd_level: str) -> None:
    values = hard_float32()
    pattern = values[: len(values) // 8 * 8].reshape(1, 1, 8, -1)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        assert_same(stored(pattern, "float16"), pattern.astype(np.float16))


def test_float32_is_narrowed_to_bfloat16_as_ml_dtypes_does(simd_level: str) -> None:
    tops = np.arange(65536, dtype=np.uint32) << 16
    bits = np.concatenate([tops | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    pattern = np.concatenate([bits.view(np.float32), hard_float32()[:4096]]).reshape(1, 2, 4, -1)
    with np.errstate(over="ignore", invalid="ignore"):
        assert_same(stored(pattern, "bfloat16"), pattern.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("target", ["float16", "bfloat16"])
def test_nan_stays_nan_when_its_payload_is_cut_off(target: str, simd_level: str) -> None:
    bits = np.array([0x7F800001, 0xFF800001, 0x7F801FFF, 0x7F80FFFF, 0x7FBFFFFF, 0x7FC00000, 0xFFFFFFFF], np.uint32)
    for size in SIZES:
        pattern = np.resize(bits, size).view(np.float32).reshape(1, 1, 1, size)
        assert np.isnan(stored(pattern, target)).all()
    doubles = np.array([0x7FF0000000000001, 0xFFF0000000000001, 0x7FF00000FFFFFFFF], np.uint64).view(np.float64)
    assert np.isnan(stored(doubles.reshape(1, 1, 1, 3), target)).all()
    assert np.isnan(stored(doubles.reshape(1, 1, 1, 3))).all()


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", [*DTYPES, "float64"])
def test_every_conversion_is_right_in_every_tail(source: str, target: str, simd_level: str) -> None:
    for size in SIZES:
        for kind in KINDS:
            if source == "float64":
                pattern = make(kind, (1, 2, 3, size)).astype(np.float64)
            else:
                pattern = make(kind, (1, 2, 3, size), source)
            with np.errstate(all="ignore"):
                expected = pattern.astype(np.float32).astype(DTYPES[target])  # exact here: each value is a float32
            assert_same(stored(pattern, target), expected, f"{kind} {size}")


def test_float64_is_stored_as_float32(simd_level: str) -> None:
    pattern = rng("doubles").normal(size=(1, 2, 33, 67)) * 10.0 ** rng("scales").integers(-50, 50, (1, 2, 33, 67))
    with np.errstate(over="ignore", under="ignore"):
        expected = pattern.astype(np.float32)
        assert np.isinf(expected).any()
        assert (expected == 0).any()
    assert_same(stored(pattern), expected)
    assert_same(stored(pattern, "float32"), expected)


def test_float64_is_rounded_to_float16_once(simd_level: str) -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    middles = (halves + np.append(halves[1:], 65536.0)) / 2
    values = np.concatenate([halves, middles, middles * (1 + 2.0**-40), middles * (1 - 2.0**-40), middles * 2.0**-30])
    pattern = np.concatenate([values, -values]).reshape(1, 1, 2, -1)
    with np.errstate(over="ignore", under="ignore"):
        once, twice = pattern.astype(np.float16), pattern.astype(np.float32).astype(np.float16)
    assert (once.view(np.uint16) != twice.view(np.uint16)).any(), "the values must tell the two apart"
    assert_same(stored(pattern, "float16"), once)
    for layout, source in strided(np.ascontiguousarray(pattern[..., :4096].reshape(1, 2, 64, 64))).items():
        with np.errstate(over="ignore", under="ignore"):
            assert_same(stored(source, "float16"), np.ascontiguousarray(source.astype(np.float16)), layout)


def test_narrow_dtypes_convert_into_each_other(simd_level: str) -> None:
    half, brain = every_float16().reshape(1, 1, 256, 256), every_bfloat16().reshape(1, 1, 256, 256)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        assert_same(stored(brain, "float16"), brain.astype(np.float32).astype(np.float16))
        assert_same(stored(half, "bfloat16"), half.astype(np.float32).astype(ml_dtypes.bfloat16))


def test_the_same_dtype_keeps_every_bit_even_of_nan(dtype: str) -> None:
    if dtype == "float32":
        bits = np.concatenate([hard_float32().view(np.uint32), np.arange(0x7F800001, 0x7F800101, dtype=np.uint32)])
        pattern = bits[: len(bits) // 4 * 4].view(np.float32).reshape(1, 2, 2, -1)
    else:
        pattern = np.arange(65536, dtype=np.uint16).view(DTYPES[dtype]).reshape(1, 1, 256, 256)
    assert stored(pattern, copy=True).tobytes() == pattern.tobytes()
    assert stored(pattern, dtype).tobytes() == pattern.tobytes()


def test_each_layer_keeps_its_dtype_when_none_is_asked_for() -> None:
    patterns = [make("soft", SHAPE, name) for name in DTYPES]
    cache = cache_of(patterns)
    assert [view.dtype for view in cache] == [pattern.dtype for pattern in patterns]
    assert cache.nbytes == sum(pattern.nbytes for pattern in patterns)


# Refusals


@pytest.mark.parametrize("shape", [(), (4,), (4, 4), (2, 4, 4), (1, 1, 2, 4, 4), (0,), (1,) * 32], ids=str)
def test_a_pattern_of_the_wrong_rank_is_refused_by_name_and_shape(shape: tuple[int, ...], dtype: str) -> None:
    cache = AttentionCache()
    shown = ", ".join(map(str, shape))
    for copy in (None, True, False):
        with pytest.raises(ValueError, match=rf"pattern.*{shown}"):
            cache.push(np.zeros(shape, DTYPES[dtype]), copy=copy)
    assert cache.is_empty


@pytest.mark.parametrize(
    "name", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint64", "bool", "complex64", "complex128"]
)
def test_a_pattern_of_no_float_dtype_is_a_type_error_that_names_it(name: str) -> None:
    cache = AttentionCache()
    for pattern in (np.ones(SHAPE, name), read_only(np.ones(SHAPE, name)), np.ones(SHAPE, name)[..., ::2]):
        with pytest.raises(TypeError, match=name):
            cache.push(pattern)
    assert cache.is_empty


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "int4"])
def test_other_narrow_dtypes_are_a_type_error_that_names_them(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        AttentionCache().push(np.ones(SHAPE, getattr(ml_dtypes, name)))


def test_structured_and_void_dtypes_are_a_type_error() -> None:
    for kind in ("V2", "V4", [("weight", "f4")], "M8[s]"):
        with pytest.raises(TypeError):
            AttentionCache().push(np.zeros(SHAPE, kind))


@pytest.mark.parametrize(
    "wrong", [None, "pattern", 1.0, object(), {}, b"\0" * 16], ids=lambda wrong: type(wrong).__name__
)
def test_what_is_no_array_is_refused(wrong: Any) -> None:
    cache = AttentionCache()
    with pytest.raises((TypeError, ValueError)):
        cache.push(wrong)
    assert cache.is_empty


def test_lists_of_uneven_lengths_and_of_words_are_refused() -> None:
    for wrong in ([[[[0.5], [0.5, 0.5]]]], [[[["a"]]]], [[[[None]]]]):
        cache = AttentionCache()
        with pytest.raises((TypeError, ValueError)):
            cache.push(wrong)
        assert cache.is_empty


def test_a_failed_push_leaves_the_cache_as_it_was() -> None:
    patterns = [make("soft", SHAPE), make("soft", (1, 1, 2, 2), "float16")]
    cache = cache_of(patterns)
    before = [address(view) for view in cache], cache.nbytes, repr(cache)
    wrong: list[tuple[Any, bool | None]] = [
        (np.zeros((3, 3), np.float32), None),
        (np.zeros(SHAPE, np.int32), None),
        (make("soft", SHAPE)[..., ::2], False),
        (OnADevice(10), None),
        ("pattern", None),
    ]
    for pattern, copy in wrong * 20:
        with pytest.raises((TypeError, ValueError)):
            cache.push(pattern, copy=copy)
        assert ([address(view) for view in cache], cache.nbytes, repr(cache)) == before
    assert_same(cache.patterns, tuple(patterns))
    cache.push(patterns[0])
    assert cache.n_layers == 3


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


def test_layers_may_differ_in_shape() -> None:
    patterns = [make("soft", shape) for shape in ((1, 2, 3, 4), (2, 1, 9, 5), (1, 8, 1, 1), (1, 1, 1, 300))]
    assert_same(cache_of(patterns).patterns, tuple(patterns))


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
