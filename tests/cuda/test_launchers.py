"""The host side of the CUDA library, against a runtime that records every call and fails the ones it is told to.

Covered, for each query: arguments are checked before the runtime is asked for anything; the caller's stream reaches
every call; nothing waits; the failure of each single runtime call comes back as its status, with words, with all device
memory given back and the next call right. Also the functions about devices, memory, copies and streams.
Not covered: that the real runtime fails the way the emulated one does.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cuda import emulated as building
from cuda.compilers import NO_GXX, find_gxx
from cuda.header import BAD_ARGUMENT, TOO_LARGE, Library
from cuda.launching import QUERIES, STREAM, Call, Emulated, indices, right_call

pytestmark = [pytest.mark.minutes, pytest.mark.skipif(find_gxx() is None, reason=NO_GXX)]
ENQUEUED = {"cudaMallocFromPoolAsync", "cudaMemcpyAsync", "cudaLaunchKernel", "cudaEventRecord", "cudaFreeAsync"}
BESIDE = {"cudaEventCreateWithFlags", "cudaEventQuery", "cudaHostAlloc", "cudaGetDevice"}  # of no stream
UNNEEDED = {"cudaEventQuery"}  # the answer is right though they fail
SILENT = {"cudaGetLastError"}  # asks nothing of the device
CODE = 719  # cudaErrorLaunchFailure: no check of an argument gives it


@pytest.fixture(scope="module")
def emulated(emulated_library: Path) -> Iterator[Emulated]:
    return Emulated(Library(emulated_library), building.load(emulated_library))


@pytest.fixture
def call(emulated: Emulated, request: pytest.FixtureRequest) -> Iterator[Call]:
    before = emulated.live_bytes()
    with right_call(emulated, request.param) as made:
        yield made
    assert emulated.live_bytes() == before, "device memory was left behind"


every_query = pytest.mark.parametrize("call", QUERIES, indirect=True)


def names(calls: list[str]) -> list[str]:
    return [line.split()[0] for line in calls]


@every_query
def test_a_query_enqueues_everything_on_the_stream_it_is_given_and_waits_for_nothing(
    emulated: Emulated, call: Call
) -> None:
    assert call.status(emulated) == 0
    calls = [line for line in emulated.calls() if line.split()[0] not in SILENT]
    assert "cudaLaunchKernel" in names(calls)
    assert set(names(calls)) <= ENQUEUED | BESIDE
    assert [line for line in calls if line.split()[0] in ENQUEUED and f"stream={STREAM:#x}" not in line] == []
    uploads = [line for line in calls if line.startswith("cudaMemcpyAsync")]
    assert [
        line for line in uploads if "kind=1 pinned" not in line
    ] == []  # from other memory the host may have to wait
    assert names(calls).count("cudaMallocFromPoolAsync") == names(calls).count("cudaFreeAsync")


@every_query
def test_index_lists_travel_in_one_copy_for_each_launch_that_reads_them(emulated: Emulated, call: Call) -> None:
    assert call.status(emulated) == 0
    copies = [line for line in emulated.calls() if line.startswith("cudaMemcpyAsync") and "kind=1" in line]
    assert len(copies) == {"top_k": 0}.get(call.query, 1)


@every_query
def test_the_failure_of_each_runtime_call_is_returned_and_nothing_is_left_behind(
    emulated: Emulated, call: Call
) -> None:
    assert call.status(emulated) == 0
    asked, before = names(emulated.calls()), emulated.live_bytes()
    tried = 0
    for name in sorted(set(asked) - SILENT - UNNEEDED - {"cudaFreeAsync"}):
        for nth in range(1, asked.count(name) + 1):
            emulated.clear()
            emulated.fail(name, nth, CODE)
            status = call.status(emulated)
            assert status == CODE, f"call {nth} of {name} failed with {CODE}, the query returned {status}"
            assert emulated.live_bytes() == before, f"call {nth} of {name} failed, and device memory was left behind"
            emulated.clear()
            assert call.status(emulated) == 0, f"the call after a failed {name}"
            tried += 1
    assert tried >= 1


@every_query
@pytest.mark.parametrize("name", sorted(UNNEEDED))
def test_what_an_answer_does_not_need_may_fail(emulated: Emulated, call: Call, name: str) -> None:
    emulated.fail(name, 1, CODE)
    assert call.status(emulated) == 0
    emulated.clear()
    assert call.status(emulated) == 0


def test_lists_that_the_device_has_not_read_yet_are_not_written_over(emulated: Emulated) -> None:
    emulated.clear()
    with right_call(emulated, "rows") as call:
        out = call.arguments["device_out"]
        for n in range(5):
            emulated.library.call("copy_to_device", out + n, bytes([n]), 1, STREAM)
        found = ctypes.create_string_buffer(5)
        emulated.library.call("copy_to_host", found, out, 5, STREAM)
        assert found.raw == bytes(range(5))


@every_query
def test_a_device_without_memory_is_told_apart(emulated: Emulated, call: Call) -> None:
    emulated.fail("cudaMallocFromPoolAsync", 1, 2)
    status = call.status(emulated)
    assert status in (0, 2)
    assert (status == 2) == ("cudaMallocFromPoolAsync" in names(emulated.calls()))


Spoil = Callable[[dict[str, Any]], None]


def setting(**values: Any) -> Spoil:
    return lambda arguments: arguments.update(values)


def in_selection(**values: Any) -> Spoil:
    def spoil(arguments: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(arguments["selection"], name, value)

    return spoil


def in_layer(index: int = 0, **values: Any) -> Spoil:
    def spoil(arguments: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(arguments["selection"].layers[index], name, value)

    return spoil


def in_factored(part: str = "", **values: Any) -> Spoil:
    def spoil(arguments: dict[str, Any]) -> None:
        layer = arguments["layer"]
        for name, value in values.items():
            setattr(getattr(layer, part) if part else layer, name, value)

    return spoil


LISTS: dict[str, Spoil] = {
    "no positions": setting(positions=None),
    "a negative count of positions": setting(n_positions=-1),
    "a position at the end": setting(positions=indices(0, 1, 8)),
    "a negative position": setting(positions=indices(0, -1, 1)),
    "no result": setting(device_out=None),
}
SELECTIONS: dict[str, Spoil] = LISTS | {
    "no selection": setting(selection=None),
    "no layers": in_selection(layers=None),
    "a negative count of layers": in_selection(n_layers=-1),
    "no batches": in_selection(batches=None),
    "a negative count of batches": in_selection(n_batches=-1),
    "no heads": in_selection(heads=None),
    "a negative count of heads": in_selection(n_heads=-1),
    "an unknown dtype": in_layer(dtype=3),
    "a negative dtype": in_layer(dtype=-1),
    "no data": in_layer(device_data=None),
    "a negative size": in_layer(n_heads=-4),
    "fewer heads than listed": in_layer(n_heads=2),
    "fewer batches than listed": in_layer(batch_size=1),
    "a stride between items": in_layer(head_stride=6),
}
MIXED: dict[str, Spoil] = {"layers of two shapes": in_layer(1, seq_k=4)}
EDGES: dict[str, Spoil] = {
    "no keys": setting(to=None),
    "a negative count of keys": setting(n_to=-1),
    "a key at the end": setting(to=indices(0, 8)),
    "a negative key": setting(to=indices(-1, 0)),
}
TOP_K: dict[str, Spoil] = {
    "no lines": setting(device_lines=None),
    "a negative count of lines": setting(n_lines=-1),
    "a negative length": setting(length=-1),
    "a negative k": setting(k=-1),
    "k beyond the line": setting(k=41),
    "no positions": setting(device_positions=None),
    "no weights": setting(device_weights=None),
}
TOP_K_ROWS: dict[str, Spoil] = {what: spoil for what, spoil in SELECTIONS.items() if what != "no result"} | {
    "a mean": in_selection(mean_heads=1),
    "a negative k": setting(k=-1),
    "k beyond the row": setting(k=9),
    "nowhere for positions": setting(device_positions=None),
    "nowhere for weights": setting(device_weights=None),
}
FACTORED: dict[str, Spoil] = {name: spoil for name, spoil in LISTS.items() if name != "a position at the end"} | {
    "no layer": setting(layer=None),
    "a query position at the end": setting(positions=indices(3, 0)),
    "a batch at the end": setting(batches=indices(1)),
    "a head at the end": setting(heads=indices(0, 4)),
    "a negative head": setting(heads=indices(-1, 0)),
    "a negative window": in_factored(window=-1),
    "a negative softcap": in_factored(softcap=-1.0),
    "heads that key heads do not divide": in_factored("query", n_heads=3),
    "no key heads": in_factored("key", n_heads=0),
    "other items in keys": in_factored("key", seq_k=8),
    "other batches in keys": in_factored("key", batch_size=2),
    "an unknown dtype": in_factored("query", dtype=3),
    "no queries": in_factored("query", device_data=None),
    "no keys": in_factored("key", device_data=None),
}
RULES = {
    "rows": SELECTIONS | MIXED,
    "columns": SELECTIONS | MIXED,
    "edges": SELECTIONS | EDGES,
    "top_k": TOP_K,
    "top_k_rows": TOP_K_ROWS | MIXED,
    "factored_rows": FACTORED,
}
SPOILED = [(query, what) for query, rules in RULES.items() for what in rules]


@pytest.mark.parametrize(
    ("call", "what"), SPOILED, indirect=["call"], ids=[f"{query}-{what}" for query, what in SPOILED]
)
def test_a_broken_rule_is_refused_before_the_runtime_is_asked(emulated: Emulated, call: Call, what: str) -> None:
    RULES[call.query][what](call.arguments)
    assert call.status(emulated) == BAD_ARGUMENT
    assert set(names(emulated.calls())) <= SILENT
    assert b"argument" in emulated.library.message(BAD_ARGUMENT).encode()


def test_lines_beyond_64_bits_are_too_large(emulated: Emulated) -> None:
    with right_call(emulated, "top_k") as call:
        call.arguments |= {"n_lines": 2**40, "length": 2**40, "k": 2**40}
        assert call.status(emulated) == TOO_LARGE
        assert set(names(emulated.calls())) <= SILENT
        assert "large" in emulated.library.message(TOO_LARGE)


@pytest.mark.parametrize(
    ("call", "spoil"),
    [
        ("rows", setting(n_positions=0, positions=None, device_out=None)),
        ("columns", in_selection(n_layers=0, layers=None)),
        ("edges", setting(n_to=0, to=None)),
        ("top_k", setting(k=0)),
        ("top_k", setting(n_lines=0)),
        ("top_k_rows", setting(k=0)),
        ("factored_rows", setting(n_heads=0, heads=None)),
    ],
    indirect=["call"],
    ids=["no positions", "no layers", "no keys", "k of 0", "no lines", "k of 0 rows", "no heads"],
)
def test_an_empty_question_is_answered_without_the_device(emulated: Emulated, call: Call, spoil: Spoil) -> None:
    spoil(call.arguments)
    if call.query == "columns":
        call.arguments |= {"n_positions": 0}
    assert call.status(emulated) == 0
    assert "cudaLaunchKernel" not in names(emulated.calls())


def number() -> Any:
    return ctypes.byref(ctypes.c_int())


SIMPLE: dict[str, tuple[str, Callable[[int], tuple[Any, ...]]]] = {
    "device_count": ("cudaGetDeviceCount", lambda _: (number(),)),
    "set_device": ("cudaSetDevice", lambda _: (0,)),
    "get_device": ("cudaGetDevice", lambda _: (number(),)),
    "device_of": ("cudaPointerGetAttributes", lambda memory: (memory, number())),
    "allocate": ("cudaMallocFromPoolAsync", lambda _: (64, STREAM, ctypes.byref(ctypes.c_void_p()))),
    "copy_to_host": ("cudaMemcpyAsync", lambda memory: (ctypes.create_string_buffer(8), memory, 8, STREAM)),
    "copy_to_device": ("cudaMemcpyAsync", lambda memory: (memory, ctypes.create_string_buffer(8), 8, STREAM)),
    "free": ("cudaFreeAsync", lambda memory: (memory, STREAM)),
    "synchronize": ("cudaStreamSynchronize", lambda _: (STREAM,)),
    "stream_wait": ("cudaEventCreateWithFlags", lambda _: (STREAM, STREAM + 1)),
}


@pytest.mark.parametrize("function", SIMPLE)
def test_a_function_of_the_runtime_returns_its_failure(emulated: Emulated, function: str) -> None:
    asked, arguments = SIMPLE[function]
    before = emulated.live_bytes()
    with right_call(emulated, "top_k") as call:
        emulated.fail(asked, 1, CODE)
        assert emulated.library.status(function, *arguments(call.arguments["device_lines"])) == CODE
        assert asked in names(emulated.calls())
    assert emulated.live_bytes() == before


@pytest.mark.parametrize("failing", ["cudaEventRecord", "cudaStreamWaitEvent"])
def test_an_event_is_given_back_when_waiting_fails(emulated: Emulated, failing: str) -> None:
    emulated.clear()
    emulated.fail(failing, 1, CODE)
    assert emulated.library.status("stream_wait", STREAM, STREAM + 1) == CODE
    assert names(emulated.calls()).count("cudaEventDestroy") == 1
    emulated.clear()


def test_a_stream_waits_for_another_and_the_host_does_not(emulated: Emulated) -> None:
    emulated.clear()
    emulated.library.call("stream_wait", STREAM, STREAM + 1)
    calls = [line for line in emulated.calls() if line.split()[0] not in SILENT]
    assert names(calls) == ["cudaEventCreateWithFlags", "cudaEventRecord", "cudaStreamWaitEvent", "cudaEventDestroy"]
    assert f"stream={STREAM + 1:#x}" in calls[1]
    assert f"stream={STREAM:#x}" in calls[2]
    emulated.clear()
    emulated.library.call("stream_wait", STREAM, STREAM)
    assert "cudaStreamWaitEvent" not in names(emulated.calls())


def test_copies_to_the_host_wait_for_their_stream_and_others_do_not(emulated: Emulated) -> None:
    with right_call(emulated, "top_k") as call:
        memory, buffer = call.arguments["device_lines"], ctypes.create_string_buffer(8)
        emulated.library.call("copy_to_host", buffer, memory, 8, STREAM)
        assert names(emulated.calls()) == ["cudaMemcpyAsync", "cudaStreamSynchronize"]
        assert all(f"stream={STREAM:#x}" in line for line in emulated.calls())
        emulated.clear()
        emulated.library.call("copy_to_device", memory, buffer, 8, STREAM)
        assert set(names(emulated.calls())) - BESIDE - SILENT == {"cudaMemcpyAsync", "cudaEventRecord"}


@pytest.mark.parametrize("status", [0, BAD_ARGUMENT, TOO_LARGE, -3, 1, 2, 35, 100, 101, 209, 719, 802, 803, 99999])
def test_every_status_has_words(emulated: Emulated, status: int) -> None:
    words = emulated.library.message(status)
    assert re.fullmatch(r"[ -~]{5,}", words)
    if status == 35:
        assert "driver" in words


@pytest.mark.parametrize("failing", ["cudaMemPoolCreate", "cudaMemGetInfo", "cudaMemPoolSetAttribute"])
def test_a_pool_that_cannot_be_made_is_made_by_the_next_call(
    tmp_path: Path, emulated_library: Path, failing: str
) -> None:
    copied = tmp_path / "library.so"  # another library, which has no pool yet
    copied.write_bytes(emulated_library.read_bytes())
    fresh = Emulated(Library(copied), building.load(copied))
    fresh.fail(failing, 1, CODE)
    found = ctypes.c_void_p()
    assert fresh.library.status("allocate", 64, STREAM, ctypes.byref(found)) == CODE
    assert found.value is None
    assert names(fresh.calls()).count("cudaMemPoolDestroy") == (failing != "cudaMemPoolCreate")
    fresh.clear()
    fresh.library.call("allocate", 64, STREAM, ctypes.byref(found))
    assert any(line.startswith("cudaMemPoolSetAttribute") for line in fresh.calls())
    fresh.clear()
    fresh.library.call("free", found, STREAM)
    fresh.library.call("allocate", 64, STREAM, ctypes.byref(found))
    assert "cudaMemPoolCreate" not in names(fresh.calls())
    fresh.library.call("free", found, STREAM)
