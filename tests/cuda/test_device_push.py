"""What `push` takes from a device: protocols, dtypes, strides, streams, errors, and how the memory is given back.

Arrays are those of tests/cuda/placing.py, memory of the library under test behind DLPack of both ages and the CUDA array
interface. Tolerance: none. Not covered: real torch tensors and CuPy arrays, which need a device (see docs/cuda.md).
"""

from __future__ import annotations

import ctypes
import gc
import weakref
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, _core
from attncache.cuda import library, on_stream
from cuda.placing import WAYS, Placed, ThroughDLPack, ThroughInterface, major_in, put, struct_in
from cuda.recording import Recorder
from tests.support.patterns import DTYPES, Array, assert_same, make, meaning, strided

SHAPE = (2, 3, 5, 7)
OUT_OF_MEMORY = 2


def pushed(array: Any, **options: Any) -> AttentionCache:
    cache = AttentionCache(**options)
    cache.push(array)
    return cache


# the CUDA array interface has no bfloat16
WAYS_OF_DTYPES = [(way, dtype) for way in WAYS for dtype in DTYPES if (way, dtype) != ("interface", "bfloat16")]


@pytest.mark.parametrize(("way", "dtype"), WAYS_OF_DTYPES)
def test_every_protocol_brings_the_layer_and_gives_it_back_once(way: str, dtype: str, recorder: Recorder) -> None:
    pattern = make("extremes", SHAPE, dtype)
    placed = WAYS[way](pattern)
    cache = pushed(placed)
    assert_same(cache.rows(heads=None, batch=None), meaning("rows", [pattern], heads=None, batch=None))
    assert (cache.dtypes, cache.devices) == ((dtype,), ("cuda:0",))
    memory = placed.memory
    if way != "interface":
        assert placed.released == 0
        cache.clear()
        assert placed.released == 1
    del placed, cache
    gc.collect()
    assert recorder.live[memory.address] == 1
    del memory
    gc.collect()
    assert +recorder.live == {}


@pytest.mark.parametrize("way", WAYS)
def test_strides_are_taken_as_they_are(way: str, recorder: Recorder) -> None:
    pattern = make("soft", SHAPE, "float16")
    for layout, view in strided(pattern).items():
        if view.strides[3] == view.itemsize:
            cache = pushed(WAYS[way](view))
            assert_same(cache.rows(heads=None), meaning("rows", [pattern], heads=None), layout)
            assert_same(cache.cpu()[0], pattern, layout)
        else:
            with pytest.raises(ValueError, match=r"contiguous along its last axis.*pattern\.contiguous\(\)"):
                pushed(WAYS[way](view))


def test_a_slice_of_a_larger_array_begins_where_it_begins(recorder: Recorder) -> None:
    whole = make("soft", (3, 4, 6, 16), "float32")
    view = whole[1:, 1:, 2:5, 4:9]
    assert_same(pushed(put(view)).rows(heads=None), meaning("rows", [view], heads=None))


@pytest.mark.parametrize("is_versioned", [True, False])
def test_strides_that_are_left_out_mean_c_contiguous(is_versioned: bool, recorder: Recorder) -> None:
    pattern = make("soft", SHAPE)

    class Plain(ThroughDLPack):
        def __dlpack__(self, **_: Any) -> Any:
            return _core.dlpack_given(self, self.address, (2, 0), (2, 32), self.shape, is_versioned)

    class WithoutStrides(ThroughInterface):
        changes = {"strides": None}  # noqa: RUF012

    for placed in (Plain(pattern), WithoutStrides(pattern)):
        assert_same(pushed(placed).rows(heads=None), meaning("rows", [pattern], heads=None))


def test_the_owner_lives_as_long_as_the_layer_and_no_longer(recorder: Recorder) -> None:
    placed = put(make("soft", SHAPE))
    cache, other = pushed(placed), AttentionCache()
    other._put_layer(0, cache, 0)
    cache.clear()
    assert placed.released == 0
    answer = other.rows(device_result=True)
    del other, cache
    gc.collect()
    assert placed.released == 1
    assert answer.numpy().shape == (1, 5, 7)


def test_the_maker_is_asked_while_its_device_is_the_current_one(recorder: Recorder) -> None:
    current = []

    class Asked(ThroughDLPack):
        def capsule(self, is_versioned: bool) -> Any:
            current.append(library.load().number("get_device"))
            return super().capsule(is_versioned)

    pattern = make("soft", SHAPE)
    for number in (1, 0):
        assert_same(pushed(Asked(pattern, number)).rows(), meaning("rows", [pattern]))
    assert current == [1, 0]
    assert library.load().number("get_device") == 0


