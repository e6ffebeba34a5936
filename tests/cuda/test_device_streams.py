"""On which stream layers are answered, who waits for whom, and what a failure of the device leaves behind.

The emulated runtime records every call and fails those it is told to; streams are made up. Not covered: that a real runtime
orders its streams as its manual says (test_real_device.py).
"""

from __future__ import annotations

import gc
import itertools
import re
import weakref
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.cuda import on_stream
from cuda.launching import Emulated
from cuda.placing import WAYS, ThroughInterface, changed, number, put
from cuda.test_device_out import TAKING
from cuda.test_device_queries import ARGUMENTS, DENSE
from tests.support import factored
from tests.support.patterns import assert_same, make, meaning

SHAPE = (1, 2, 4, 6)
ONE, OTHER, THIRD = 0x1000, 0x2000, 0x3000
TO_HOST = "kind=2"  # of cudaMemcpyKind
OUT_OF_MEMORY, FAILURE = 2, 719


def layer_on(stream: int | None = None, device: int = 0) -> Any:
    placed = put(make("soft", SHAPE), device)
    return placed if stream is None else on_stream(placed, stream)


def cache_of(*arrays: Any) -> AttentionCache:
    cache = AttentionCache()
    for array in arrays:
        cache.push(array)
    return cache


def calls_of(emulated: Emulated, *names: str) -> list[str]:
    """What the runtime was asked for, of those names."""
    return [call for call in emulated.calls() if call.split()[0] in names]


def streams_of(emulated: Emulated, name: str, kind: str = "") -> set[int]:
    """The streams of the calls of one function."""
    found = (re.search(r"stream=(\S+)", call) for call in calls_of(emulated, name) if kind in call)
    return {0 if each[1] == "(nil)" else int(each[1], 16) for each in found if each}


def waited(emulated: Emulated) -> list[str]:
    """Calls that make the host wait."""
    return [call for call in emulated.calls() if "Synchronize" in call or TO_HOST in call]


def waits(emulated: Emulated) -> list[tuple[int, int]]:
    """Which stream was made to wait for which, in order; other events tell when pinned memory is used again."""
    calls = calls_of(emulated, "cudaEventRecord", "cudaStreamWaitEvent")
    return [
        (int(wait.rpartition("=")[2], 16), int(record.rpartition("=")[2], 16))
        for record, wait in itertools.pairwise(calls)
        if record.startswith("cudaEventRecord") and wait.startswith("cudaStreamWaitEvent")
    ]


class TorchStream:
    cuda_stream = ONE


class CupyStream:
    ptr = ONE


class AnyStream:
    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, ONE


# Layers


def test_a_layer_is_answered_on_the_legacy_default_stream(emulated: Emulated) -> None:
    placed = layer_on()
    cache = cache_of(placed)
    assert placed.streams == [1]
    emulated.clear()
    cache.rows()
    assert streams_of(emulated, "cudaLaunchKernel") == streams_of(emulated, "cudaMemcpyAsync") == {1}


