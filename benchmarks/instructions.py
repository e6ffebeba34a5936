"""The guard of the hot calls: instructions per call, counted by valgrind, against a budget kept beside this file.

Times say little on a busy machine; these counts repeat to the instruction. Each call runs in a loop of n and in one of
2n; the difference divided by n is a call with its share of the loop, and the same for an empty loop is taken off.
Counts depend on the interpreter, so there is a budget for each version and processor that was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import attncache
from benchmarks.core.table import aligned
from benchmarks.hot_loops import EMPTY, LOOPS, YARDSTICKS

ROOT = Path(__file__).resolve().parent.parent
BUDGET = Path(__file__).with_suffix(".json")
COUNTED = 512  # n; what is left of start-up effects is below an instruction per call
TOLERANCE = 0.1  # compilers and NumPy versions differ by a few percent; a fast path that is lost costs far more


def simd_level() -> str:
    """The fastest level that valgrind can run; it knows no AVX-512."""
    return [level for level in attncache.simd.available() if level != "avx512"][-1]


def combination(level: str) -> str:
    """What a budget belongs to."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return f"{platform.python_implementation()} {version}, {platform.machine()}, {level}"


def measured_with() -> dict[str, str]:
    """What else moves the counts a little."""
    return {"python": f"{platform.python_version()}, {platform.python_compiler()}", "numpy": np.__version__}


def count_loops(level: str, folder: Path) -> None:
    """Run the loops under callgrind, which leaves one file in the folder for each part between two markers."""
    fixed = {"PYTHONHASHSEED": "0", "ATTNCACHE_SIMD": level, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    tool = ["valgrind", "-q", "--tool=callgrind", "--cache-sim=no", "--dump-before=getppid"]
    command = [*tool, f"--callgrind-out-file={folder / 'part'}", sys.executable]
    command += ["-m", "benchmarks.hot_loops", str(COUNTED)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **fixed})


def per_call(parts: Sequence[int], names: Sequence[str], count: int) -> dict[str, int]:
    """Instructions of a call by name. parts: for each name what preceded its loops, the loop of count, the loop of twice."""
    if len(parts) != 3 * len(names):
        raise ValueError(f"expected {3 * len(names)} parts for {len(names)} loops, got {len(parts)}")
    loops = {name: (parts[3 * i + 2] - parts[3 * i + 1]) / count for i, name in enumerate(names)}
    return {name: round(loop - loops[EMPTY]) for name, loop in loops.items() if name != EMPTY}


def measure(level: str) -> dict[str, int]:
    """Instructions of a call by name."""
    with tempfile.TemporaryDirectory() as folder:
        count_loops(level, Path(folder))
        numbered = sorted(Path(folder).glob("part.*"), key=lambda file: int(file.suffix[1:]))
        totals = [re.search(r"^totals: (\d+)", file.read_text(encoding="utf-8"), re.MULTILINE) for file in numbered]
        return per_call([int(found[1]) for found in totals if found], list(LOOPS), COUNTED)


def judged(measured: Mapping[str, int], budget: Mapping[str, int] | None) -> tuple[str, bool]:
    """A table of measured and allowed, and whether no call is above its budget; without any budget all may pass."""
    rows = [["call", "instructions", "budget", "verdict"]]
    passed = True
    for name, count in measured.items():
        allowed = (budget or {}).get(name)
        if name in YARDSTICKS:
            verdict = "yardstick"
        elif budget is None:
            verdict = "NOT CHECKED"
        elif allowed is None:
            verdict, passed = "HAS NO BUDGET", False
        elif count > allowed * (1 + TOLERANCE):
            verdict, passed = "OVER", False
        else:
            verdict = "less: --update keeps it" if count < allowed * (1 - TOLERANCE) else "ok"
        share = "-" if allowed is None else f"{allowed} ({count / allowed - 1:+.1%})"
        rows.append([name, str(count), share, verdict])
    return aligned(rows, markdown=False), passed


def read_budgets(file: Path) -> dict[str, Any]:
    """Budgets by combination; none if there is no file yet."""
    budgets: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return budgets


def write_budget(file: Path, combined: str, measured: Mapping[str, int]) -> None:
    """Make what was measured the budget of this combination; the others stay."""
    counts = {name: count for name, count in measured.items() if name not in YARDSTICKS}
    budgets = read_budgets(file) | {combined: {"measured_with": measured_with(), "instructions": counts}}
    file.write_text(json.dumps(dict(sorted(budgets.items())), indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None, budget_file: Path = BUDGET) -> int:
    """Count, then compare or rewrite; 1 if a call is over its budget, 2 if nothing can be counted here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--update", action="store_true", help="make what is measured the budget of this Python")
    options = parser.parse_args(arguments)
    if shutil.which("valgrind") is None:
        print("valgrind is not installed: nothing can be counted", file=sys.stderr)
        return 2
    level = simd_level()
    combined = combination(level)
    measured = measure(level)
    if options.update:
        write_budget(budget_file, combined, measured)
    budget = read_budgets(budget_file).get(combined)
    report, passed = judged(measured, None if budget is None else budget["instructions"])
    print(f"instructions of a call, {combined}\n\n{report}\n")
    if budget is None:
        print(f"!!! NOT CHECKED: no budget for {combined}; python -m benchmarks.instructions --update makes one")
    elif budget["measured_with"] != measured_with():
        print(f"the budget was measured with {budget['measured_with']}, this is {measured_with()}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
