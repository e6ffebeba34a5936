"""Builds with and without CUDA: what nvcc is told, what the library exports and needs, and that CPU builds know nothing of it.

Covered: the sources, flags and architectures of cpp/cuda/CMakeLists.txt against those the other checks use; sources
without inline assembly, cooperative groups or launch syntax that g++ cannot read, each kernel with a budget; the built
library's symbols and needs (with cmake and nvcc); the words of a build without nvcc; that without the option nothing of
cpp/cuda is read, and that the installed extension holds no word of the CUDA runtime.
Not covered: the bytes of the extension built with and without the option, which a stage of .ci/run compares.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from attncache import _core
from cuda import checks
from cuda.budgets import BOUNDED, HOST, KERNELS
from cuda.compilers import ARCHITECTURES, CUDA_SOURCES, NO_NVCC, find_nvcc, run
from cuda.emulated import with_headers
from cuda.header import FUNCTIONS, PREFIX
from cuda.machine_code import EXACT, FLAGS

ROOT = CUDA_SOURCES.parents[1]
CMAKE = (CUDA_SOURCES / "CMakeLists.txt").read_text(encoding="utf-8")
SYSTEM = {"libstdc++", "libgcc_s", "libc", "libm", "ld-linux-x86-64", "ld-linux-aarch64", "libpthread", "libdl", "librt"}  # fmt: skip
cmake = shutil.which("cmake")
needs_cmake = pytest.mark.skipif(cmake is None, reason="no cmake")


def listed(name: str) -> set[str]:
    """The files of a `set(name ...)` of cpp/cuda/CMakeLists.txt."""
    found = re.search(rf"^set\({name} ([^)]*)\)", CMAKE, re.MULTILINE)
    assert found, name
    return set(found[1].split())


def configure(build: Path, *options: str, tree: Path = ROOT) -> str:
    command = [cmake, "-S", str(tree), "-B", str(build), "-DATTNCACHE_BUILD_PYTHON=OFF", *options]
    return run([str(word) for word in command])


def test_every_source_is_built_and_judged_by_what_it_promises() -> None:
    exact, bounded = listed("exact_sources"), listed("bounded_sources")
    assert exact | bounded | HOST == {path.name for path in CUDA_SOURCES.glob("*.cu")}
    assert bounded == BOUNDED
    assert f"set_source_files_properties(${{exact_sources}} PROPERTIES COMPILE_OPTIONS {EXACT})" in CMAKE


def test_all_architectures_are_built_and_the_last_also_as_ptx() -> None:
    *real, last = ARCHITECTURES
    assert f'"{";".join([*(f"{number}-real" for number in real), str(last)])}"' in CMAKE


def test_every_kernel_has_a_budget() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in CUDA_SOURCES.glob("*.cu*"))
    declared = re.findall(r"__global__\s+void\s+__launch_bounds__\((\w+)[^)]*\)\s+(\w+_kernel)\(", text)
    assert len(declared) == len(re.findall(r"__global__", text)), "a kernel is declared in a way that is not read here"
    assert {name for _, name in declared} == set(KERNELS)
    for constant, name in declared:
        source = with_headers(CUDA_SOURCES / KERNELS[name].source)
        of_source = re.findall(rf"constexpr int {constant} = (\d+);", source)
        assert of_source == [str(KERNELS[name].threads)], f"{name}: a block has {of_source} threads"


def test_sources_are_plain_cuda() -> None:
    assert checks.not_plain(CUDA_SOURCES) == []


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library as a user builds it, for one architecture to be quick, without the extension."""
    if find_nvcc() is None:
        pytest.skip(NO_NVCC)
    if cmake is None:
        pytest.skip("no cmake")
    build = tmp_path_factory.mktemp("library")
    named = [f"-DCMAKE_CUDA_COMPILER={find_nvcc()}", "-DATTNCACHE_CUDA_ARCHITECTURES=90"]
    configure(
        build, "-DATTNCACHE_CUDA=ON", "-DATTNCACHE_WARNINGS_AS_ERRORS=ON", *named, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"
    )
    run([str(cmake), "--build", build, "--target", "attncache_cuda", "--parallel", "2"])
    return build / "cpp" / "cuda" / "libattncache_cuda.so"


