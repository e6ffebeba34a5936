"""What the numbers were measured on, for every report: processor, memory, versions, SIMD level, threads, command."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np

import attncache
from benchmarks.core.timing import Calls, Sweep

TORCH_ALONE = "torch, 1 thread"  # torch's expression once more: threads cost more than they bring to small tensors


def torch_or_none() -> ModuleType | None:
    """The torch module, or None where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None


def version_of(package: str) -> str:
    """The version of an optional package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def pin_threads(threads: int | None) -> int:
    """Give attncache and torch the same number of threads, and return it."""
    if threads is not None:
        attncache.set_num_threads(threads)
    count: int = attncache.get_num_threads()
    torch = torch_or_none()
    if torch is not None:
        torch.set_num_threads(count)
    return count


def pinned(sweeps: Mapping[str, Sweep], torch: ModuleType | None, threads: int) -> dict[str, Sweep]:
    """The sweeps with as many threads as their names say ("torch, 1 thread"); torch's with ``threads`` if they do not.

    Setting them takes about a microsecond of a whole sample.
    """
    found = dict(sweeps)
    for name, sweep in sweeps.items():
        library, _, how = name.partition(", ")
        counted = re.fullmatch(r"(\d+) threads?", how)
        if library == "torch" and torch is not None:
            found[name] = with_threads(sweep, torch.set_num_threads, int(counted[1]) if counted else threads)
        elif library == "attncache" and counted:
            found[name] = with_threads(sweep, attncache.set_num_threads, int(counted[1]))
    return found


def with_threads(sweep: Sweep, set_num_threads: Callable[[int], None], threads: int) -> Sweep:
    """The sweep with a library's thread count set first."""

    def run(calls: Calls) -> None:
        set_num_threads(threads)
        sweep(calls)

    return run


def processor() -> str:
    """The processor's model name, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> str:
    """Installed memory."""
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError, AttributeError):
        return "not known"


def load() -> str:
    """How busy the machine was with everything during the last minute."""
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "not known"


def description(module: str, threads: int, arguments: Sequence[str]) -> dict[str, str]:
    """Everything that a reader needs to judge or repeat the run, by label."""
    torch = torch_or_none()
    return {
        "command": shlex.join(["python", "-m", module, *shown(arguments)]),
        "machine": f"{processor()}, {usable_cores()} cores, {memory()}",
        "system": f"{platform.system()} {platform.release()}, load before the run {load()}",
        "python": platform.python_version() + ("" if sys.flags.optimize == 0 else " -O"),
        "attncache": f"{metadata.version('attncache')}, SIMD level {attncache.simd.active()}, {threads} threads",
        "numpy": f"{np.__version__}, 1 thread",
        "torch": "not installed"
        if torch is None
        else f"{torch.__version__}, {threads} threads or 1, the faster of the two for each operation",
    }


def shown(arguments: Sequence[str]) -> list[str]:
    """The arguments without the places of folder and file, which say nothing about the numbers."""
    kinds = {"--folder": "DIR", "--json": "FILE", "--write": "FILE"}
    return [kinds.get(before, argument) for before, argument in zip(("", *arguments), arguments, strict=False)]
