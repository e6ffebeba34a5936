"""DeviceArray: what goes out of a device without the host, to whom, and when its memory is freed.

A consumer is played by `attncache.AttentionCache.push` (which takes DLPack and the CUDA array interface) and by reading the
capsules. Tolerance: none. Not covered: torch and CuPy as consumers, which need a device.
"""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, _core
from attncache.cuda import DeviceArray, on_stream
from cuda.placing import put
from cuda.recording import Recorder
from tests.support.patterns import assert_same, make, meaning

PATTERN = make("soft", (2, 3, 5, 7))
KDL_CUDA, KDL_CPU = 2, 1
FLOAT32, INT64 = (2, 32, 1), (0, 64, 1)


def cache_on_device(stream: int | None = None, device: int = 0) -> AttentionCache:
    cache, placed = AttentionCache(), put(PATTERN, device)
    cache.push(placed if stream is None else on_stream(placed, stream))
    return cache


def answer(**options: Any) -> DeviceArray:
    """[batch, head, query, key], the whole pattern."""
    return cache_on_device(**options).rows(0, heads=None, batch=None, device_result=True)


class InterfaceOnly:
    def __init__(self, array: Any) -> None:
        self.__cuda_array_interface__ = array.__cuda_array_interface__
        self.array = array


def test_an_answer_tells_what_it_is(recorder: Recorder) -> None:
    array = answer(device=1)
    assert (array.shape, array.dtype, array.device, array.stream) == ((2, 3, 5, 7), np.float32, "cuda:1", 1)
    assert (array.nbytes, len(array)) == (840, 2)
    assert repr(array) == "DeviceArray([2, 3, 5, 7] float32 on cuda:1)"
    assert array.__dlpack_device__() == (KDL_CUDA, 1)
    with pytest.raises(TypeError, match="without axes"):
        len(cache_on_device().edges(0, 0, layers=0, heads="mean", device_result=True))


def test_an_answer_is_copied_to_numpy_only_when_it_is_asked_for(recorder: Recorder) -> None:
    array = answer()
    for implicit in (np.asarray, np.sum, lambda a: np.zeros(7, np.float32) + a):
        with pytest.raises(TypeError, match=r"ask for its numpy\(\)"):
            implicit(array)
    assert recorder.of("copy_to_host") == []
    first, second = array.numpy(), array.numpy()
    assert_same(first, PATTERN)
    assert first.flags.writeable
    assert not np.shares_memory(first, second)
    out = np.empty(array.shape, np.float32)
    assert array.numpy(out) is out
    assert_same(out, PATTERN)
    for wrong in (out[:1], out.astype(np.float64), out[..., ::-1]):
        with pytest.raises(ValueError, match="out must be a C-contiguous float32 array of shape"):
            array.numpy(wrong)


@pytest.mark.parametrize("max_version", [None, (0, 8), (1, 0), (2, 1)])
def test_a_capsule_describes_the_array(max_version: Any, recorder: Recorder) -> None:
    top = cache_on_device().top_k(2, device_result=True)
    for array, dtype in ((answer(), FLOAT32), (top.weights, FLOAT32), (top.positions, INT64)):
        capsule = array.__dlpack__(stream=1, max_version=max_version)
        assert ("versioned" in repr(capsule)) == (max_version is not None and max_version[0] >= 1)
        _, address, device, found, shape, strides = _core.dlpack_taken(capsule)
        assert (address, device, found, shape) == (array.address, (KDL_CUDA, 0), dtype, array.shape)
        assert strides == tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


@pytest.mark.parametrize("consumer", [lambda array: array, InterfaceOnly], ids=["dlpack", "interface"])
def test_an_answer_can_be_pushed_again(consumer: Any, recorder: Recorder) -> None:
    cache = AttentionCache()
    cache.push(consumer(answer()))
    gc.collect()
    assert_same(cache.rows(heads=None), meaning("rows", [PATTERN], heads=None))
    assert_same(cache.cpu()[0], PATTERN)


def test_an_exported_answer_is_freed_with_its_last_reader(recorder: Recorder) -> None:
    array = answer()
    gc.collect()
    taken = [_core.dlpack_taken(array.__dlpack__(stream=1, max_version=version)) for version in (None, (1, 0))]
    address = array.address
    del array
    for left in (1, 0):
        gc.collect()
        assert recorder.live[address] == 1
        taken.pop()
        assert left == len(taken)
    gc.collect()
    assert recorder.live[address] == 0


