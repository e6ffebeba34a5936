"""The script that lets a card speak, as far as it goes without one: parts, limits, what is missing, the dry run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import attncache.cuda
from tools.on_gpu import FAILED, NOT_RUN, PASSED, ROOT, Part, run

SCRIPT = ROOT / "tools" / "on_gpu.py"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_each_part_has_its_own_verdict_and_its_last_words(tmp_path: Path) -> None:
    parts = [
        Part("good", python("print('one\\n3 passed in 1 s\\n')"), 60),
        Part("bad", python("raise SystemExit('broken')"), 60),
        Part("absent", ["nothing"], 60, why_not="no card"),
    ]
    found = [(outcome.verdict, outcome.said) for outcome in run(parts, 60, tmp_path)]
    assert found == [(PASSED, "3 passed in 1 s"), (FAILED, "broken"), (NOT_RUN, "no card")]
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_stopped_at_its_limit_with_all_that_it_started(tmp_path: Path) -> None:
    code = "import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    begin = time.monotonic()
    (outcome,) = run([Part("slow", python(code), 2)], 60, tmp_path)
    assert (outcome.verdict, outcome.said) == (FAILED, "stopped at 2 s; begun")
    assert time.monotonic() - begin < 30


def test_what_no_time_is_left_for_fails_by_name(tmp_path: Path) -> None:
    parts = [Part("first", python("import time; time.sleep(1)"), 60), Part("second", python(""), 60)]
    assert [outcome.verdict for outcome in run(parts, 0.5, tmp_path)] == [FAILED, FAILED]


def test_parts_go_beside_each_other(tmp_path: Path) -> None:
    wait = "import pathlib, time\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.01)"
    there = str(tmp_path / "there")
    parts = [
        Part("waits", python(wait.format(there)), 60),
        Part("comes", python(f"open({there!r}, 'w')"), 60, beside=True),
    ]
    assert [outcome.verdict for outcome in run(parts, 60, tmp_path)] == [PASSED, PASSED]


def test_a_dry_run_prints_the_command_lines_of_the_sanitizers(tmp_path: Path) -> None:
    words = ["--dry-run", "--installed", "--only", "memcheck", "--only", "racecheck", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "compute-sanitizer --tool racecheck --error-exitcode=99 --show-backtrace=device" in done.stdout
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert [(part["name"], part["verdict"]) for part in results["parts"]] == [
        ("memcheck", NOT_RUN),
        ("racecheck", NOT_RUN),
    ]
    assert results["machine"]["python"].startswith("3.")


def test_what_is_missing_is_said_before_anything_is_run(tmp_path: Path) -> None:
    if attncache.cuda.why_not() is None:
        pytest.skip("a device is here: the script would run")
    done = subprocess.run([sys.executable, SCRIPT, "--out", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout
    assert "missing: a card" in done.stdout
    assert not (tmp_path / "results.json").exists()
