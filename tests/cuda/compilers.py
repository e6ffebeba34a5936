"""Where this machine keeps NVIDIA's compiler and disassembler, for every test and build that needs them.

Looked for in this order: what `CUDACXX` names, `PATH`, `CUDA_HOME`, `/usr/local/cuda`, and the wheels
`nvidia-cuda-nvcc`, `nvidia-cuda-crt`, `nvidia-nvvm`, `nvidia-cuda-runtime` and `nvidia-cuda-cccl` of this Python environment
(`nvidia-cuda-cuobjdump` and `nvidia-cuda-nvdisasm` for the machine code). No GPU and no driver is needed.

`python tests/cuda/compilers.py` prints the path of nvcc, or says on stderr what is missing and exits with 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

CUDA_SOURCES = Path(__file__).resolve().parents[2] / "cpp" / "cuda"
ARCHITECTURES = (75, 80, 90, 100, 120)  # those of cpp/cuda/CMakeLists.txt; test_build.py compares them
NO_NVCC = (
    "no nvcc: not named by CUDACXX, nor on PATH, in CUDA_HOME, in /usr/local/cuda or in this Python environment; "
    "`pip install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl` brings one"
)
NO_DISASSEMBLER = (
    "no cuobjdump with nvdisasm, so machine code is not read: "
    "`pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm` brings them"
)
NO_GXX = "no g++: the kernels are emulated with it"
OTHER_LIBRARY = "ATTNCACHE_EMULATED_LIBRARY"  # names one with a planted bug, which the tests are to see
DEVICE_ALONE = "ATTNCACHE_DEVICE_ALONE"  # if set, nothing is emulated: tests run on a real device or not at all


def folders() -> Iterator[Path]:
    """The folders in which toolkits keep their programs, in the order in which they are asked."""
    if os.environ.get("CUDACXX"):
        yield Path(os.environ["CUDACXX"]).parent
    yield from (Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry)
    if os.environ.get("CUDA_HOME"):
        yield Path(os.environ["CUDA_HOME"]) / "bin"
    yield Path("/usr/local/cuda/bin")
    # purelib of this environment, and of those that it sees through .pth files
    packages = [Path(sysconfig.get_path("purelib")), *(Path(entry) for entry in sys.path if entry)]
    for folder in dict.fromkeys(packages):
        yield from sorted(folder.glob("nvidia/cu[0-9]*/bin"), reverse=True)


def find(program: str) -> Path | None:
    """The first executable of that name."""
    found = (shutil.which(program, path=str(folder)) for folder in folders())
    return next((Path(path) for path in found if path), None)


@cache
def find_nvcc() -> Path | None:
    """NVIDIA's compiler, or None."""
    named = os.environ.get("CUDACXX")
    return Path(named) if named else find("nvcc")


@cache
def find_cuobjdump() -> Path | None:
    """The program that prints machine code (SASS), or None; it needs nvdisasm beside it."""
    for folder in folders():
        if all(shutil.which(program, path=str(folder)) for program in ("cuobjdump", "nvdisasm")):
            return folder / "cuobjdump"
    return None


@cache
def find_gxx() -> Path | None:
    """The host compiler that builds the emulated kernels, or None."""
    found = shutil.which("g++")
    return Path(found) if found else None


def run(command: list[str | Path]) -> str:
    """What a command prints, both streams; a RuntimeError with all of it if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


if __name__ == "__main__":
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit(NO_NVCC)
    print(nvcc)
