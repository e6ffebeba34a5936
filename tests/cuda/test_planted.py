"""Plants bugs into copies of the CUDA sources; the checks that are there to see them must see them.

Covered: the static checks (test_static.py), each with nvcc, and the emulation (test_emulated.py) with g++: missing
barriers, races, bounds, alignment, ties, NaN, order of heads. The bugs planted into PTX are in test_ptx_planted.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cuda import checks
from cuda.compilers import NO_DISASSEMBLER, NO_NVCC, find_cuobjdump, find_nvcc
from cuda.machine_code import compiled, copied
from cuda.planted import STATIC

ARCHITECTURE = 90


@pytest.mark.skipif(find_nvcc() is None, reason=NO_NVCC)
@pytest.mark.parametrize("bug", STATIC)
def test_a_static_check_sees(bug: str, tmp_path: Path) -> None:
    plant = STATIC[bug]
    if plant.seen_by == "fused" and find_cuobjdump() is None:
        pytest.skip(NO_DISASSEMBLER)
    folder = copied(tmp_path / "sources", *plant.edits)
    if plant.seen_by == "not_plain":
        assert checks.not_plain(folder) != []
        return
    kernels = compiled(folder / plant.source, ARCHITECTURE, tmp_path / "code", is_exact=plant.seen_by != "may_fuse")
    assert kernels
    found = {
        "narrow": lambda kernel: checks.narrow(kernel),
        "local_memory": checks.local_memory,
        "over_budget": lambda kernel: checks.over_budget(kernel, ARCHITECTURE),
        "inexact": checks.inexact,
        "fused": checks.fused,
    }[plant.seen_by]
    assert [words for kernel in kernels for words in found(kernel)] != []
