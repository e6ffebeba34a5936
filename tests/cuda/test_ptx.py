"""The PTX that nvcc makes of the kernels, launched by the real launchers and run instruction by instruction.

Covered: every query of cpp/cuda/attncache_cuda.h that launches a kernel, for three architectures, compared with
reference.py by equality (within its written bound for factored rows); no fault in any launch; at least 95 % of the PTX
instructions of every kernel. What that can show and what it cannot, says cuda/ptx/__init__.py. test_ptx_instructions.py
holds the interpreter to the meaning of PTX, test_ptx_catches.py shows that each of its checks can fail.
Not covered: results of more than 2^32 lines; test_divisor.py covers the divisions that such a result would need.
"""

from __future__ import annotations

import re
from functools import cache

import pytest

from cuda.compilers import CUDA_SOURCES, NO_GXX, NO_NVCC, find_gxx, find_nvcc
from cuda.interpreted_cases import CASES, Case
from cuda.ptx.library import ARCHITECTURES, Built, Interpreted, kernel_of

LEAST_COVERAGE = 0.95

pytestmark = [
    pytest.mark.skipif(find_nvcc() is None, reason=NO_NVCC),
    pytest.mark.skipif(find_gxx() is None, reason=NO_GXX),
]


@cache
def device(interpreted_library: Built, architecture: int) -> Interpreted:
    return Interpreted(interpreted_library, interpreted_library.ptx[architecture].values())


@cache
def interpreted_as(interpreted_library: Built, architecture: int) -> int:
    """The first architecture with the same PTX but for the line that names it; nvcc writes one text for several."""

    def code(of: int) -> list[str]:
        return [re.sub(r"^\.target.*", "", text, flags=re.MULTILINE) for text in interpreted_library.ptx[of].values()]

    return next(other for other in ARCHITECTURES if code(other) == code(architecture))


@cache
def run(interpreted_library: Built, architecture: int, case: Case) -> None:
    """A case is run once, whoever asks first."""
    interpreted = device(interpreted_library, architecture)
    interpreted.most_blocks = case.blocks
    case.run(interpreted)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids="sm_{}".format)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_interpreted_kernels_answer_as_numpy_does(interpreted_library: Built, architecture: int, case: Case) -> None:
    run(interpreted_library, interpreted_as(interpreted_library, architecture), case)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids="sm_{}".format)
def test_the_cases_reach_the_instructions_of_every_kernel(interpreted_library: Built, architecture: int) -> None:
    architecture = interpreted_as(interpreted_library, architecture)
    for case in CASES:
        run(interpreted_library, architecture, case)
    reached = device(interpreted_library, architecture).device.coverage()
    sources = "\n".join(path.read_text(encoding="utf-8") for path in CUDA_SOURCES.glob("*.cu*"))
    assert {kernel_of(name) for name in reached} == set(re.findall(r"__global__[^;{]*?(\w+_kernel)\(", sources))
    for name, (executed, total) in reached.items():
        kernel = kernel_of(name)
        print(f"sm_{architecture} {kernel}: {executed} of {total} instructions reached")
        missing = "\n".join(device(interpreted_library, architecture).device.unreached(name))
        assert executed >= LEAST_COVERAGE * total, f"{kernel}: {executed} of {total} reached; not:\n{missing}"


def test_nothing_is_left_on_the_device(interpreted_library: Built) -> None:
    for architecture in ARCHITECTURES:
        assert device(interpreted_library, architecture).device.memory.allocations == {}