@pytest.mark.parametrize("stream", [ONE, TorchStream(), CupyStream(), AnyStream()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("way", WAYS)
def test_a_layer_is_answered_on_the_stream_that_was_asked_for(way: str, stream: Any, emulated: Emulated) -> None:
    placed = WAYS[way](make("soft", SHAPE))
    cache = cache_of(on_stream(placed, stream))
    assert placed.streams == ([] if way == "interface" else [ONE])
    emulated.clear()
    cache.rows()
    cache.top_k(2)
    cache.cpu()
    for name in ("cudaLaunchKernel", "cudaMemcpyAsync", "cudaMallocFromPoolAsync", "cudaFreeAsync"):
        assert streams_of(emulated, name) == {ONE}, name


def test_an_array_that_names_its_stream_is_answered_there(emulated: Emulated) -> None:
    own = changed(ThroughInterface, make("soft", SHAPE), stream=OTHER)
    emulated.clear()
    cache_of(own).rows()
    assert (streams_of(emulated, "cudaLaunchKernel"), waits(emulated)) == ({OTHER}, [])
    emulated.clear()
    cache_of(on_stream(own, ONE)).rows()
    assert (streams_of(emulated, "cudaLaunchKernel"), waits(emulated)) == ({ONE}, [(ONE, OTHER)])
    emulated.clear()
    of_thread = changed(ThroughInterface, make("soft", SHAPE), stream=2)  # kept on no stream that differs by thread
    emulated.clear()
    cache_of(of_thread).rows()
    assert (streams_of(emulated, "cudaLaunchKernel"), waits(emulated)) == ({1}, [(1, 2)])


def test_layers_on_different_streams_wait_for_each_other(emulated: Emulated) -> None:
    cache = cache_of(*map(layer_on, (ONE, OTHER, ONE)))
    emulated.clear()
    cache.rows()
    assert waits(emulated) == [(ONE, OTHER), (OTHER, ONE)]
    assert streams_of(emulated, "cudaLaunchKernel") == {ONE}


def test_queries_and_keys_are_answered_on_the_stream_of_the_queries(emulated: Emulated) -> None:
    query, key = (put(each) for each in factored.layer(5, 5, batch=1, heads=2, key_heads=1))
    cache = AttentionCache()
    emulated.clear()
    cache.push_qk(on_stream(query, ONE), on_stream(key, OTHER), sinks=np.zeros(2, np.float32))
    assert waits(emulated) == [(ONE, OTHER)]
    assert streams_of(emulated, "cudaMemcpyAsync") == {ONE}
    emulated.clear()
    cache.rows()
    assert streams_of(emulated, "cudaLaunchKernel") == {ONE}
    cache.rows(out=put(np.zeros((1, 5, 5), np.float32)))
    emulated.clear()
    cache.clear()
    assert streams_of(emulated, "cudaStreamSynchronize") == {ONE}
    assert (query.released, key.released) == (1, 1)


def test_a_stream_lives_as_long_as_its_layer(emulated: Emulated) -> None:
    stream = AnyStream()
    alive = weakref.ref(stream)
    cache = cache_of(on_stream(layer_on(), stream))
    del stream
    gc.collect()
    assert alive() is not None
    cache.clear()
    gc.collect()
    assert alive() is None


def test_a_query_leaves_the_current_device_as_it_was(emulated: Emulated) -> None:
    cache = cache_of(layer_on(device=1))
    emulated.clear()
    cache.rows()
    chosen = calls_of(emulated, "cudaSetDevice")
    assert (chosen[0], chosen[-1], number("get_device")) == ("cudaSetDevice 1", "cudaSetDevice 0", 0)


# Answers on the device


def out_for(cache: AttentionCache, name: str) -> Any:
    return put(np.zeros(getattr(cache, name)(*ARGUMENTS[name]).shape, np.float32))


@pytest.mark.parametrize("name", TAKING)
def test_an_answer_on_the_device_waits_for_nothing(name: str, emulated: Emulated) -> None:
    cache = cache_of(layer_on())
    out = out_for(cache, name)
    emulated.clear()
    getattr(cache, name)(*ARGUMENTS[name], out=out)
    assert calls_of(emulated, "cudaLaunchKernel")
    assert waited(emulated) == []
    emulated.clear()
    getattr(cache, name)(*ARGUMENTS[name])
    assert waited(emulated)


def test_an_answer_is_written_on_the_stream_of_its_array(emulated: Emulated) -> None:
    cache = cache_of(layer_on(ONE))
    out = out_for(cache, "rows")
    for given, stream in ((out, 1), (on_stream(out, OTHER), OTHER), (on_stream(out, ONE), ONE)):
        emulated.clear()
        out.streams.clear()
        cache.rows(out=given)
        assert out.streams == [stream]
        assert streams_of(emulated, "cudaLaunchKernel") == {stream}
        assert waits(emulated) == ([] if stream == ONE else [(stream, ONE), (ONE, stream)])
    names_it = changed(ThroughInterface, np.zeros((1, 4, 6), np.float32), stream=THIRD)
    emulated.clear()
    cache.rows(out=names_it)
    assert streams_of(emulated, "cudaLaunchKernel") == {THIRD}
    assert waits(emulated) == [(THIRD, ONE), (ONE, THIRD)]


# The end


def test_memory_is_given_back_after_the_work_that_reads_it(emulated: Emulated) -> None:
    placed = layer_on(device=1)
    cache = cache_of(placed)
    cache.rows()
    emulated.clear()
    cache.clear()
    assert (waited(emulated), placed.released) == ([], 1)  # what was answered was waited for then
    cache.push(placed)
    cache.rows(out=put(np.zeros((1, 4, 6), np.float32), 1))
    emulated.clear()
    cache.clear()
    assert placed.released == 2
    assert calls_of(emulated, "cudaSetDevice", "cudaStreamSynchronize") == [
        "cudaSetDevice 1",
        "cudaStreamSynchronize stream=0x1",
        "cudaSetDevice 0",
    ]


# Failures


@pytest.mark.parametrize("name", DENSE)
def test_every_failure_on_the_device_is_an_error_and_leaves_nothing_behind(name: str, emulated: Emulated) -> None:
    pattern = make("soft", SHAPE)
    cache = cache_of(put(pattern))
    before = emulated.live_bytes()
    emulated.clear()
    ask = getattr(cache, name)
    ask(*ARGUMENTS[name])
    asked = [call.split()[0] for call in emulated.calls()]
    for failing in sorted({"cudaMallocFromPoolAsync", "cudaLaunchKernel", "cudaMemcpyAsync", "cudaStreamSynchronize"}):
        for nth in range(1, asked.count(failing) + 1):
            for status, error in ((OUT_OF_MEMORY, MemoryError), (FAILURE, RuntimeError)):
                emulated.clear()
                emulated.fail(failing, nth, status)
                with pytest.raises(error, match=rf"^attncache_cuda_\w+: .+ \(status {status}\)$"):
                    ask(*ARGUMENTS[name])
                emulated.clear()
                assert emulated.live_bytes() == before, f"call {nth} of {failing}"
    assert_same(ask(*ARGUMENTS[name]), meaning(name, [pattern], *ARGUMENTS[name]))


def test_a_device_that_does_not_answer_a_push_is_an_error(emulated: Emulated) -> None:
    placed = ThroughInterface(make("soft", SHAPE))
    emulated.fail("cudaPointerGetAttributes", 1, FAILURE)
    cache = AttentionCache()
    with pytest.raises(RuntimeError, match=f"attncache_cuda_device_of: .*status {FAILURE}"):
        cache.push(placed)
    assert cache.is_empty


def test_a_failure_of_the_end_is_silent(emulated: Emulated) -> None:
    placed = layer_on()
    cache = cache_of(placed)
    cache.rows(0, out=put(np.zeros((4, 6), np.float32)))
    emulated.clear()
    emulated.fail("cudaStreamSynchronize", 1, FAILURE)
    cache.clear()
    assert calls_of(emulated, "cudaStreamSynchronize")
    assert placed.released == 1
