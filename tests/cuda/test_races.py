"""Races in the real kernels: there are none, and each barrier is there for a reason.

Covered: every query, small and large k, both ways to read, blocks with several units of work. The library is compiled so
that shim/races.cpp sees each access; it also ends a launch that reads what nobody wrote, reads through __ldg what the
launch writes, or leaves memory. test_emulated.py asks the same library far more; test_shim.py has the detector's rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cuda import emulated
from cuda.calls import Device, Failed
from tests.support import factored
from tests.support.patterns import make

pytestmark = pytest.mark.minutes  # CI runs it in the stage of CUDA


def asked_rows(device: Device) -> None:
    for shift in (0, 4):
        for mean in (True, False):
            pattern = make("extremes", (1, 5, 9, 1100), "float16")
            device.ask("rows", [pattern], range(9), mean=mean, shift=shift)


def asked_columns(device: Device) -> None:
    pattern = make("extremes", (2, 3, 1100, 72), "float16")
    for keys in (range(72), range(71, -1, -2)):
        for mean in (True, False):
            device.ask("columns", [pattern], keys, batches=[0, 1], mean=mean)


def asked_edges(device: Device) -> None:
    device.ask("edges", [make("extremes", (2, 3, 9, 300), "bfloat16")], [8, 0], range(300), batches=[1, 0], mean=True)


def asked_top_k(device: Device) -> None:
    for kind in ("ties", "soft"):
        lines = make(kind, (1, 1, 50, 700))[0, 0]
        for k in (5, 30, 600):  # by tournament, and by radix
            device.top_k(lines, k)
    device.top_k(make("ties", (1, 1, 2, 5000))[0, 0], 4700)
    device.top_k(make("soft", (1, 1, 1, 9000))[0, 0], 9)  # groups of more than one piece
    device.top_k_rows([make("ties", (2, 3, 4, 1190), "float16")], [3, 0], 20, batches=[1, 0], shift=4)


def asked_factored_rows(device: Device) -> None:
    for heads, head_dim in ((6, 24), (4, 264), (9, 24)):
        query, key = factored.layer(9, 600, heads=heads, key_heads=1, head_dim=head_dim)
        for option in factored.OPTIONS:
            device.factored_rows(query, key, range(9), **factored.options_of(option, 2, heads, 600))
        device.factored_rows(query, key, [8], heads=[0], mean=True)


QUESTIONS: dict[str, Callable[[Device], None]] = {
    "rows": asked_rows,
    "columns": asked_columns,
    "edges": asked_edges,
    "top_k": asked_top_k,
    "factored_rows": asked_factored_rows,
}
BARRIERS = [
    f"{path.name}:{number}"
    for path in sorted(emulated.CUDA.glob("*.cu*"))
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    if re.search(r"__sync\w+\(\);", line)
]


@pytest.fixture(scope="module")
def device(emulated_library: Path) -> Device:
    return Device(emulated.load(emulated_library))


@pytest.fixture(scope="module")
def passed(device: Device) -> dict[str, list[str]]:
    """The queries that pass each barrier, none of which races."""
    found: dict[str, list[str]] = {}
    for name, question in QUESTIONS.items():
        device.library.shim_clear()
        device.library.shim_barriers()
        question(device)
        for place in device.library.shim_barriers().decode().splitlines():
            found.setdefault(place, []).append(name)
    return found


def test_the_questions_pass_every_barrier_and_nothing_races(passed: dict[str, list[str]]) -> None:
    assert sorted(passed) == sorted(BARRIERS)


@pytest.mark.parametrize("place", BARRIERS)
def test_without_a_barrier_there_is_a_race(place: str, device: Device, passed: dict[str, list[str]]) -> None:
    device.library.shim_clear()
    device.library.shim_ignore(place.encode())
    with suppress(Failed):
        for name in passed[place]:
            QUESTIONS[name](device)
    words = device.library.shim_words().decode()
    device.library.shim_ignore(b"")
    device.library.shim_clear()
    assert re.match(r"race in (shared|device) memory: .*thread \d+ of block \d+", words)
