"""Plants bugs into copies of the CUDA sources; the checks that are there to see them must see them.

Covered: the static checks (test_static.py), each with nvcc, and the emulation (test_emulated.py) with g++: missing
barriers, races, bounds, alignment, offsets and windows in 32 bits, overflow, ties, NaN, order of heads.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cuda import checks, emulated
from cuda.compilers import (
    CUDA_SOURCES,
    NO_DISASSEMBLER,
    NO_GXX,
    NO_NVCC,
    OTHER_LIBRARY,
    find_cuobjdump,
    find_gxx,
    find_nvcc,
)
from cuda.machine_code import Kernel, compiled, copied
from cuda.planted import EMULATED, STATIC

pytestmark = pytest.mark.minutes
ROOT = CUDA_SOURCES.parents[1]
PROOF = Path(__file__).with_name("test_emulated.py")
ARCHITECTURE = 90
CHECKS: dict[str, Callable[[Kernel], list[str]]] = {
    "narrow": checks.narrow,
    "local_memory": checks.local_memory,
    "over_budget": lambda kernel: checks.over_budget(kernel, ARCHITECTURE),
    "inexact": checks.inexact,
    "long_division": checks.long_division,
    "fused": checks.fused,
}


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
    kernels = compiled(folder / plant.source, ARCHITECTURE, tmp_path / "code", may_fuse=plant.may_fuse)
    assert kernels
    check = CHECKS[plant.seen_by]
    assert [words for kernel in kernels for words in check(kernel)] != []


@pytest.mark.skipif(find_gxx() is None, reason=NO_GXX)
@pytest.mark.parametrize("bug", EMULATED)
def test_the_emulation_sees(bug: str, emulated_library: Path, tmp_path: Path) -> None:
    plant = EMULATED[bug]
    sources = copied(tmp_path / "sources", *plant.edits)
    library = emulated.build(tmp_path / "library", kernels=sources, like=emulated_library.parent)
    options = ["-x", "-s", "-q", "-p", "no:cacheprovider", "-m", "", "-k", plant.tests]
    command = [sys.executable, "-m", "pytest", *options, str(PROOF)]
    environment = {**os.environ, OTHER_LIBRARY: str(library)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 or done.returncode < 0, f"the proof went well in spite of the bug:\n{done.stdout}"
    assert re.search(plant.seen_by, done.stdout + done.stderr), (
        f"seen, but not as {plant.seen_by}:\n{done.stdout}{done.stderr}"
    )
