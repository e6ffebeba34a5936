"""Answers of layers on a device that are written into an array there: `out=`, what it may be, what it must not.

Every query that takes `out`, every protocol. Tolerance: none. Not covered: arrays of torch and CuPy, which need a device;
streams (test_device_streams.py).
"""

from __future__ import annotations

import gc
import inspect
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.cuda import on_stream
from attncache.reference import QUERIES
from cuda.placing import WAYS, ThroughDLPack, ThroughInterface, changed, put
from cuda.test_device_queries import ARGUMENTS, small
from tests.support import factored
from tests.support.patterns import assert_same

pytestmark = pytest.mark.usefixtures("on_device")
TAKING = [name for name in QUERIES if "out" in inspect.signature(getattr(AttentionCache, name)).parameters]
WAYS_BACK = {**WAYS, "on a stream": lambda array: on_stream(put(array), 1)}


@pytest.mark.parametrize("way", WAYS_BACK)
@pytest.mark.parametrize("name", TAKING)
def test_an_answer_is_written_into_an_array_on_the_device(name: str, way: str) -> None:
    cache, args = small(), ARGUMENTS[name]
    expected = getattr(cache, name)(*args)
    out = WAYS_BACK[way](np.full(expected.shape, -77.5, np.float32))
    assert getattr(cache, name)(*args, out=out) is out
    assert_same(getattr(out, "array", out).numpy(), np.asarray(expected))


@pytest.mark.parametrize("name", TAKING)
def test_an_answer_is_written_into_an_array_of_numpy(name: str) -> None:
    cache, args = small(), ARGUMENTS[name]
    expected = getattr(cache, name)(*args)
    out = np.full(expected.shape, -77.5, np.float32)
    assert getattr(cache, name)(*args, out=out) is out
    assert_same(out, np.asarray(expected))
    assert out.flags.writeable
    for wrong in (out[..., :-1], out.astype(np.float64), "out"):
        with pytest.raises((TypeError, ValueError), match="out"):
            getattr(cache, name)(*args, out=wrong)


def test_queries_and_keys_write_their_rows_and_edges_there() -> None:
    cache = AttentionCache()
    cache.push_qk(*map(put, factored.layer(4, 6, batch=1, heads=2, key_heads=1)))
    for ask in (cache.rows, lambda **options: cache.edges(None, [5, 0], **options)):
        expected = ask()
        out = put(np.zeros(expected.shape, np.float32))
        ask(out=out)
        assert_same(out.numpy(), expected)


def test_an_answer_without_items_is_none_to_write() -> None:
    for shape, axis in (((0, 4, 6), "layers"), ((1, 0, 6), "positions")):
        out = put(np.zeros(shape, np.float32))
        assert small().rows(**{axis: []}, out=out) is out


def floats(shape: Any = (4, 6), **changes: Any) -> Any:
    return changed(ThroughInterface, np.zeros(shape, np.float32), **changes)


class NeedsGrad(ThroughDLPack):
    requires_grad = True


WRONG: dict[str, tuple[Any, str]] = {
    "another shape": (lambda: floats((4, 7)), r"float32 array of shape \(4, 6\), got float32 of shape \(4, 7\)"),
    "another number of axes": (lambda: floats((1, 4, 6)), r"of shape \(4, 6\), got float32 of shape \(1, 4, 6\)"),
    "float16": (lambda: put(np.zeros((4, 6), np.float16)), "got float16"),
    "not contiguous": (lambda: put(np.zeros((6, 4), np.float32).T), r"strides \(4, 16\)"),
    "read-only": (lambda: changed(ThroughDLPack, np.zeros((4, 6), np.float32), flags=1), "read-only strides"),
    "misaligned": (
        lambda: changed(ThroughDLPack, np.zeros((4, 6), np.float32), byte_offset=2),
        "be a writable, aligned",
    ),
    "another device": (
        lambda: put(np.zeros((4, 6), np.float32), 1),
        "on cuda:0 as the layers do, got an array on cuda:1",
    ),
    "a gradient": (lambda: NeedsGrad(np.zeros((4, 6), np.float32)), r"require a gradient.*out\.detach\(\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_an_answer_cannot_be_written_into_is_named_and_left_alone(case: str) -> None:
    out, message = WRONG[case][0](), WRONG[case][1]
    with pytest.raises(ValueError, match=f"^out must .*{message}"):
        small().head_mean(0, out=out)
    gc.collect()
    assert out.released == len(out.streams)


def test_layers_in_cpu_memory_write_into_no_array_on_a_device() -> None:
    cache = AttentionCache()
    cache.push(np.ones((1, 2, 4, 6), np.float32))
    for ask in (cache.rows, lambda **options: cache.head_mean(0, **options)):
        with pytest.raises(TypeError, match="out must be a NumPy array"):
            ask(out=floats())