def test_a_reader_on_the_same_stream_waits_for_nothing(emulated: Recorder) -> None:
    array = answer(stream=4096)
    emulated.calls.clear()
    array.__dlpack__(stream=4096)
    del array
    assert not {"stream_wait", "synchronize", "synchronize_device"} & set(emulated.names())
    assert emulated.of("free")[-1][1] == 4096


@pytest.mark.parametrize(("asked", "waits"), [(None, 1), (1, 1), (2, 2), (8192, 8192)], ids=str)
def test_a_reader_on_another_stream_has_it_wait_and_the_memory_outlives_its_work(
    asked: Any, waits: int, emulated: Recorder
) -> None:
    array = answer(stream=4096)
    gc.collect()
    emulated.calls.clear()
    capsule = array.__dlpack__(stream=asked)
    assert emulated.of("stream_wait") == [(waits, 4096)]
    assert "synchronize" not in emulated.names()
    del array, capsule
    gc.collect()
    assert emulated.names()[-2:] == ["synchronize_device", "free"]


def test_a_reader_that_waits_by_other_means_is_believed(emulated: Recorder) -> None:
    array = answer(stream=4096)
    gc.collect()
    emulated.calls.clear()
    array.__dlpack__(stream=-1)
    assert emulated.of("stream_wait") == []
    del array
    assert emulated.names()[-2:] == ["synchronize_device", "free"]


def test_memory_that_was_shown_is_freed_after_whatever_may_read_it(emulated: Recorder) -> None:
    array = answer(stream=4096)
    gc.collect()
    assert array.__cuda_array_interface__["stream"] == 4096
    del array
    assert emulated.names()[-2:] == ["synchronize_device", "free"]


def test_what_a_capsule_cannot_do_is_refused(recorder: Recorder) -> None:
    array = answer()
    for wrong, words in ((0, "got 0, which is ambiguous"), (-5, "got -5")):
        with pytest.raises(ValueError, match=f"stream must be -1, 1 for .* or a handle; {words}"):
            array.__dlpack__(stream=wrong)
    for kind in (True, 1.9, "2"):
        with pytest.raises(TypeError, match=f"stream must be an int or None, got {type(kind).__name__}"):
            array.__dlpack__(stream=kind)  # type: ignore[arg-type]
    with pytest.raises(BufferError, match="copy must be None or False"):
        array.__dlpack__(copy=True)
    with pytest.raises(BufferError, match=r"dl_device must be \(2, 0\), got \(1, 0\)"):
        array.__dlpack__(dl_device=(KDL_CPU, 0))
    array.__dlpack__(copy=False, dl_device=(KDL_CUDA, 0), max_version=(1, 0))


def test_an_empty_answer_takes_no_memory(recorder: Recorder) -> None:
    cache = cache_on_device()
    recorder.calls.clear()
    for array in (cache.rows(0, [], device_result=True), *cache.top_k(0, device_result=True)):
        assert (array.nbytes, array.address) == (0, 0)
        assert array.numpy().shape == array.shape
        _, address, *_, shape, _ = _core.dlpack_taken(array.__dlpack__())
        assert (address, shape) == (0, array.shape)
    assert not {"allocate", "free", "rows", "top_k"} & set(recorder.names())


def test_a_failure_of_freeing_is_silent(recorder: Recorder) -> None:
    for status in (700, 2):
        array = answer()
        gc.collect()
        recorder.failing = {"free": status}
        address = array.address
        del array
        assert recorder.names()[-1] == "free"
        assert recorder.live.pop(address) == 1
        recorder.failing.clear()


def test_memory_is_freed_though_nobody_can_be_waited_for(recorder: Recorder) -> None:
    for status in (900, 2):  # 900: somebody is capturing a graph
        array = answer()
        array.__dlpack__(stream=-1)
        address = array.address
        recorder.failing = {"synchronize_device": status}
        del array
        gc.collect()
        assert recorder.live[address] == 0
        recorder.failing.clear()


@pytest.mark.parametrize("name", ["allocate", "rows", "top_k"])
def test_a_query_that_fails_leaves_nothing_behind(name: str, recorder: Recorder) -> None:
    cache = cache_on_device()
    live = +recorder.live
    recorder.failing = {name: 700}
    with pytest.raises(RuntimeError, match="status 700"):
        cache.top_k(3, device_result=True)
    gc.collect()
    assert +recorder.live == live
