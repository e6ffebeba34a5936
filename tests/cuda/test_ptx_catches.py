"""Bugs planted into the real kernels, which the interpreter of their PTX must find, each by the check that is for it.

Covered: the sources with a bug in them, compiled by nvcc and launched by the real launchers; and, in the PTX of the real
sources, every single barrier taken out, each of which must be missed. The same questions are answered without a fault
by the sources as they are: test_ptx.py asks these and more.
Not covered: the checks on their own (test_ptx_checks.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuda.compilers import NO_GXX, NO_NVCC, find_gxx, find_nvcc
from cuda.interpreted_bugs import ANSWER, BUGS
from cuda.interpreted_cases import CASES, Case
from cuda.machine_code import copied
from cuda.ptx.faults import Fault
from cuda.ptx.library import Built, Interpreted, ptx_of
from tests.support.patterns import DTYPES

ARCHITECTURE = 90
PLACE = r"thread \(\d+, \d+, 0\) .*kernel \S+_kernel\S*, PTX line \d+ \(\w+\.\w+:\d+\)|first byte \d+ of the copy"
MEETING_PLACES = {  # cases that between them pass every barrier of a kernel with more than one unit of work behind it
    "columns": {
        f"{dtype}, {name}"
        for dtype in DTYPES
        for name in (
            "23 keys, mean",
            "all picked, mean, two blocks",
            "in sequence, mean, two blocks",
            "in sequence, each, two blocks",
        )
    },
    "top_k": {"20 of rows, one block", *(f"{dtype}, 60 of 8200" for dtype in DTYPES)},
    "top_k_radix": {"520 of rows, one block", "4700 of 5000, ties"},
    "factored_rows": {
        "float16, every option, two blocks",
        "items in two chunks, two blocks",
        "items in two chunks, few lines, one block",
    },
}

pytestmark = [
    pytest.mark.skipif(find_nvcc() is None, reason=NO_NVCC),
    pytest.mark.skipif(find_gxx() is None, reason=NO_GXX),
]


def modules(built: Built, source: str, text: str) -> list[str]:
    """The PTX of the sources with one of them replaced; others only where its launchers need them."""
    helpers = {"factored_rows": ["rows"]}.get(source, [])
    return [text, *(built.ptx[ARCHITECTURE][helper] for helper in helpers)]


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(interpreted_library: Built, name: str, tmp_path: Path) -> None:
    bug = BUGS[name]
    folder = copied(tmp_path / "sources", *((bug.included or bug.source, *edit) for edit in bug.edits))
    text = ptx_of(folder / bug.source, ARCHITECTURE, tmp_path)
    device = Interpreted(interpreted_library, modules(interpreted_library, Path(bug.source).stem, text))
    device.most_blocks = bug.blocks
    if bug.found_by == ANSWER:
        with pytest.raises(AssertionError):
            bug.question(device)
        return
    with pytest.raises(Fault) as caught:
        bug.question(device)
    assert caught.value.checker == bug.found_by, caught.value
    assert re.search(PLACE, str(caught.value)), caught.value


def barriers(device: Interpreted) -> Iterator[tuple[str, int]]:
    """(kernel, index) of every barrier of a block or a warp."""
    for name, kernel in device.device.kernels.items():
        for index, instruction in enumerate(kernel.code):
            if instruction.opcode in {"bar", "barrier"}:
                yield name, index


def fault_of(device: Interpreted, cases: list[Case]) -> str | None:
    """The checker that stopped one of the cases."""
    for case in cases:
        device.most_blocks = case.blocks
        try:
            case.run(device)
        except Fault as fault:
            return fault.checker
    return None


@pytest.mark.parametrize("query", MEETING_PLACES)
def test_every_barrier_is_needed_and_missed(interpreted_library: Built, query: str) -> None:
    cases = [case for case in CASES if query.startswith(case.query) and case.name in MEETING_PLACES[query]]
    assert len(cases) == len(MEETING_PLACES[query])
    text = interpreted_library.ptx[ARCHITECTURE][query]
    device = Interpreted(interpreted_library, modules(interpreted_library, query, text))
    assert fault_of(device, cases) is None
    found = {}
    for kernel, index in barriers(device):
        device.device.left_out = kernel, index
        found[device.device.kernels[kernel].code[index].line] = fault_of(device, cases)
    assert len(found) > 1
    assert set(found.values()) == {"race"}, f"PTX lines of barriers that nobody misses: {found}"
