"""What `push` takes from a device: protocols, dtypes, strides, errors, and how the memory is given back.

Arrays are those of tests/cuda/placing.py, memory of the library under test behind DLPack of both ages and the CUDA array
interface. Tolerance: none. Not covered: streams (test_device_streams.py), real torch tensors and CuPy arrays, which need a
device (see docs/cuda.md).
"""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.cuda import on_stream
from cuda.placing import WAYS, ThroughDLPack, ThroughInterface, changed, number, put
from tests.support.patterns import DTYPES, Array, assert_same, make, meaning, strided

pytestmark = pytest.mark.usefixtures("on_device")
SHAPE = (2, 3, 5, 7)


def pushed(array: Any, **options: Any) -> AttentionCache:
    cache = AttentionCache(**options)
    cache.push(array)
    return cache


# the CUDA array interface has no bfloat16
WAYS_OF_DTYPES = [(way, dtype) for way in WAYS for dtype in DTYPES if (way, dtype) != ("interface", "bfloat16")]


@pytest.mark.parametrize(("way", "dtype"), WAYS_OF_DTYPES)
def test_every_protocol_brings_the_layer_and_gives_it_back_once(way: str, dtype: str) -> None:
    pattern = make("extremes", SHAPE, dtype)
    placed = WAYS[way](pattern)
    cache = pushed(placed)
    assert_same(cache.rows(heads=None, batch=None), meaning("rows", [pattern], heads=None, batch=None))
    assert (cache.dtypes, cache.devices) == ((dtype,), ("cuda:0",))
    if way != "interface":
        assert placed.released == 0
        cache.clear()
        assert placed.released == 1


@pytest.mark.parametrize("way", WAYS)
def test_strides_are_taken_as_they_are(way: str) -> None:
    pattern = make("soft", SHAPE, "float16")
    for layout, view in strided(pattern).items():
        if view.strides[3] == view.itemsize:
            cache = pushed(WAYS[way](view))
            assert_same(cache.rows(heads=None), meaning("rows", [pattern], heads=None), layout)
            assert_same(cache.cpu()[0], pattern, layout)
        else:
            with pytest.raises(ValueError, match=r"contiguous along its last axis.*pattern\.contiguous\(\)"):
                pushed(WAYS[way](view))


def test_a_slice_of_a_larger_array_begins_where_it_begins() -> None:
    whole = make("soft", (3, 4, 6, 16), "float32")
    view = whole[1:, 1:, 2:5, 4:9]
    assert_same(pushed(put(view)).rows(heads=None), meaning("rows", [view], heads=None))
    pattern = make("soft", SHAPE)
    ahead = changed(ThroughDLPack, pattern, byte_offset=4)
    ahead.address -= 4
    assert_same(pushed(ahead).rows(heads=None), meaning("rows", [pattern], heads=None))


@pytest.mark.parametrize("way", [ThroughDLPack, ThroughInterface])
def test_strides_that_are_left_out_mean_c_contiguous(way: Any) -> None:
    pattern = make("soft", SHAPE)
    assert_same(pushed(changed(way, pattern, strides=None)).rows(heads=None), meaning("rows", [pattern], heads=None))


def test_a_stride_along_an_axis_of_one_item_may_be_anything() -> None:
    pattern = make("soft", (1, 3, 5, 7))
    odd = changed(ThroughInterface, pattern, strides=(421, 140, 28, 4))
    assert_same(pushed(odd).rows(heads=None), meaning("rows", [pattern], heads=None))


def test_the_owner_lives_as_long_as_the_layer_and_no_longer() -> None:
    placed = put(make("soft", SHAPE))
    cache = pushed(placed)
    other = cache.part(layers=[0])
    cache.clear()
    assert placed.released == 0
    assert_same(other.rows(), meaning("rows", [make("soft", SHAPE)]))
    del other, cache
    gc.collect()
    assert placed.released == 1


