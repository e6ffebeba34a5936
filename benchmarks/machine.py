"""What the numbers were measured on: processor, memory, versions, SIMD level, threads, command."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

import attncache
from benchmarks.worlds import torch_or_none


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


def description(threads: int, arguments: Sequence[str]) -> dict[str, str]:
    """Everything that a reader needs to judge or repeat the run, by label."""
    torch = torch_or_none()
    return {
        "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
        "machine": f"{processor()}, {usable_cores()} cores, {memory()}",
        "system": f"{platform.system()} {platform.release()}, load before the run {load()}",
        "python": platform.python_version() + ("" if sys.flags.optimize == 0 else " -O"),
        "attncache": f"{metadata.version('attncache')}, SIMD level {attncache.simd.active()}, "
        f"{attncache.get_num_threads()} threads",
        "numpy": f"{np.__version__}, 1 thread",
        "torch": "not installed"
        if torch is None
        else f"{torch.__version__}, {threads} threads or 1, the faster of the two for each operation",
    }