def test_a_capsule_that_nobody_takes_lets_go_of_its_array(recorder: Recorder) -> None:
    placed = put(make("soft", SHAPE))
    for is_versioned in (True, False):
        capsule = placed.capsule(is_versioned)
        del capsule
    assert placed.released == 2


def test_a_capsule_is_taken_once(recorder: Recorder) -> None:
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


def test_a_later_major_version_is_refused_and_given_back(recorder: Recorder) -> None:
    class Later(ThroughDLPack):
        def capsule(self, is_versioned: bool) -> Any:
            capsule = super().capsule(is_versioned)
            major_in(capsule).value = 2
            return capsule

    placed = Later(make("soft", SHAPE))
    with pytest.raises(ValueError, match="must come as DLPack 1, got version 2"):
        pushed(placed)
    assert placed.released == 1


# Streams


def streams_of(recorder: Recorder, name: str) -> set[int]:
    """The last argument of the calls of one function."""
    return {arguments[-1] for arguments in recorder.of(name)}


def test_a_layer_is_answered_on_the_legacy_default_stream(recorder: Recorder) -> None:
    placed = put(make("soft", SHAPE))
    cache = pushed(placed)
    assert placed.streams == [1]
    cache.rows()
    assert streams_of(recorder, "rows") == {1}


class TorchStream:
    cuda_stream = 4096


class CupyStream:
    ptr = 4096


class AnyStream:
    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, 4096


