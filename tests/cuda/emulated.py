"""The CUDA library without CUDA: the kernels' own sources, compiled by g++ against tests/cuda/shim, as a shared library.

Same C interface as the real one (cpp/include/attncache/cuda.h). Device memory is an arena that the host cannot touch; each
thread of a block is a fiber, run in a seeded random order; barriers and warp operations that diverge, races, accesses
outside of memory or off their alignment, and reads of what nobody wrote end a launch with a status and words. What it
cannot show: occupancy, speed, and what real hardware makes of code that races with nothing.

`PYTHONPATH=tests python tests/cuda/emulated.py FOLDER` builds the library and prints its path.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cuda.compilers import NO_GXX, find_gxx

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "tests" / "cuda" / "shim"
CUDA = ROOT / "cpp" / "cuda"
NAME = "libattncache_cuda_emulated.so"
# No contraction and no aliasing rules, as in nvcc; the fibers' switches are what costs time.
FLAGS = ("-std=c++20", "-O2", "-g", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing",
         "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")  # fmt: skip
WATCHED = ("-fsanitize=thread", "-O1")  # a call before each access of a kernel, which shim/races.cpp answers
COMPLETE = ("-Wl,-z,defs",)  # libtsan is not linked
# Grids of a few blocks and little scratch, so that small requests stride over grids and come in parts.
LIMITS = ("-DATTNCACHE_CUDA_MAX_BLOCKS=5", "-DATTNCACHE_CUDA_SCRATCH_BYTES=65536")


def build(folder: Path, *, sanitize: Sequence[str] = (), kernels: Path = CUDA, like: Path | None = None) -> Path:
    """Compiles every .cu file of `kernels` and the shim, and links them into a library in `folder`.

    sanitize: g++'s sanitizers; without, the shim watches for races, which g++ allows beside none of them.
    like: the folder of a build of the sources as they are; files that `kernels` has unchanged are not compiled again.
    """
    compiler = find_gxx()
    if compiler is None:
        raise RuntimeError(NO_GXX)
    folder.mkdir(parents=True, exist_ok=True)
    sanitizers = [f"-fsanitize={','.join(sanitize)}", "-fno-sanitize-recover=all"] if sanitize else []
    includes = [f"-I{SHIM}", f"-I{kernels}", f"-I{ROOT / 'cpp' / 'include'}"]

    def compiled(source: Path) -> str:
        is_shim = source.parent == SHIM
        if like is not None and (is_shim or with_headers(source) == with_headers(CUDA / source.name)):
            return str(like / f"{source.name}.o")
        built = str(folder / f"{source.name}.o")
        watched = sanitizers if is_shim or sanitize else WATCHED
        run([str(compiler), *FLAGS, *LIMITS, *watched, *includes, "-x", "c++", "-c", str(source), "-o", built])
        return built

    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = list(pool.map(compiled, [*sorted(kernels.glob("*.cu")), *sorted(SHIM.glob("*.cpp"))]))
    library = folder / NAME
    run([str(compiler), "-shared", *(sanitizers or COMPLETE), *objects, "-o", str(library)])
    return library


def with_headers(source: Path) -> str:
    """A source with what it includes of its folder."""
    text = source.read_text(encoding="utf-8") if source.exists() else ""
    return text + "".join(
        map(with_headers, (source.parent / name for name in re.findall(r'#include "(\w+\.cuh)"', text)))
    )


def run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def preloaded(sanitize: Sequence[str]) -> dict[str, str]:
    """The environment in which a Python that is not instrumented can load a sanitized library."""
    if "address" not in sanitize:
        return {"UBSAN_OPTIONS": "print_stacktrace=1"}
    names = ("libasan.so", "libstdc++.so")  # the second too, so that the first finds what throws
    asked = [[str(find_gxx()), f"-print-file-name={name}"] for name in names]
    paths = [subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() for words in asked]
    # Python keeps memory for good, and a stack that a fiber left for another one is no use after return.
    options = "detect_leaks=0:detect_stack_use_after_return=0"
    return {"LD_PRELOAD": " ".join(paths), "ASAN_OPTIONS": options, "UBSAN_OPTIONS": "print_stacktrace=1"}


def shared_variables(library: Path) -> list[tuple[int, int]]:
    """The offset and the size of every __shared__ variable, which the emulation makes a thread's own."""
    symbols = [line.split() for line in run(["readelf", "-sW", str(library)]).splitlines()]
    return [(int(words[1], 16), int(words[2])) for words in symbols if len(words) == 8 and words[3] == "TLS"]


def load(library: Path) -> ctypes.CDLL:
    """The library with the types of the shim's own functions."""
    loaded = ctypes.CDLL(str(library))
    loaded.attncache_cuda_message.restype = ctypes.c_char_p
    loaded.shim_calls.restype = loaded.shim_words.restype = ctypes.c_char_p
    loaded.shim_live_bytes.restype = ctypes.c_size_t
    loaded.shim_leap.argtypes = (ctypes.c_size_t,)
    loaded.shim_fail.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_int)
    loaded.shim_barriers.restype = ctypes.c_char_p
    loaded.shim_ignore.argtypes = (ctypes.c_char_p,)
    loaded.shim_shared.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
    for variable in shared_variables(library):
        loaded.shim_shared(*variable)
    return loaded


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