def test_the_build_uses_the_flags_that_the_checks_use(library: Path) -> None:
    commands = json.loads((library.parents[2] / "compile_commands.json").read_text(encoding="utf-8"))
    by_source = {Path(each["file"]).name: each["command"] for each in commands if each["file"].endswith(".cu")}
    assert set(by_source) == {path.name for path in CUDA_SOURCES.glob("*.cu")}
    for source, command in by_source.items():
        missing = [flag for flag in FLAGS if not flag.startswith("-Xcompiler") and flag not in command]
        assert missing == [], source
        assert (EXACT in command) == (source not in BOUNDED | HOST), source
        assert "fast" not in command, source


def test_the_library_needs_the_system_alone(library: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("no readelf")
    needed = re.findall(r"\(NEEDED\).*\[([^\]]+)\]", run(["readelf", "-d", library]))
    assert needed
    assert {name.partition(".so")[0] for name in needed} <= SYSTEM


def test_the_library_exports_its_interface_alone(library: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    exported = {line.split()[-1] for line in run(["nm", "-D", "--defined-only", library]).splitlines()}
    assert exported == {PREFIX + name for name in FUNCTIONS}


@needs_cmake
def test_without_nvcc_the_build_says_what_to_do(tmp_path: Path) -> None:
    if shutil.which("ninja") is None or shutil.which("c++") is None:
        pytest.skip("no ninja or no c++")
    programs = [f"-DCMAKE_CXX_COMPILER={shutil.which('c++')}", f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}"]
    nowhere = ["-DCMAKE_FIND_ROOT_PATH=/nonexistent", "-DCMAKE_FIND_ROOT_PATH_MODE_PROGRAM=ONLY"]
    words = ["-S", str(ROOT), "-B", str(tmp_path), "-GNinja", "-DATTNCACHE_BUILD_PYTHON=OFF", "-DATTNCACHE_CUDA=ON"]
    environment = {name: value for name, value in os.environ.items() if name not in {"CUDACXX", "CUDA_HOME"}}
    command = [str(cmake), *words, *programs, *nowhere]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "ATTNCACHE_CUDA=ON needs nvcc, and there is none" in said
    assert "pip install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl" in said


@needs_cmake
def test_a_build_without_the_option_never_reads_the_cuda_folder(tmp_path: Path) -> None:
    without = tmp_path / "tree"
    shutil.copytree(ROOT / "cpp", without / "cpp", ignore=shutil.ignore_patterns("cuda"))
    shutil.copy(ROOT / "CMakeLists.txt", without)
    commands = []
    for tree, build in ((ROOT, tmp_path / "with_folder"), (without, tmp_path / "without_folder")):
        configure(build, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", tree=tree)
        text = (build / "compile_commands.json").read_text(encoding="utf-8")
        commands.append(text.replace(str(build), "BUILD").replace(str(tree), "TREE"))
    assert commands[0] == commands[1]
    assert "cpp/cuda" not in commands[1]


def test_the_core_and_its_bindings_include_nothing_of_a_toolkit() -> None:
    sources = [path for folder in ("include", "src", "bindings") for path in (ROOT / "cpp" / folder).rglob("*pp")]
    assert sources
    found = [
        f"{path.name}: {line}"
        for path in sources
        for line in re.findall(r"#include <cuda.*|#include .*cpp/cuda.*", path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_the_installed_extension_holds_no_word_of_the_cuda_runtime() -> None:
    code = Path(_core.__file__).read_bytes()
    assert re.findall(rb"cuda[A-Z]\w+|libcuda|nv_fatbin", code) == []
