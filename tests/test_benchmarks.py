"""The benchmarks themselves: complete, able to run to the end, and unwilling to time a wrong answer.

Covered at tiny sizes: every registered query has a case, the command's output, planted wrong answers.
Not covered: any number the benchmarks print.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from attncache import reference

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """Make the ``benchmarks`` package of this checkout importable; the package is not installed."""
    sys.path.insert(0, str(ROOT))
    yield
    sys.path.remove(str(ROOT))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command's module, with bandwidths measured on little memory."""
    bandwidth = importlib.import_module("benchmarks.bandwidth")
    monkeypatch.setattr(bandwidth, "QUICK_BYTES", 1 << 16)
    return importlib.import_module("benchmarks.run")


@pytest.mark.parametrize("query", reference.QUERIES)
def test_every_query_has_a_case(query: str) -> None:
    cases = importlib.import_module("benchmarks.cases")
    assert query in {case.query for case in cases.CASES}, f"add a case for {query} to benchmarks/cases.py"


def test_case_names_are_unique_and_start_with_their_query() -> None:
    cases = importlib.import_module("benchmarks.cases").CASES
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert case.query is None or case.name.partition(",")[0] == case.query


def test_every_case_answers_like_the_reference(run: ModuleType) -> None:
    worlds = importlib.import_module("benchmarks.worlds")
    for dtype in ("float32", "float16"):
        world = worlds.World(worlds.Size(3, 17, 2), dtype, threads=1)
        for case in run.CASES:
            if dtype in case.dtypes:
                run.check(case, world)


def test_quick_run_of_one_case_writes_table_and_json(
    run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "numbers.json"
    assert run.main(["--quick", "--markdown", "--only", "head_mean", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "| head_mean" in printed
    assert "command: python -m benchmarks --quick" in printed
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert [result["dtype"] for result in results] == ["float32", "float16"]
    assert all(result["timings"]["attncache"]["median"] > 0 for result in results)


def test_without_torch_its_cells_say_not_measured(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bandwidth", "machine", "run", "worlds"):
        monkeypatch.setattr(importlib.import_module(f"benchmarks.{name}"), "torch_or_none", lambda: None)
    assert run.main(["--quick", "--only", "attention_from_position"]) == 0
    printed = capsys.readouterr().out
    assert "torch: not installed" in printed
    assert "not measured" in printed


@pytest.mark.parametrize("contender", ["attncache", "NumPy"])
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("attention_from_position", "np.zeros_like({})"),
        ("head_mean", "np.asarray({})[::-1]"),
        ("top_attended_positions, k=10", "{}[::-1]"),
    ],
)
def test_a_wrong_answer_is_refused(
    run: ModuleType, contender: str, name: str, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (case,) = (case for case in run.CASES if case.name == name)
    planted = {**case.contenders, contender: wrong.format(case.contenders[contender])}
    assert run.main(["--quick"], [replace(case, contenders=planted)]) == 1
    printed = capsys.readouterr()
    assert f"{contender} answers" in printed.err
    assert "share of limit" not in printed.out


def test_ours_must_match_bit_for_bit_and_others_within_their_bound() -> None:
    answers = importlib.import_module("benchmarks.answers")
    right = np.linspace(0.5, 1, 32, dtype=np.float32)
    nudged = np.nextafter(right, np.float32(2))
    expected = answers.Expected(right)
    assert answers.is_right(right, expected, exact=True, heads=4)
    assert not answers.is_right(nudged, expected, exact=True, heads=4)
    assert not answers.is_right(right.astype(np.float64), expected, exact=True, heads=4)
    assert answers.is_right(nudged, expected, exact=False, heads=4)
    assert not answers.is_right(right * np.float32(1.001), expected, exact=False, heads=4)


def test_rankings_of_others_may_order_ties_but_not_repeat_positions() -> None:
    answers = importlib.import_module("benchmarks.answers")
    line = np.array([0.25, 0.5, 0.25], np.float32)
    weights = np.array([0.5, 0.25], np.float32)
    expected = answers.Expected((np.array([1, 0]), weights), line)
    assert answers.is_right((np.array([1, 0]), weights), expected, exact=True, heads=1)
    assert not answers.is_right((np.array([1, 2]), weights), expected, exact=True, heads=1)
    assert answers.is_right((np.array([1, 2]), weights), expected, exact=False, heads=1)
    assert not answers.is_right((np.array([1, 1]), weights), expected, exact=False, heads=1)


def test_an_unknown_name_lists_the_known_ones(run: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"no case is called 'head_means'.*head_mean"):
        run.main(["--quick", "--only", "head_means"])


def test_thread_count_is_handed_to_attncache(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(run.attncache, "set_num_threads", asked.append)
    monkeypatch.setattr(run, "torch_or_none", lambda: None)
    run.pin_threads(3)
    assert asked == [3]