def test_the_maker_is_asked_while_its_device_is_the_current_one() -> None:
    current = []

    class Asked(ThroughDLPack):
        def capsule(self, is_versioned: bool) -> Any:
            current.append(number("get_device"))
            return super().capsule(is_versioned)

    pattern = make("soft", SHAPE)
    for device in (1, 0):
        assert_same(pushed(Asked(pattern, device)).rows(), meaning("rows", [pattern]))
    assert current == [1, 0]
    assert number("get_device") == 0


def test_a_capsule_is_taken_once() -> None:
    placed = put(make("soft", SHAPE))
    capsule = placed.capsule(True)

    class Again(ThroughDLPack):
        def __dlpack__(self, **_: Any) -> Any:
            return capsule

    cache = pushed(Again(np.zeros(SHAPE, np.float32)))
    with pytest.raises(ValueError, match="a DLPack capsule that nobody has used"):
        pushed(Again(np.zeros(SHAPE, np.float32)))
    cache.clear()
    assert placed.released == 1


def test_managed_memory_is_taken_as_well() -> None:
    class Managed(ThroughDLPack):
        kind = 13

    pattern = make("soft", SHAPE)
    assert_same(pushed(Managed(pattern)).rows(), meaning("rows", [pattern]))


def test_a_tensor_that_requires_grad_is_borrowed_without_it() -> None:
    class NeedsGrad(ThroughDLPack):
        requires_grad = True

        def detach(self) -> ThroughDLPack:
            detached = object.__new__(ThroughDLPack)
            vars(detached).update(vars(self))
            return detached

    pattern = make("soft", SHAPE)
    assert_same(pushed(NeedsGrad(pattern)).rows(heads=None), meaning("rows", [pattern], heads=None))


class NoCapsule(ThroughDLPack):
    def __dlpack__(self, **_: Any) -> Any:
        return "no capsule"


class Refusing(ThroughDLPack):
    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("conjugated")


class MovedToHost(ThroughDLPack):
    def capsule(self, is_versioned: bool) -> Any:
        self.kind = 1
        return super().capsule(is_versioned)


def zeros(dtype: Any, shape: tuple[int, ...] = SHAPE) -> Array:
    return np.zeros(shape, dtype)


def says(way: Any, **changes: Any) -> Any:
    """Makes an array that says something else of itself."""
    return lambda: changed(way, make("soft", SHAPE), **changes)


