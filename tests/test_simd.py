"""The choice of SIMD level: what is offered, that forcing forces, that it is undone, and the environment variable.

Sizes: none. Tolerance: none. That every level gives the same bits is in test_queries.py and test_push.py; that a level
really runs its own instructions is not covered here.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

from attncache import simd
from tests.support.processes import fresh_process

KNOWN = ("scalar", "neon", "avx2", "avx512")


def test_levels_are_known_and_in_ascending_speed_from_scalar() -> None:
    assert set(simd.available()) <= set(simd.compiled())
    for levels in (simd.available(), simd.compiled()):
        assert isinstance(levels, tuple)
        assert levels[0] == "scalar"
        assert list(levels) == [level for level in KNOWN if level in levels]
        assert len(set(levels)) == len(levels)


def test_the_levels_of_this_cpu_are_found() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or platform.machine() != "x86_64":
        pytest.skip("the flags of the CPU are read from /proc/cpuinfo on x86-64 only")
    flags = set(cpuinfo.read_text().partition("flags")[2].partition("\n")[0].split())
    needed = {"avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"}}
    for level, needs in needed.items():
        if level in simd.compiled():
            assert (level in simd.available()) == (needs <= flags), f"{level} needs {needs}"


def test_use_forces_a_level_and_gives_the_old_one_back_however_it_ends(simd_level: str) -> None:
    for level in simd.available():
        with simd.use(level):
            assert simd.active() == level
            with pytest.raises(KeyError, match="inside"), simd.use("scalar"):
                raise KeyError("inside " + simd.active())
            assert simd.active() == level
        assert simd.active() == simd_level
        simd.use(level)
        assert simd.active() == level
        simd.use(simd_level)


def test_auto_picks_the_best(simd_level: str) -> None:
    with simd.use("auto"):
        assert simd.active() == simd.available()[-1]
    assert simd.active() == simd_level


@pytest.mark.parametrize(
    "level", ["", "AVX2", "sse9", "scalar ", "avx10", *(set(KNOWN) - set(simd.available()))], ids=repr
)
def test_an_unknown_level_is_refused_with_the_available_ones(level: str) -> None:
    before = simd.active()
    with pytest.raises(ValueError, match=", ".join(simd.available())) as error:
        simd.use(level)
    assert level in str(error.value)
    assert simd.active() == before


@pytest.mark.parametrize("level", [None, 1, b"scalar", ["scalar"]], ids=repr)
def test_a_level_of_the_wrong_kind_is_a_type_error(level: Any) -> None:
    before = simd.active()
    try:
        with pytest.raises(TypeError):
            simd.use(level)
    finally:
        simd.use(before)


ACTIVE = "from attncache import simd\nprint(simd.active())\nwith simd.use('auto'): print(simd.active())\nprint(simd.active())"


@pytest.mark.parametrize("level", simd.available())
def test_the_environment_forces_a_level_that_can_be_left(level: str, tmp_path: Path) -> None:
    assert fresh_process(tmp_path, ACTIVE).stdout.split() == [simd.available()[-1]] * 3
    ran = fresh_process(tmp_path, ACTIVE, ATTNCACHE_SIMD=level)
    assert ran.stdout.split() == [level, simd.available()[-1], level], ran.stderr


def test_an_unknown_level_in_the_environment_fails_the_import_clearly(tmp_path: Path) -> None:
    ran = fresh_process(tmp_path, ACTIVE, ATTNCACHE_SIMD="sse9")
    assert ran.returncode == 1, "an error, not a crash"
    last = ran.stderr.strip().splitlines()[-1]
    for part in ("ATTNCACHE_SIMD", "sse9", "scalar"):
        assert part in last, ran.stderr
