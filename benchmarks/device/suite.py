"""The command that measures layers on a GPU against torch: ``python -m benchmarks.device``.

Every answer is compared with the reference first; what is wrong or fails is said and not timed. Without a device it says why
and measures nothing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from attncache import cuda
from benchmarks.core.case import TORCH, Case, World
from benchmarks.core.machine import torch_or_none
from benchmarks.core.run import Suite
from benchmarks.core.table import Report
from benchmarks.dense.world import Size
from benchmarks.device import clocks
from benchmarks.device.cases import CASES, FACTORED
from benchmarks.device.world import DenseDeviceWorld, FactoredDeviceWorld, Place
from benchmarks.factored.world import Shape

MIDDLE, LARGE, SMALL = Size(32, 2048, 3), Size(32, 8192, 2), Size(12, 1024, 10)  # layers: beyond the caches together
LONG = Shape(32, 8, 128, 64, 131072, causal=False)
# What matters most comes first: a run may be cut short.
FULL: tuple[tuple[Size | Shape, str], ...] = (
    (MIDDLE, "float16"), (LONG, "float16"), (LARGE, "float16"), (SMALL, "float16"),
    (LARGE, "float32"), (MIDDLE, "bfloat16"), (LONG, "bfloat16"), (MIDDLE, "float32"),
    (LARGE, "bfloat16"), (SMALL, "float32"), (SMALL, "bfloat16"),
)  # fmt: skip
TINY, TINY_LONG = Size(2, 301, 2), Shape(4, 2, 16, 20, 300, causal=False)
QUICK: tuple[tuple[Size | Shape, str], ...] = (
    (TINY, "float16"), (TINY, "float32"), (TINY, "bfloat16"), (TINY_LONG, "float16"), (TINY_LONG, "bfloat16"),
)  # fmt: skip
ASKED = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.draw,temperature.gpu"


class DeviceSuite(Suite):
    """Layers on a device beside torch. place, layers: those of the current device if absent."""

    module = "benchmarks.device"
    title = "Layers on a GPU in full"
    contenders = (TORCH,)
    budget = 100.0

    def __init__(self, place: Place | None = None, layers: Sequence[tuple[Size | Shape, str]] | None = None) -> None:
        self.place, self.layers = place, layers

    def cases(self, _options: argparse.Namespace) -> Sequence[Case]:
        """Each query that a device answers."""
        return CASES

    def placed(self, options: argparse.Namespace) -> Place:
        """The device."""
        if self.place is None:
            torch: Any = torch_or_none()
            plans = clocks.QUICK if options.quick else clocks.FULL
            empty = partial(torch.empty, dtype=torch.float32, device="cuda")
            self.place = Place(torch, "cuda", lambda tensor: tensor, empty, plans, clocks.device_clocks(torch))
        return self.place

    def worlds(self, options: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], World]]]:
        """Layers of both kinds."""
        place = self.placed(options)
        for layer, dtype in self.layers or (QUICK if options.quick else FULL):
            place.free()
            if isinstance(layer, Size):
                yield "", dtype, partial(DenseDeviceWorld, place, layer, dtype)
            else:
                yield FACTORED, dtype, partial(FactoredDeviceWorld, place, layer, dtype)

    def measure_limits(self, report: Report, options: argparse.Namespace) -> None:
        """The copy's bandwidth, and the emptiest kernel."""
        if not report.limits.rates:
            place = self.placed(options)
            clocks.measure_limits(report.limits, place.torch, place.device, place.plans, place.clocks)

    def why_not(self) -> str | None:
        """Why nothing can be measured here; None if it can."""
        torch = torch_or_none()
        if torch is None:
            return "torch is not installed"
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} finds no CUDA device"
        return cuda.why_not()

    def described(self, options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, str]:
        """The machine and the current device."""
        torch: Any = torch_or_none()
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        free, total = torch.cuda.mem_get_info()
        return {
            **super().described(options, arguments),
            "device": f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
            f"{properties.multi_processor_count} multiprocessors, {total / 2**30:.0f} GiB of which {free / 2**30:.0f} free",
            "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
            **smi(),
        }


def smi() -> dict[str, str]:
    """What nvidia-smi says of the devices, by label; nothing if it cannot be asked."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={ASKED}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {f"nvidia-smi ({ASKED})": done.stdout.strip()} if done.returncode == 0 else {}