EXPANDED = {"shape": (2**31, 2**31, 5, 7), "strides": (0, 0, 28, 4)}
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "float64": (lambda: put(zeros("f8")), ValueError, "float64; convert it on its device first"),
    "integers": (lambda: put(zeros("i4")), TypeError, "must hold float16, bfloat16 or float32, got int32"),
    "bools": (lambda: put(zeros("?")), TypeError, "got bool"),
    "vectors": (says(ThroughDLPack, lanes=4), TypeError, r"items of DLPack type \(2, 32, 4\)"),
    "three axes": (lambda: put(zeros("f4", (2, 3, 4))), ValueError, r"the 4 axes .*got shape \(2, 3, 4\)"),
    "on the host": (
        lambda: MovedToHost(zeros("f4")),
        ValueError,
        r"must lie on a CUDA device, got DLPack device \(1, 0\)",
    ),
    "told a stream, on the host": (lambda: on_stream(zeros("f4"), 1), ValueError, r"got DLPack device \(1, 0\)"),
    "told a stream, no array": (lambda: on_stream([1.0], 1), TypeError, "must be an array on a CUDA device, got list"),
    "no capsule": (lambda: NoCapsule(zeros("f4")), ValueError, "must return a DLPack capsule"),
    "refusing": (lambda: Refusing(zeros("f4")), ValueError, "can be shared: conjugated"),
    "a later version": (says(ThroughDLPack, version=(2, 0)), ValueError, "must come as DLPack 1, got version 2"),
    "axes less than none": (says(ThroughDLPack, ndim=-1), ValueError, "shared: the array must have axes, got -1"),
    "masked": (says(ThroughInterface, mask=object()), ValueError, "must have no mask"),
    "other byte order": (says(ThroughInterface, typestr=">f4"), TypeError, "byte order"),
    "text": (says(ThroughInterface, typestr="<U1"), TypeError, "must hold numbers"),
    "misaligned": (says(ThroughInterface, strides=(422, 140, 28, 4)), ValueError, r"aligned to its items.*\(422, 140,"),
    "nowhere": (says(ThroughInterface, data=(0, True)), ValueError, r"address 0 for an array of shape \(2, 3, 5, 7\)"),
    "too large": (
        says(ThroughInterface, **EXPANDED),
        ValueError,
        r"a size that memory can have, got shape \(2147483648",
    ),
    "keys apart": (says(ThroughInterface, strides=(840, 280, 56, 8)), ValueError, "contiguous along its last axis"),
    "an address of the host": (
        lambda: changed(ThroughInterface, zeros("f4"), data=(zeros("f4").ctypes.data, True)),
        ValueError,
        "an address of the host",
    ),
}
TAKEN = {
    "float64",
    "integers",
    "bools",
    "vectors",
    "three axes",
    "on the host",
    "a later version",
    "axes less than none",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_layer_is_named_and_given_back(case: str) -> None:
    make_array, error, message = REFUSED[case]
    cache = pushed(put(make("soft", SHAPE)))
    placed = make_array()
    with pytest.raises(error, match=message):
        cache.push(placed)
    assert cache.n_layers == 1
    gc.collect()
    assert getattr(placed, "released", 0) == (case in TAKEN)


@pytest.mark.parametrize("stream", [0, -1, 1.5, "1"], ids=str)
def test_an_array_that_names_no_stream_is_refused(stream: Any) -> None:
    with pytest.raises(ValueError, match="must name its stream by 1, 2 or a handle, got"):
        pushed(changed(ThroughInterface, make("soft", SHAPE), stream=stream))


@pytest.mark.parametrize("wrong", [True, 1.5, "1", None, object()], ids=lambda wrong: type(wrong).__name__)
def test_what_is_no_stream_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="stream must be a CUDA stream or its handle"):
        on_stream(np.zeros(SHAPE), wrong)
    for handle, message in ((-1, "got -1"), (2, "one stream for all threads, got 2")):
        with pytest.raises(ValueError, match=message):
            on_stream(np.zeros(SHAPE), handle)


def test_a_cache_of_another_dtype_converts_nothing_on_a_device() -> None:
    for name in DTYPES:
        for dtype in DTYPES:
            placed = put(make("soft", SHAPE, name))
            if name == dtype:
                pushed(placed, dtype=dtype)
                continue
            with pytest.raises(ValueError, match=f"must hold {dtype} as the cache says, got {name}"):
                pushed(placed, dtype=dtype)


def test_a_layer_on_a_device_is_borrowed_and_never_copied() -> None:
    placed, cache = put(make("soft", SHAPE)), AttentionCache()
    cache.push(placed, copy=False)
    with pytest.raises(ValueError, match="copy must be None or False for an array on a device"):
        cache.push(placed, copy=True)
    with pytest.raises(TypeError, match="copy"):
        cache.push(placed, copy=1)  # type: ignore[arg-type]
    assert cache.n_layers == 1


def test_a_cache_on_disk_takes_nothing_from_a_device(tmp_path: Any) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        for push in (lambda: cache.push(put(zeros("f4"))), lambda: cache.push_qk(put(zeros("f4")), put(zeros("f4")))):
            with pytest.raises(ValueError, match="must lie in CPU memory"):
                push()
        assert cache.is_empty


def test_a_result_too_large_for_any_memory_is_an_error() -> None:
    cache, many = pushed(put(make("soft", (1, 1, 2, 3)))), [0] * 2**15
    with pytest.raises((MemoryError, ValueError)):
        cache.rows(many, many, heads=many, batch=many)
