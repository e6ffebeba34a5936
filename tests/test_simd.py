"""The choice of SIMD level: what is offered, that forcing forces, that it is undone, and the environment variable.

Sizes: none. Tolerance: none. That every level gives the same bits is in test_queries.py and test_push.py; that a level
really runs its own instructions is not covered here.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attncache import simd

KNOWN = ("scalar", "neon", "avx2", "avx512")


def fresh_process(tmp_path: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a new interpreter; the environment variables of attncache are only those given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ATTNCACHE_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=clean | environment,
        check=False,
    )


def test_scalar_is_always_available_and_the_slowest() -> None:
    assert isinstance(simd.available(), tuple)
    assert isinstance(simd.compiled(), tuple)
    assert simd.available()[0] == "scalar"
    assert "scalar" in simd.compiled()


def test_levels_are_known_and_in_ascending_speed() -> None:
    for levels in (simd.available(), simd.compiled()):
        assert list(levels) == [level for level in KNOWN if level in levels]
        assert len(set(levels)) == len(levels)


def test_what_is_available_is_compiled() -> None:
    assert set(simd.available()) <= set(simd.compiled())


def test_the_levels_of_this_cpu_are_found() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or platform.machine() != "x86_64":
        pytest.skip("the flags of the CPU are read from /proc/cpuinfo on x86-64 only")
    flags = set(cpuinfo.read_text().partition("flags")[2].partition("\n")[0].split())
    needed = {"avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"}}
    for level, needs in needed.items():
        if level in simd.compiled():
            assert (level in simd.available()) == (needs <= flags), f"{level} needs {needs}"


def test_use_forces_a_level_and_gives_the_old_one_back(simd_level: str) -> None:
    for level in simd.available():
        with simd.use(level):
            assert simd.active() == level
        assert simd.active() == simd_level


def test_use_takes_effect_without_with() -> None:
    before = simd.active()
    try:
        for level in simd.available():
            simd.use(level)
            assert simd.active() == level
    finally:
        simd.use(before)
    assert simd.active() == before


def test_use_can_be_nested() -> None:
    before = simd.active()
    first, last = simd.available()[0], simd.available()[-1]
    with simd.use(first):
        with simd.use(last):
            with simd.use(first):
                assert simd.active() == first
            assert simd.active() == last
        assert simd.active() == first
    assert simd.active() == before


def test_use_gives_the_old_level_back_after_an_exception() -> None:
    before = simd.active()
    with pytest.raises(KeyError, match="inside"), simd.use("scalar"):
        raise KeyError("inside")
    assert simd.active() == before


def test_auto_picks_the_best(simd_level: str) -> None:
    with simd.use("auto"):
        assert simd.active() == simd.available()[-1]
    assert simd.active() == simd_level


@pytest.mark.parametrize("level", ["", "AVX2", "sse9", "scalar ", "avx10"], ids=repr)
def test_an_unknown_level_is_refused_with_the_available_ones(level: str) -> None:
    before = simd.active()
    with pytest.raises(ValueError, match=", ".join(simd.available())) as error:
        simd.use(level)
    assert level in str(error.value)
    assert simd.active() == before


def test_a_level_of_another_cpu_is_refused() -> None:
    before = simd.active()
    missing = [level for level in KNOWN if level not in simd.available()]
    for level in missing:
        with pytest.raises(ValueError, match=level):
            simd.use(level)
    assert simd.active() == before


@pytest.mark.parametrize("level", [None, 1, b"scalar", ["scalar"]], ids=repr)
def test_a_level_of_the_wrong_kind_is_a_type_error(level: Any) -> None:
    before = simd.active()
    try:
        with pytest.raises(TypeError):
            simd.use(level)
    finally:
        simd.use(before)


ACTIVE = "import attncache; print(attncache.simd.active())"


def test_a_fresh_process_takes_the_best_level(tmp_path: Path) -> None:
    ran = fresh_process(tmp_path, ACTIVE)
    assert (ran.returncode, ran.stdout.strip()) == (0, simd.available()[-1]), ran.stderr


@pytest.mark.parametrize("level", simd.available())
def test_the_environment_forces_a_level(level: str, tmp_path: Path) -> None:
    ran = fresh_process(tmp_path, ACTIVE, ATTNCACHE_SIMD=level)
    assert (ran.returncode, ran.stdout.strip()) == (0, level), ran.stderr


def test_an_unknown_level_in_the_environment_fails_the_import_clearly(tmp_path: Path) -> None:
    ran = fresh_process(tmp_path, ACTIVE, ATTNCACHE_SIMD="sse9")
    assert ran.returncode == 1, "an error, not a crash"
    last = ran.stderr.strip().splitlines()[-1]
    for part in ("ATTNCACHE_SIMD", "sse9", "scalar"):
        assert part in last, ran.stderr


def test_use_can_leave_the_level_of_the_environment(tmp_path: Path) -> None:
    code = "from attncache import simd\nwith simd.use('auto'): print(simd.active())\nprint(simd.active())"
    ran = fresh_process(tmp_path, code, ATTNCACHE_SIMD="scalar")
    assert ran.stdout.split() == [simd.available()[-1], "scalar"], ran.stderr
