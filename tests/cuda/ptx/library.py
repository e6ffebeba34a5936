"""The library as nvcc builds it, host code and all, on a device that interprets the PTX from the same compilation.

Only machine code is missing: the library is linked to `runtime.cpp` in place of the CUDA runtime, so the real launchers
choose grids, blocks and arguments, and what they launch comes here.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuda.calls import Device as Calls
from cuda.compilers import CUDA_SOURCES, find_gxx, find_nvcc, run
from cuda.machine_code import compile_flags

from .faults import Fault
from .launch import Device, packed

ARCHITECTURES = (75, 90, 120)  # of which the PTX is interpreted: the oldest, a middle one, and nvcc's other back end
TO_DEVICE, TO_HOST = 1, 2  # of cudaMemcpyKind
LAUNCH_FAILURE = 719  # of cudaError_t
RUNTIME = Path(__file__).with_name("runtime.cpp")
LINE_INFO = "-lineinfo"  # so that faults name lines of the sources; changes no instruction


@dataclass(frozen=True, eq=False)
class Built:
    """A library and the PTX of its sources with kernels, by architecture and by the source's name without its end."""

    library: Path
    ptx: dict[int, dict[str, str]]


def plain(name: str) -> str:
    """A kernel's mangled name without what depends on where its source lies."""
    return re.sub(r"_GLOBAL__N__[0-9a-f]+_(\d+_\w+?_cu)_[0-9a-f]{8}", r"_GLOBAL__N__\1", name)


def kernel_of(name: str) -> str:
    """A kernel's own name: `<what>_kernel`."""
    found = re.search(r"\d([a-z_]+_kernel)", name)
    return found[1] if found else name


def build(folder: Path, architectures: Sequence[int] = ARCHITECTURES) -> Built:
    """Compile every CUDA source for these architectures, and link them into a library in `folder`."""
    nvcc, gxx = find_nvcc(), find_gxx()
    assert nvcc is not None
    assert gxx is not None
    targets = [f"-gencode=arch=compute_{number},code=compute_{number}" for number in architectures]

    def compiled(source: Path) -> Path:
        kept = folder / source.stem
        kept.mkdir(parents=True)
        words = [*compile_flags(source), LINE_INFO, *targets, "--keep", "--keep-dir", kept]
        run([nvcc, *words, "-c", source, "-o", kept / "code.o"])
        return kept

    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(compiled, sorted(CUDA_SOURCES.glob("*.cu"))))
    runtime = folder / "libinterpreter.so"
    run([gxx, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", RUNTIME, "-o", runtime])
    library = folder / "libattncache_cuda_interpreted.so"
    objects = [kept / "code.o" for kept in folders]
    links = ["-Wl,--no-undefined", f"-Wl,-rpath,{folder}", runtime]
    run([gxx, "-shared", *objects, *links, "-o", library])
    return Built(library, {number: texts(folders, number) for number in architectures})


def texts(folders: Sequence[Path], architecture: int) -> dict[str, str]:
    """The PTX of one architecture; where it is the only one, nvcc leaves it out of the file's name."""
    found = {}
    for kept in folders:
        named = sorted(kept.glob(f"*.compute_{architecture}.ptx")) or sorted(kept.glob("*.ptx"))
        text = "".join(path.read_text(encoding="utf-8") for path in named)
        found |= {kept.name: text} if ".entry" in text else {}
    return found


def ptx_of(source: Path, architecture: int, folder: Path) -> str:
    """The PTX of one source alone, for code that has a bug planted in it."""
    nvcc = find_nvcc()
    assert nvcc is not None
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{source.stem}.ptx"
    run([nvcc, *compile_flags(source), LINE_INFO, f"-arch=compute_{architecture}", "-ptx", source, "-o", out])
    return out.read_text(encoding="utf-8")


_ALLOCATE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p))
_FREE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_COPY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_SHAPE = ctypes.POINTER(ctypes.c_uint)
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, _SHAPE, _SHAPE, ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t
)


class Hooks(ctypes.Structure):
    """The struct of runtime.cpp."""

    _fields_ = (("allocate", _ALLOCATE), ("free", _FREE), ("copy", _COPY), ("launch", _LAUNCH))


class Interpreted(Calls):
    """The C interface of a library whose kernels are interpreted; a call raises the Fault that it runs into."""

    def __init__(self, built: Built, modules: Iterable[str], seed: int = 0) -> None:
        super().__init__(ctypes.CDLL(str(built.library)))
        self.runtime = ctypes.CDLL(str(built.library.parent / "libinterpreter.so"))
        self.device = Device(seed)
        for text in modules:
            self.device.load(text)
        self.kernels = {plain(name): name for name in self.device.kernels}
        self.most_blocks: int | None = (
            None  # kernels must answer over any number of blocks: of a launch, at most so many
        )
        self.fault: Exception | None = None
        self.hooks = Hooks(_ALLOCATE(self.allocate), _FREE(self.free), _COPY(self.copy), _LAUNCH(self.launch))

    def call(self, name: str, *arguments: Any) -> None:
        self.runtime.interpreter_set_hooks(ctypes.byref(self.hooks))
        self.fault = None
        try:
            super().call(name, *arguments)
        finally:
            if self.fault is not None:
                raise self.fault

    def note(self, error: Exception) -> int:
        """Keep what a hook raised until the call is back in Python."""
        self.fault = self.fault or error
        return LAUNCH_FAILURE

    def allocate(self, n_bytes: int, memory: Any) -> int:
        memory[0] = self.device.memory.allocate(n_bytes)
        return 0

    def free(self, memory: int) -> int:
        try:
            self.device.memory.free(memory)
        except Fault as fault:
            return self.note(fault)
        return 0

    def copy(self, to: int, origin: int, n_bytes: int, kind: int) -> int:
        try:
            if kind == TO_DEVICE:
                self.device.memory.write(to, ctypes.string_at(origin, n_bytes))
            elif kind == TO_HOST:
                ctypes.memmove(to, self.device.memory.read(origin, n_bytes), n_bytes)
            else:
                raise Fault("unsupported", f"a copy of kind {kind}")
        except Exception as error:  # noqa: BLE001 -- a callback from C must not raise
            return self.note(error)
        return 0

    def launch(self, name: bytes, grid: Any, block: Any, arguments: Any, shared_bytes: int) -> int:
        try:
            kernel = self.device.kernels[self.kernels[plain(os.fsdecode(name))]]
            values = [ctypes.string_at(arguments[i], each.size) for i, each in enumerate(kernel.parameters)]
            blocks = min(grid[0], self.most_blocks or grid[0]), grid[1], grid[2]
            threads = block[0], block[1], block[2]
            self.device.launch(kernel.name, blocks, threads, packed(kernel, values), shared_bytes=shared_bytes)
        except Exception as error:  # noqa: BLE001 -- a callback from C must not raise
            return self.note(error)
        return 0