@pytest.mark.parametrize("stream", [4096, TorchStream(), CupyStream(), AnyStream()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("way", WAYS)
def test_a_layer_is_answered_on_the_stream_that_was_asked_for(way: str, stream: Any, emulated: Recorder) -> None:
    placed = WAYS[way](make("soft", SHAPE))
    cache = pushed(on_stream(placed, stream))
    assert placed.streams == ([] if way == "interface" else [4096])
    cache.rows()
    answer = cache.top_k(2, device_result=True)
    assert answer.positions.stream == answer.weights.stream == 4096
    for name in ("rows", "top_k", "copy_to_host"):
        assert streams_of(emulated, name) == {4096}


def test_an_array_that_names_its_stream_is_answered_there(emulated: Recorder) -> None:
    class OnItsOwn(ThroughInterface):
        changes = {"stream": 8192}  # noqa: RUF012

    pushed(OnItsOwn(make("soft", SHAPE))).rows()
    assert streams_of(emulated, "rows") == {8192}
    assert emulated.of("stream_wait") == []
    pushed(on_stream(OnItsOwn(make("soft", SHAPE)), 4096)).rows()
    assert emulated.of("stream_wait") == [(4096, 8192)]
    assert streams_of(emulated, "rows") == {8192, 4096}


def test_layers_on_different_streams_wait_for_each_other(emulated: Recorder) -> None:
    cache = AttentionCache()
    for stream in (4096, 8192, 4096):
        cache.push(on_stream(put(make("soft", SHAPE)), stream))
    emulated.calls.clear()
    cache.rows()
    assert [call for call in emulated.calls if call[0] in {"stream_wait", "rows"}][0::2] == [
        ("stream_wait", (4096, 8192)),
        ("stream_wait", (8192, 4096)),
    ]
    assert streams_of(emulated, "rows") == {4096}


def test_layers_on_different_streams_wait_for_an_answer_on_the_device_too(emulated: Recorder) -> None:
    cache = AttentionCache()
    for stream in (4096, 8192):
        cache.push(on_stream(put(make("soft", SHAPE)), stream))
    emulated.calls.clear()
    answer = cache.rows(device_result=True)
    assert emulated.of("stream_wait") == [(4096, 8192), (8192, 4096)]
    del answer


def test_copies_to_the_cpu_are_in_the_order_of_the_layers_stream(emulated: Recorder) -> None:
    cache = pushed(on_stream(put(make("soft", SHAPE)), 4096))
    cache.cpu()
    assert streams_of(emulated, "copy_to_host") == {4096}


def test_a_stream_lives_as_long_as_its_layer(emulated: Recorder) -> None:
    stream = AnyStream()
    alive = weakref.ref(stream)
    cache = pushed(on_stream(put(make("soft", SHAPE)), stream))
    del stream
    gc.collect()
    assert alive() is not None
    cache.clear()
    gc.collect()
    assert alive() is None


def test_an_array_on_the_stream_of_its_thread_is_answered_on_the_stream_of_all(emulated: Recorder) -> None:
    pushed(changed("stream", 2)).rows()
    assert emulated.of("stream_wait") == [(1, 2)]
    assert streams_of(emulated, "rows") == {1}
    with pytest.raises(ValueError, match="one stream for all threads, got 2"):
        on_stream(np.zeros(SHAPE), 2)


@pytest.mark.parametrize("stream", [0, -1, 1.5, "1"], ids=str)
def test_an_array_that_names_no_stream_is_refused(stream: Any, recorder: Recorder) -> None:
    with pytest.raises(ValueError, match="must name its stream by 1, 2 or a handle, got"):
        pushed(changed("stream", stream))


@pytest.mark.parametrize("wrong", [True, 1.5, "1", None, object()], ids=lambda wrong: type(wrong).__name__)
def test_what_is_no_stream_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="stream must be a CUDA stream or its handle"):
        on_stream(np.zeros(SHAPE), wrong)
    with pytest.raises(ValueError, match="got -1"):
        on_stream(np.zeros(SHAPE), -1)


def test_memory_is_given_back_after_the_work_that_reads_it(recorder: Recorder) -> None:
    placed = put(make("soft", SHAPE))
    cache = pushed(placed)
    cache.rows()
    cache.clear()
    assert recorder.of("synchronize") == []
    cache.push(placed)
    answer = cache.rows(device_result=True)
    assert (recorder.of("synchronize"), placed.released) == ([], 1)
    cache.clear()
    assert (recorder.of("synchronize"), placed.released) == ([(1,)], 2)
    del answer


def test_the_work_that_is_waited_for_is_that_of_the_layers_device(recorder: Recorder) -> None:
    cache = pushed(put(make("soft", SHAPE), 1))
    answer = cache.rows(device_result=True)
    recorder.calls.clear()
    cache.clear()
    gc.collect()
    begin = recorder.names().index("synchronize")
    assert [call for call in recorder.calls[:begin] if call[0] == "set_device"] == [("set_device", (1,))]
    del answer


# Errors


def changed(key: str, value: Any) -> Placed:
    """A pattern behind an interface that says something else of one thing."""

    class Changed(ThroughInterface):
        changes = {key: value}  # noqa: RUF012

    return Changed(make("soft", SHAPE))


class OnHost(ThroughDLPack):
    def capsule(self, is_versioned: bool) -> Any:
        return _core.dlpack_given(self, self.address, (1, 0), (2, 32), self.shape, is_versioned)


class NoCapsule(ThroughDLPack):
    def __dlpack__(self, **_: Any) -> Any:
        return "no capsule"


class Refusing(ThroughDLPack):
    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("conjugated")


class Expanded(ThroughInterface):
    changes = {"shape": (2**31, 2**31, 5, 7), "strides": (0, 0, 28, 4)}  # noqa: RUF012


class OfNoAxes(ThroughDLPack):
    def capsule(self, is_versioned: bool) -> Any:
        capsule = super().capsule(is_versioned)
        ctypes.c_int32.from_address(struct_in(capsule, is_versioned) + 32 * is_versioned + 16).value = -1
        return capsule


class NeedsGrad(ThroughDLPack):
    requires_grad = True

    def detach(self) -> ThroughDLPack:
        detached = object.__new__(ThroughDLPack)
        vars(detached).update(vars(self))
        return detached


def zeros(dtype: Any, shape: tuple[int, ...] = SHAPE) -> Array:
    return np.zeros(shape, dtype)


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "float64": (lambda: put(zeros("f8")), ValueError, "float64; convert it on its device first"),
    "integers": (lambda: put(zeros("i4")), TypeError, "must hold float16, bfloat16 or float32, got int32"),
    "bools": (lambda: put(zeros("?")), TypeError, "got bool"),
    "three axes": (lambda: put(zeros("f4", (2, 3, 4))), ValueError, r"the 4 axes .*got shape \(2, 3, 4\)"),
    "on the host": (lambda: OnHost(zeros("f4")), ValueError, r"must lie on a CUDA device, got DLPack device \(1, 0\)"),
    "told a stream, on the host": (lambda: on_stream(zeros("f4"), 1), ValueError, r"got DLPack device \(1, 0\)"),
    "told a stream, no array": (lambda: on_stream([1.0], 1), TypeError, "must be an array on a CUDA device, got list"),
    "no capsule": (lambda: NoCapsule(zeros("f4")), ValueError, "must return a DLPack capsule"),
    "refusing": (lambda: Refusing(zeros("f4")), ValueError, "can be shared: conjugated"),
    "masked": (lambda: changed("mask", object()), ValueError, "must have no mask"),
    "other byte order": (lambda: changed("typestr", ">f4"), TypeError, "byte order"),
    "text": (lambda: changed("typestr", "<U1"), TypeError, "must hold numbers"),
    "misaligned": (lambda: changed("strides", (422, 140, 28, 4)), ValueError, r"aligned to its items.*\(422, 140,"),
    "nowhere": (lambda: changed("data", (0, True)), ValueError, r"got address 0 for an array of shape \(2, 3, 5, 7\)"),
    "as large as nothing": (
        lambda: Expanded(zeros("f4")),
        ValueError,
        r"a size that memory can have, got shape \(2147483648, ",
    ),
    "axes less than none": (
        lambda: OfNoAxes(zeros("f4")),
        ValueError,
        "can be shared: the array must have axes, got -1",
    ),
    "keys apart": (lambda: changed("strides", (840, 280, 56, 8)), ValueError, "contiguous along its last axis"),
    "an address of the host": (
        lambda: changed("data", (zeros("f4").ctypes.data, True)),
        ValueError,
        "an address of the host",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_layer_is_named_and_given_back(case: str, recorder: Recorder) -> None:
    make_array, error, message = REFUSED[case]
    cache = pushed(put(make("soft", SHAPE)))
    placed = make_array()
    with pytest.raises(error, match=message):
        cache.push(placed)
    assert cache.n_layers == 1
    gc.collect()
    took = [way for way in ("float64", "integers", "bools", "three axes", "axes less than none") if way == case]
    assert getattr(placed, "released", 0) == len(took)


def test_a_tensor_that_requires_grad_is_borrowed_without_it(recorder: Recorder) -> None:
    pattern = make("soft", SHAPE)
    assert_same(pushed(NeedsGrad(pattern)).rows(heads=None), meaning("rows", [pattern], heads=None))


def test_a_stride_along_an_axis_of_one_item_may_be_anything(recorder: Recorder) -> None:
    class Odd(ThroughInterface):
        changes = {"strides": (421, 140, 28, 4)}  # noqa: RUF012

    pattern = make("soft", (1, 3, 5, 7))
    assert_same(pushed(Odd(pattern)).rows(heads=None), meaning("rows", [pattern], heads=None))


def test_a_device_that_does_not_answer_is_an_error(recorder: Recorder) -> None:
    placed = ThroughInterface(make("soft", SHAPE))
    recorder.failing = {"device_of": 700}
    with pytest.raises(RuntimeError, match="status 700"):
        pushed(placed)


def test_a_cache_of_another_dtype_converts_nothing_on_a_device(recorder: Recorder) -> None:
    for name in DTYPES:
        for dtype in DTYPES:
            placed = put(make("soft", SHAPE, name))
            if name == dtype:
                pushed(placed, dtype=dtype)
                continue
            with pytest.raises(ValueError, match=f"must hold {dtype} as the cache says, got {name}"):
                pushed(placed, dtype=dtype)


def test_a_layer_on_a_device_is_borrowed_and_never_copied(recorder: Recorder) -> None:
    placed, cache = put(make("soft", SHAPE)), AttentionCache()
    cache.push(placed, copy=False)
    with pytest.raises(ValueError, match="copy must be None or False for an array on a device"):
        cache.push(placed, copy=True)
    with pytest.raises(TypeError, match="copy"):
        cache.push(placed, copy=1)  # type: ignore[arg-type]
    assert cache.n_layers == 1


def test_a_cache_on_disk_takes_nothing_from_a_device(recorder: Recorder, tmp_path: Any) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        for push in (lambda: cache.push(put(zeros("f4"))), lambda: cache.push_qk(put(zeros("f4")), put(zeros("f4")))):
            with pytest.raises(ValueError, match="must lie in CPU memory"):
                push()
        assert cache.is_empty


def test_managed_memory_is_taken_as_well(recorder: Recorder) -> None:
    class Managed(ThroughDLPack):
        kind = 13

    pattern = make("soft", SHAPE)
    assert_same(pushed(Managed(pattern)).rows(), meaning("rows", [pattern]))


@pytest.mark.parametrize("name", ["rows", "columns", "edges", "top_k", "copy_to_host", "allocate"])
def test_a_failure_on_the_device_is_an_error_and_leaves_the_cache_alone(name: str, recorder: Recorder) -> None:
    pattern = make("soft", SHAPE)
    cache = pushed(put(pattern))
    ask = {
        "columns": cache.columns,
        "edges": lambda: cache.edges(0, 0),
        "top_k": lambda: cache.top_k(2),
    }.get(name, cache.rows)
    for status, error in ((OUT_OF_MEMORY, MemoryError), (-2, ValueError), (-1, RuntimeError), (700, RuntimeError)):
        recorder.failing = {name: status}
        with pytest.raises(error, match=rf"attncache_cuda_{name}: .+ \(status {status}\)"):
            ask()
    recorder.failing = {}
    assert_same(cache.rows(), meaning("rows", [pattern]))


def test_a_result_too_large_for_any_device_is_a_memory_error(recorder: Recorder) -> None:
    cache, many = pushed(put(make("soft", (1, 1, 2, 3)))), [0] * 2**15
    with pytest.raises((MemoryError, ValueError)):
        cache.rows(many, many, heads=many, batch=many)
    with pytest.raises((MemoryError, ValueError)):
        cache.rows(many, many, heads=many, batch=many, device_result=True)
