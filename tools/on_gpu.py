"""Builds attncache with CUDA for the card of this machine, and lets the card speak: answers, sanitizers, times.

    python tools/on_gpu.py                 # a card, nvcc, a C++ compiler, torch with CUDA and pytest are needed; no network
    python tools/on_gpu.py --dry-run       # without a card: builds for sm_90, asks the emulated library, prints the rest

Parts run one after the other, the most telling first, each with a time limit of its own. `results.json` and `log.txt` go to
the folder of ``--out``; a table of the parts comes last. The exit status is 1 if a part failed, 2 if something it needs
is missing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TESTS = "tests/cuda"
ASKED = tuple(f"{TESTS}/test_{name}.py" for name in ("device_queries", "device_factored", "device_push", "device_out"))
SANITIZED = "bits_of_its_meaning or sizes_around or written_bound or heads_in_groups or strides"
SANITIZERS = {
    "memcheck": ("--leak-check=no",),
    "racecheck": (),
    "initcheck": (),
    "synccheck": (),
}
# Host backtraces hold on to Python's frames, and so to all device memory of a test.
SANITIZING = ("--error-exitcode=99", "--show-backtrace=device")
PASSED, FAILED, NOT_RUN = "passed", "FAILED", "not run"


@dataclass(frozen=True)
class Part:
    """One thing that the card is asked.

    Attributes:
        name: its line in the summary.
        command: what is run.
        limit: seconds it may take.
        why_not: why it cannot run here; None if it can.
        environment: what is added to the environment.
        beside: whether it runs beside the part before it.
    """

    name: str
    command: Sequence[str | Path]
    limit: int
    why_not: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    beside: bool = False


@dataclass
class Outcome:
    """What became of a part; ``said`` is the last line it printed, ``log`` all of them."""

    name: str
    verdict: str
    seconds: float
    said: str
    command: str
    log: str = ""


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="go as far as it goes without a card")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "on_gpu", help="folder of results.json and log.txt"
    )
    parser.add_argument("--only", action="append", metavar="PART", help="one part; may be repeated")
    parser.add_argument("--seconds", type=int, default=420, help="time for all parts together (default 420)")
    parser.add_argument("--installed", action="store_true", help="test the attncache that is installed: build nothing")
    return parser.parse_args()


def said_by(*command: str | Path) -> str | None:
    """What a command prints, or None where there is none or it fails."""
    words = [str(word) for word in command]
    if shutil.which(words[0]) is None:
        return None
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.strip() if done.returncode == 0 else None


def version_of(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def nvcc() -> str | None:
    """The path of nvcc."""
    return said_by(sys.executable, ROOT / TESTS / "compilers.py")


def cpu() -> str:
    """The name of the processor."""
    names = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", names.read_text("utf-8")) if names.exists() else None
    return found[1] if found else platform.machine()


def machine() -> dict[str, Any]:
    """The machine, its driver and the versions of everything that takes part."""
    asked = "name,driver_version,compute_cap,memory.total,clocks.max.sm,clocks.max.mem"
    packages = (
        "numpy torch cupy-cuda13x cupy-cuda12x transformers ml_dtypes pytest hypothesis pybind11 scikit-build-core"
    )
    compiler = nvcc()
    return {
        "card": said_by("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"),
        "system": platform.platform(),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "nvcc": compiler and (said_by(compiler, "--version") or "").splitlines()[-1:],
        "compiler": (said_by("c++", "--version") or "").splitlines()[:1],
        "packages": {name: version for name in packages.split() if (version := version_of(name))},
        "commit": said_by("git", "-C", ROOT, "describe", "--always", "--dirty"),
    }


def missing(needs_card: bool) -> Iterator[str]:
    """What is not here and is needed, and how to have it."""
    if nvcc() is None:
        yield "nvcc: install a CUDA toolkit, or name one by CUDACXX"
    if shutil.which("c++") is None:
        yield "a C++ compiler named c++"
    if shutil.which("cmake") is None:
        yield "cmake"
    for package, least in (("pybind11", (3, 1)), ("scikit-build-core", (1, 1)), ("numpy", (2, 0))):
        version = version_of(package)
        if version is None or tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < least:
            wanted = ".".join(map(str, least))
            yield f"{package} {wanted} or later, which the build needs, got {version}; bring its wheel"
    for module in ("pytest", "hypothesis", "ml_dtypes"):
        if importlib.util.find_spec(module) is None:
            yield f"the package {module}, which the tests need"
    if needs_card:
        if said_by("nvidia-smi", "-L") is None:
            yield "a card: nvidia-smi finds none; --dry-run goes without"
        if said_by(sys.executable, "-c", "import torch; assert torch.cuda.is_available()") is None:
            yield "torch with CUDA"


def architecture() -> str:
    """The compute capability of the card as CMake names it; 90 without a card."""
    found = said_by("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    return found.splitlines()[0].replace(".", "") if found else "90"


def build(target: Path) -> Part:
    """The package with CUDA for one architecture, into a folder of its own."""
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--upgrade"]
    options = (f"-Ccmake.define.ATTNCACHE_CUDA_ARCHITECTURES={architecture()}", "-Ccmake.define.ATTNCACHE_CUDA=ON")
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1), "CUDACXX": nvcc() or ""}
    return Part("build", [*command, "--target", target, *options, "."], 240, environment=environment)


def parts(options: argparse.Namespace, target: Path) -> list[Part]:
    """Everything the card is asked, in order."""
    no_card = "no card: this is a dry run" if options.dry_run else None
    python = (
        {} if options.installed else {"PYTHONPATH": os.pathsep.join([str(target), os.environ.get("PYTHONPATH", "")])}
    )
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=short",
        "-rfs",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:benchmark",
        "-m",
        "",  # those that take minutes, too
    ]
    side_by_side = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    alone = {**python, "ATTNCACHE_DEVICE_ALONE": "" if options.dry_run else "1"}
    times = [sys.executable, "-m", "benchmarks.device", "--json", options.out / "times.json"]
    sanitizer = shutil.which("compute-sanitizer")
    no_sanitizer = no_card or (None if sanitizer else "compute-sanitizer is not on PATH")
    small = [*pytest, TESTS + "/test_device_queries.py", TESTS + "/test_device_factored.py", "-k", SANITIZED]
    checks = [
        Part(
            tool,
            [sanitizer or "compute-sanitizer", "--tool", tool, *SANITIZING, *words, *small],
            120,
            no_sanitizer,
            alone,
            beside=tool != next(iter(SANITIZERS)),
        )
        for tool, words in SANITIZERS.items()
    ]
    return [
        *([] if options.installed else [build(target)]),
        Part("answers", [*pytest, *side_by_side, *ASKED], 150 if no_card is None else 900, environment=alone),
        Part("torch, CuPy, models", [*pytest, TESTS + "/test_real_device.py"], 120, no_card, alone),
        *checks,
        Part("times", times, 150, None, python),
    ]


def started(part: Part, log: Path) -> subprocess.Popen[bytes]:
    """The part's process, a group of its own, writing to a file."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", **part.environment}
    with log.open("wb") as output:
        return subprocess.Popen(
            [str(word) for word in part.command],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def ended(part: Part, process: subprocess.Popen[bytes], log: Path, begin: float, limit: float) -> Outcome:
    """What became of a part, which is stopped at its limit."""
    try:
        status: int | None = process.wait(max(0.0, begin + limit - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        status = None
    text = log.read_text("utf-8", "replace")
    lines = [line for line in text.splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    summaries = [line for line in lines if re.match(r"=+ (ERROR|RACECHECK|LEAK) SUMMARY|\d+ (passed|failed)", line)]
    said = "; ".join(line.strip("= ") for line in summaries[-2:]) or said
    if status is None:
        said = f"stopped at {limit:.0f} s; {said}"
    verdict = PASSED if status == 0 else FAILED
    return Outcome(part.name, verdict, time.monotonic() - begin, said, words_of(part), text)


def words_of(part: Part) -> str:
    """The command as it can be typed."""
    added = " ".join(f"{name}={value}" for name, value in part.environment.items() if value)
    return f"{added} {shlex.join(map(str, part.command))}".strip()


def run(chosen: Sequence[Part], seconds: float, folder: Path) -> Iterator[Outcome]:
    """Run the parts, those that go beside each other at once, within the time for all."""
    end = time.monotonic() + seconds
    at = 0
    while at < len(chosen):
        group = [chosen[at]]
        while at + len(group) < len(chosen) and chosen[at + len(group)].beside:
            group.append(chosen[at + len(group)])
        at += len(group)
        begin = time.monotonic()
        running = []
        for part in group:
            limit = min(part.limit, end - begin)
            why_not = part.why_not or ("no time is left for it" if limit <= 0 else None)
            if why_not is not None:
                yield Outcome(part.name, NOT_RUN if part.why_not else FAILED, 0.0, why_not, words_of(part))
                continue
            log = folder / f"{re.sub(r'[^a-z]+', '-', part.name.lower())}.txt"
            running.append((part, started(part, log), log, limit))
        for part, process, log, limit in running:
            yield ended(part, process, log, begin, limit)
            log.unlink()


def table(outcomes: Sequence[Outcome]) -> str:
    """A line for each part."""
    width = max(len(outcome.name) for outcome in outcomes)
    return "\n".join(f"{o.name:{width}}  {o.verdict:8} {o.seconds:5.0f} s  {o.said}" for o in outcomes)


def main() -> int:
    """Run the command."""
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    facts = machine()
    print(json.dumps(facts, indent=2), flush=True)
    lacking = list(missing(needs_card=not options.dry_run))
    for each in lacking:
        print(f"missing: {each}", flush=True)
    if lacking and not options.dry_run:
        return 2
    target = ROOT / "build" / "on_gpu" / "package"
    chosen = [part for part in parts(options, target) if options.only is None or part.name in options.only]
    outcomes = []
    with (options.out / "log.txt").open("w", encoding="utf-8") as log:
        for outcome in run(chosen, options.seconds if not options.dry_run else 3600, options.out):
            outcomes.append(outcome)
            print(f"{outcome.name}: {outcome.verdict} in {outcome.seconds:.0f} s: {outcome.said}", flush=True)
            print(f"  {outcome.command}", flush=True)
            log.write(f"=== {outcome.name}: {outcome.verdict}\n{outcome.command}\n{outcome.log}\n")
            if outcome.verdict == FAILED:
                print(outcome.log[-6000:], flush=True)
            if outcome.name == "times":
                print(outcome.log, flush=True)
    results = {"machine": facts, "parts": [{**vars(each), "log": each.log[-20000:]} for each in outcomes]}
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(outcomes), flush=True)
    return 1 if any(outcome.verdict == FAILED for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
