"""What nvcc really made of the kernels, read from PTX, from ptxas and from machine code, for every architecture.

Covered: 16-byte loads and stores where a kernel means them, nothing in local memory, registers and shared memory within
the budgets of `budgets.py`, and no fused multiply-add where bits are promised. Machine code is read where cuobjdump and nvdisasm are; a
division expands to fused instructions inside itself, so that promise is checked on a copy that does not divide.
Not covered: that machine code does what PTX says, and every question of speed. test_planted.py shows that each of
these checks can fail.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cuda import checks
from cuda.budgets import BOUNDED, KERNELS
from cuda.compilers import ARCHITECTURES, CUDA_SOURCES, NO_DISASSEMBLER, NO_NVCC, find_cuobjdump, find_nvcc
from cuda.machine_code import Kernel, compiled_folder, copied

pytestmark = pytest.mark.minutes
needs_disassembler = pytest.mark.skipif(find_cuobjdump() is None, reason=NO_DISASSEMBLER)


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda architecture: f"sm_{architecture}")
def architecture(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def kernels(architecture: int, tmp_path_factory: pytest.TempPathFactory) -> list[Kernel]:
    if find_nvcc() is None:
        pytest.skip(NO_NVCC)
    return compiled_folder(CUDA_SOURCES, architecture, tmp_path_factory.mktemp("code"))


def test_every_kernel_is_compiled(kernels: list[Kernel]) -> None:
    assert {kernel.name for kernel in kernels} == set(KERNELS)
    assert all(kernel.ptx for kernel in kernels)
    assert find_cuobjdump() is None or all(kernel.sass for kernel in kernels)


def test_nothing_lies_in_local_memory(kernels: list[Kernel]) -> None:
    assert [found for kernel in kernels for found in checks.local_memory(kernel)] == []


def test_registers_and_shared_memory_stay_within_budget(kernels: list[Kernel], architecture: int) -> None:
    assert [found for kernel in kernels for found in checks.over_budget(kernel, architecture)] == []


def test_loads_and_stores_are_as_wide_as_meant(kernels: list[Kernel]) -> None:
    assert [found for kernel in kernels for found in checks.narrow(kernel)] == []


def test_no_kernel_divides_64_bits(kernels: list[Kernel]) -> None:
    assert [found for kernel in kernels for found in checks.long_division(kernel)] == []


def test_kernels_that_promise_bits_fuse_and_approximate_nothing(kernels: list[Kernel]) -> None:
    exact = [kernel for kernel in kernels if KERNELS[kernel.name].source not in BOUNDED]
    assert exact
    assert [found for kernel in exact for found in checks.inexact(kernel)] == []


@needs_disassembler
def test_machine_code_fuses_nothing_where_nothing_divides(kernels: list[Kernel]) -> None:
    undivided = [
        kernel for kernel in kernels if not checks.divides(kernel) and KERNELS[kernel.name].source not in BOUNDED
    ]
    assert undivided
    assert [found for kernel in undivided for found in checks.fused(kernel)] == []


@needs_disassembler
def test_machine_code_fuses_inside_divisions_alone(kernels: list[Kernel], architecture: int, tmp_path: Path) -> None:
    dividing = {KERNELS[kernel.name].source for kernel in kernels if checks.divides(kernel)} - BOUNDED
    assert dividing
    copy = copied(tmp_path / "sources", checks.WITHOUT_DIVISION)
    undivided = compiled_folder(copy, architecture, tmp_path / "code", [copy / source for source in sorted(dividing)])
    assert undivided
    assert [kernel.name for kernel in undivided if checks.divides(kernel)] == []
    assert [found for kernel in undivided for found in checks.fused(kernel)] == []
