"""What nvcc makes of a kernel: its PTX, its machine code (SASS) and what ptxas says it needs, by kernel name.

Kernels are named `<what>_kernel`; a template's instances are kept apart by their mangled names. The flags are those of
cpp/cuda/CMakeLists.txt (test_build.py compares them). Nothing here needs a GPU.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from cuda.budgets import BOUNDED, HOST
from cuda.compilers import CUDA_SOURCES, find_cuobjdump, find_nvcc, run

FLAGS = ("-O3", "-DNDEBUG", "-std=c++20", "--Werror=all-warnings", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra")
EXACT = "-fmad=false"  # for the sources that promise bits


@dataclass(frozen=True)
class Needs:
    """What ptxas says that a kernel takes: registers of a thread; bytes of shared memory, of stack and of spills."""

    registers: int
    shared: int
    stack: int
    spilled: int


@dataclass
class Kernel:
    """One compiled kernel: instructions of its PTX and, where it can be read, of its machine code."""

    mangled: str
    needs: Needs
    ptx: list[str] = field(default_factory=list)
    sass: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The kernel's own name, without namespaces and template arguments."""
        found = re.search(r"\d([a-z_]+_kernel)", self.mangled)
        return found.group(1) if found else self.mangled

    def counts(self, pattern: str) -> tuple[int, int]:
        """How many instructions match, in PTX and in machine code."""
        return sum(bool(re.match(pattern, line)) for line in self.ptx), sum(
            bool(re.match(pattern, line)) for line in self.sass
        )


def compile_flags(source: Path) -> list[str]:
    """The flags of one source."""
    is_exact = source.name not in BOUNDED | HOST
    return [*FLAGS, f"-I{CUDA_SOURCES.parent / 'include'}", *([EXACT] if is_exact else [])]


def copied(folder: Path, *edits: tuple[str, str, str]) -> Path:
    """The CUDA sources copied into a folder, with edits: file, text that stands there once, what to put there."""
    shutil.copytree(CUDA_SOURCES, folder)
    for name, before, after in edits:
        text = (folder / name).read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{name} holds {text.count(before)} times, not once: {before}"
        (folder / name).write_text(text.replace(before, after), encoding="utf-8")
    return folder


def compiled_folder(folder: Path, architecture: int, work: Path, chosen: Sequence[Path] | None = None) -> list[Kernel]:
    """All kernels of a folder's sources, or of some of them, for one architecture."""
    chosen = sorted(folder.glob("*.cu")) if chosen is None else chosen
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(compiled, source, architecture, work / source.stem) for source in chosen]
        return [kernel for job in jobs for kernel in job.result()]


def compiled(source: Path, architecture: int, folder: Path, *, may_fuse: bool = False) -> list[Kernel]:
    """The kernels of a source for one architecture; files go into `folder`, which must be its own.

    may_fuse: leave out the flag that keeps products and sums apart, as only a planted bug does.
    """
    nvcc = find_nvcc()
    assert nvcc is not None
    folder.mkdir(parents=True)
    cubin = folder / "code.cubin"
    keep = ["--keep", "--keep-dir", folder]
    flags = [flag for flag in compile_flags(source) if not (may_fuse and flag == EXACT)]
    words = [*flags, f"-arch=sm_{architecture}", "-Xptxas=-v", *keep, "-cubin", source, "-o", cubin]
    kernels = {kernel.mangled: kernel for kernel in needs_in(run([nvcc, *words]))}
    if not kernels:
        return []
    for mangled, instructions in ptx_of((folder / f"{source.stem}.ptx").read_text(encoding="utf-8")).items():
        kernels[mangled].ptx = instructions
    cuobjdump = find_cuobjdump()
    if cuobjdump is not None:
        for mangled, instructions in sass_of(run([cuobjdump, "-sass", cubin])).items():
            kernels[mangled].sass = instructions
    return list(kernels.values())


def needs_in(said: str) -> list[Kernel]:
    """Reads what `ptxas -v` says."""
    found = []
    for part in re.split(r"Compiling entry function ", said)[1:]:
        used = {word: int(number) for number, word in re.findall(r"(\d+) (bytes smem|bytes stack|bytes spill)", part)}
        spilled = sum(int(number) for number in re.findall(r"(\d+) bytes spill", part))
        registers = re.search(r"Used (\d+) registers", part)
        assert registers, f"ptxas says something else than it did: {part}"
        needs = Needs(int(registers[1]), used.get("bytes smem", 0), used.get("bytes stack", 0), spilled)
        found.append(Kernel(part.split("'")[1], needs))
    return found


def ptx_of(text: str) -> dict[str, list[str]]:
    """The instructions of each entry of a PTX file, without labels, declarations and guards."""
    assert not re.search(r"^\s*\.func", text, re.MULTILINE), "a function was not inlined: its code would not be checked"
    entries = re.split(r"\.entry ", text)[1:]
    found = {}
    for entry in entries:
        lines = (re.sub(r"^@!?%p\d+\s+", "", line.strip()) for line in entry[entry.index("{") :].splitlines())
        found[entry[: re.search(r"\W", entry).start()]] = [line for line in lines if re.match(r"[a-z]", line)]  # type: ignore[union-attr]
    return found


def sass_of(text: str) -> dict[str, list[str]]:
    """The instructions of each function in what cuobjdump prints, without addresses and guards."""
    found = {}
    for part in text.split("Function : ")[1:]:
        instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^;]*);", part)
        found[part.split()[0]] = instructions
    return found
