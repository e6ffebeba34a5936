"""What was measured on a device, as a table and as JSON, and what it was measured on."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.device_case import Goal
from benchmarks.device_clocks import Way
from benchmarks.table import NONE, aligned, percent, timing_text
from benchmarks.timing import Timing

HEADER = (
    "operation", "shape", "dtype", "time", "attncache", "GB/s", "share of copy", "torch", "torch / ours", "goal", "met",
)  # fmt: skip
WAYS = {"device": "device", "enqueue": "host, enqueued", "complete": "host, to NumPy"}
ASKED = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.draw,temperature.gpu"


@dataclass(frozen=True)
class Measured:
    """What one case cost at one shape and dtype, timed one way.

    Attributes:
        touched, judged: bytes of one call; those whose rate is compared with the copy's.
        expressions: ours and torch's.
    """

    name: str
    shape: str
    dtype: str
    way: Way
    ours: Timing
    torch: Timing
    touched: int
    judged: int
    goal: Goal
    expressions: tuple[str, str]

    @property
    def ratio(self) -> float:
        """How many times as long torch takes."""
        return self.torch.median / self.ours.median

    def share(self, copied: float) -> float | None:
        """How close ours comes to the copy's bytes per second; None for times of the host."""
        return self.judged / self.ours.median / copied if self.way == "device" else None


@dataclass
class Report:
    """Everything measured in a run.

    Attributes:
        about: the machine, by label.
        copied: bytes per second of a copy on the device.
        floor: what the emptiest kernel takes, each way.
        missed: cases that could not be timed, and why.
    """

    about: dict[str, str]
    copied: float = 0.0
    floor: dict[Way, Timing] = field(default_factory=dict)
    results: list[Measured] = field(default_factory=list)
    missed: list[tuple[str, str]] = field(default_factory=list)

    def row(self, result: Measured) -> list[str]:
        """The cells of one result."""
        share = result.share(self.copied)
        is_met = result.goal.met(share, result.ratio)
        rate = (NONE, NONE) if share is None else (f"{result.touched / result.ours.median / 1e9:.3g}", percent(share))
        return [
            result.name,
            result.shape,
            result.dtype,
            WAYS[result.way],
            timing_text(result.ours),
            *rate,
            timing_text(result.torch),
            f"{result.ratio:.3g}",
            NONE if is_met is None else str(result.goal),
            {None: NONE, True: "met", False: "missed"}[is_met],
        ]

    def text(self, *, markdown: bool) -> str:
        """The whole report."""
        bullet = "- " if markdown else ""
        floor = ", ".join(f"{WAYS[way]} {timing_text(timing)}" for way, timing in self.floor.items())
        lines = [f"{label}: {value}" for label, value in self.about.items()]
        lines += [f"copy on the device: {self.copied / 1e9:.4g} GB/s", f"torch's emptiest kernel: {floor}"]
        lines += [f"not timed: {name}: {reason}" for name, reason in self.missed]
        about = "\n".join(bullet + line for line in lines)
        return f"{about}\n\n{aligned([HEADER, *map(self.row, self.results)], markdown=markdown)}"

    def as_json(self) -> dict[str, Any]:
        """Everything, in seconds and bytes."""
        return {
            "about": self.about,
            "copy_bytes_per_second": self.copied,
            "emptiest_kernel": {way: asdict(timing) for way, timing in self.floor.items()},
            "results": [self._result(result) for result in self.results],
            "not_timed": [{"case": name, "reason": reason} for name, reason in self.missed],
        }

    def _result(self, result: Measured) -> dict[str, Any]:
        share = result.share(self.copied)
        return asdict(result) | {
            "share_of_copy": share,
            "torch_by_ours": result.ratio,
            "met": result.goal.met(share, result.ratio),
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


def description(torch: Any, command: Sequence[str]) -> dict[str, str]:
    """Everything that a reader needs to judge or repeat a run on the current device, by label."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    free, total = torch.cuda.mem_get_info()
    return {
        "command": " ".join(["python", "-m", "benchmarks.cuda", *command]),
        "device": f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.multi_processor_count} multiprocessors, {total / 2**30:.0f} GiB of which {free / 2**30:.0f} free",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "python": platform.python_version(),
        **smi(),
    }
