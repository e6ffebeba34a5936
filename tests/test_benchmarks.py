"""The benchmarks themselves: complete, able to run to the end, and unwilling to time a wrong answer.

Covered at tiny sizes: every registered query has a case, every case's answers, planted wrong answers in every world, what a
report says and writes, goals and instruction counts, and (with matplotlib) the figures.
Not covered: any number the benchmarks print; devices (tests/cuda); counting under valgrind, which is a stage of .ci/run.
"""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attncache import reference
from benchmarks import figures, hot_loops, instructions
from benchmarks.capturing.suite import CapturingSuite
from benchmarks.core import limits
from benchmarks.core.answers import Expected
from benchmarks.core.case import OURS, Case, Goal
from benchmarks.core.limits import Limit, Limits
from benchmarks.core.run import Suite, check, main
from benchmarks.core.table import Report, Result
from benchmarks.core.timing import QUICK, Timing
from benchmarks.dense import sweeps
from benchmarks.dense.suite import DenseSuite
from benchmarks.dense.world import DenseWorld, Size
from benchmarks.factored import sweeps as factored_sweeps
from benchmarks.factored.answers import Bounded
from benchmarks.factored.suite import FactoredSuite
from benchmarks.factored.world import FactoredWorld, Shape
from benchmarks.files import contenders as files_contenders
from benchmarks.files.suite import FilesSuite

ROOT = Path(__file__).resolve().parent.parent
SUITES: dict[str, Suite] = {
    suite.module: suite for suite in (DenseSuite(), FactoredSuite(), FilesSuite(), CapturingSuite())
}
DENSE, FACTORED, FILES, CAPTURING = SUITES.values()


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bandwidths are measured on little memory."""
    monkeypatch.setattr(limits, "QUICK_BYTES", 1 << 16)


def cases_of(suite: Suite) -> dict[str, Case]:
    cases = {case.name: case for case in suite.cases(None)}
    assert len(cases) == len(suite.cases(None)), "two cases have one name"
    return cases


@pytest.mark.parametrize("query", reference.QUERIES)
def test_every_query_has_a_case(query: str) -> None:
    asked = {name.partition(",")[0] for name in cases_of(DENSE)}
    assert query in asked, f"add a case for {query} to benchmarks/dense/cases.py"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_case_answers_like_the_reference(dtype: str) -> None:
    world = DenseWorld(Size(3, 17, 2), dtype, 1, QUICK)
    for case in cases_of(DENSE).values():
        if dtype in case.dtypes:
            check(case, world)
    for causal in (True, False):
        layer = FactoredWorld(Shape(4, 2, 8, 24, 24, causal), dtype, 1, QUICK)
        for case in cases_of(FACTORED).values():
            check(case, layer)


def test_direct_cases_run_without_an_index_and_indexed_ones_with_it() -> None:
    world = DenseWorld(Size(3, 17, 2), "float16", 1, QUICK)
    assert world.names["cache"].index == "off"
    assert world.names["indexed"].index_nbytes == 2 * 17 * 17 * 8
    for name, case in cases_of(DENSE).items():
        called = case.contenders[OURS].partition(".")[0]
        assert called == {"direct": "cache", "indexed": "indexed"}.get(name.split(", ")[-1], called)


@pytest.mark.parametrize(
    ("module", "only"),
    [
        ("benchmarks", "head_mean"),
        ("benchmarks.factored", "lse"),
        (FILES.module, ""),
        pytest.param(
            CAPTURING.module, "a ", marks=pytest.mark.skipif(CAPTURING.why_not() is not None, reason="needs torch")
        ),
    ],
)
def test_a_quick_run_prints_and_writes_its_report(
    module: str, only: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, files, folder = SUITES[module], [tmp_path / "numbers.json", tmp_path / "report.md"], tmp_path / "work"
    folder.mkdir()
    chosen = {FILES.module: ["--folder", str(folder)], CAPTURING.module: []}.get(module, ["--only", only])
    assert main(suite, ["--quick", "--json", str(files[0]), "--write", str(files[1]), *chosen]) == 0
    assert f"command: python -m {module} --quick --json FILE" in capsys.readouterr().out
    assert list(folder.iterdir()) == []
    written, report = json.loads(files[0].read_text("utf-8")), files[1].read_text("utf-8")
    expected = [name for name in cases_of(suite) if name.startswith(only)]
    assert list(dict.fromkeys(result["operation"] for result in written["results"])) == expected
    assert all(f"| {name} " in report or f"## {name}\n" in report for name in expected)
    for result in written["results"]:
        assert result["timings"] or "cold" in result["operation"], "only what lies in memory alone cannot be cold"
        assert all(timing["median"] > 0 for timing in result["timings"].values())


@pytest.mark.parametrize(
    ("suite", "only", "missing"),
    [(DENSE, "attention_from_position", 2), (FACTORED, "lse", 2), (FILES, "save, on the disk", 1)],
    ids=lambda given: given.module if isinstance(given, Suite) else str(given),
)
def test_what_is_not_installed_is_not_measured(
    suite: Suite, only: str, missing: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("core.machine", "core.limits", "dense.world", "factored.world"):
        monkeypatch.setattr(importlib.import_module(f"benchmarks.{name}"), "torch_or_none", lambda: None)
    monkeypatch.setattr(files_contenders, "installed", lambda: dict.fromkeys(("safetensors", "torch", "cp"), False))
    assert main(suite, ["--quick", "--only", only]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "not measured" in line]
    assert lines
    assert all(line.count("not measured") == missing for line in lines)
    if suite is FILES:
        assert {re.split(r"\s{2,}", line)[1] for line in lines} == {"safetensors", "torch", "cp"}


@pytest.mark.parametrize(
    ("suite", "name", "contender", "wrong"),
    [
        (DENSE, "attention_from_position, direct", "attncache", "np.zeros_like({})"),
        (DENSE, "attention_to_position, auto", "NumPy", "{}[::-1]"),
        (DENSE, "head_mean, direct", "attncache", "np.nextafter({}, np.float32(2))"),
        (DENSE, "top_attended_positions, k=10, direct", "NumPy", "{}[::-1]"),
        (FACTORED, "attention_from_position, first", "attncache", "np.roll({}, 1)"),
        (FACTORED, "lse", "NumPy", "{} + np.float32(1e-2)"),
        (FACTORED, "attention_to_position, sums known", "attncache", "{} * 1.01"),
        (FACTORED, "top_k, one query of the mean, k=10, first", "NumPy", "tuple(part[::-1] for part in {})"),
        (FACTORED, "get_layer, sums known", "attncache", "np.zeros_like({})"),
        (FILES, "save, on the disk", "attncache", "AttentionCache().save(folder / 'ours.safetensors')"),
        (FILES, "save, on the disk", "NumPy", "save_numpy(patterns[::-1], folder)"),
        (FILES, "push to disk, layer by layer", "attncache", "pushed_to_disk(patterns[::-1], folder)"),
        (FILES, "load into memory", "attncache", "load_ours(kept, mmap=False)[:1]"),
        (FILES, "open, all layers", "NumPy", "{}[1:]"),
        (FILES, "open and ask one query", "attncache", "np.nextafter({}, np.float32(2))"),
    ],
)
def test_a_wrong_answer_is_not_timed(
    suite: Suite, name: str, contender: str, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case = cases_of(suite)[name]
    planted = {**case.contenders, contender: wrong.format(case.contenders[contender])}
    assert main(suite, ["--quick"], [replace(case, contenders=planted)]) == 1
    printed = capsys.readouterr()
    assert f"wrong answer: {contender} answers {planted[contender]}" in printed.err
    assert "±" not in "".join(line for line in printed.out.splitlines() if not line.startswith("call "))


def test_ours_must_match_bit_for_bit_and_others_within_their_bound() -> None:
    right = np.linspace(0.5, 1, 32, dtype=np.float32)
    nudged = np.nextafter(right, np.float32(2))
    expected = Expected(right, heads=4)
    assert expected.accepts(right, OURS)
    assert not expected.accepts(nudged, OURS)
    assert not expected.accepts(right.astype(np.float64), OURS)
    assert expected.accepts(nudged, "NumPy")
    assert not expected.accepts(right * np.float32(1.001), "NumPy")


def test_rankings_of_others_may_order_ties_but_not_repeat_positions() -> None:
    line, weights = np.array([0.25, 0.5, 0.25], np.float32), np.array([0.5, 0.25], np.float32)
    expected = Expected((np.array([1, 0]), weights), heads=1, lines=line)
    assert expected.accepts((np.array([1, 0]), weights), OURS)
    assert not expected.accepts((np.array([1, 2]), weights), OURS)
    assert expected.accepts((np.array([1, 2]), weights), "NumPy")
    assert not expected.accepts((np.array([1, 1]), weights), "NumPy")


def test_bounds_of_factored_answers_are_kept_to_the_last_bit() -> None:
    values, bounds = np.array([0.25, 0.5, 0.125]), (np.full(3, 2.0**-20), np.full(3, 2.0**-10))
    right = Bounded(values, bounds)
    assert right.accepts(values + bounds[0], OURS)
    assert not right.accepts(values + 1.01 * bounds[0], OURS)
    assert right.accepts(values + 1.01 * bounds[0], "NumPy")
    assert not right.accepts(values * np.nan, "NumPy")
    ranked = Bounded(values, bounds, is_ranking=True)
    assert ranked.accepts((np.array([1, 0]), np.array([0.5, 0.25])), OURS)
    assert not ranked.accepts((np.array([1, 2]), np.array([0.5, 0.125])), OURS)  # a heavier one is left out
    assert not ranked.accepts((np.array([1, 1]), np.array([0.5, 0.5])), OURS)


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal(share=0.5), "met"),
        (Goal(share=0.51), "missed"),
        (Goal(ratio=3, rival="NumPy"), "met"),
        (Goal(ratio=3.1, rival="NumPy"), "missed"),
        (Goal(share=0.5, ratio=3.1, rival="NumPy"), "missed"),
        (Goal(seconds=2), "met"),
        (Goal(seconds=1.9), "missed"),
        (Goal(ratio=1), "-"),  # torch was not measured
    ],
)
def test_goals_are_met_at_their_share_and_not_below(goal: Goal, met: str) -> None:
    timings = {
        OURS: Timing(2, 1, 3, 3, 1),
        "NumPy": Timing(9, 9, 9, 3, 1),
        "NumPy, float32 kept": Timing(6, 6, 6, 3, 1),
    }
    codes = dict.fromkeys(timings, "code")
    result = Result("asked", "2 x 2", "float32", "", 1_000_000_000, "read", goal, codes, timings)
    report = Report({}, ("NumPy",), Limits({"read": {1: Limit(9e8, "here"), 2: Limit(1e9, "here")}}), [result])
    lines = report.text(markdown=False).splitlines()
    cells = re.split(r"\s{2,}", next(line for line in lines if line.startswith("asked")))
    assert cells[:8] == ["asked", "2 x 2", "float32", "2 s ± 50%", "0.5 GB/s", "50% of read", "6 s ± 0% *", "3"]
    assert cells[-1] == met or met == "-"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(SystemExit, match=r"no case is called 'head_means'.*head_mean"):
        main(DENSE, ["--quick", "--only", "head_means"])


FIGURES = sorted(file.stem for file in (ROOT / "docs" / "figures").glob("*.png"))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The data of all figures at tiny sizes."""
    folder = tmp_path_factory.mktemp("figures")
    files = [folder / "dense.json", folder / "factored.json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "QUICK_BYTES", 1 << 16)
        patch.setattr(factored_sweeps, "DENSE_BYTES", 9 * 16 * 16 * 2)
        assert main(sweeps.SweepSuite(), ["--quick", "--json", str(files[0])]) == 0
        assert main(factored_sweeps.SweepSuite(), ["--quick", "--json", str(files[1])]) == 0
    return files


def test_figures_are_drawn_from_what_a_run_wrote(
    swept: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the figures need matplotlib")
    assert figures.main([*map(str, swept), "--folder", str(tmp_path)]) == 0
    assert sorted(file.stem for file in tmp_path.iterdir()) == FIGURES
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in tmp_path.iterdir())
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert all(f"](figures/{name}.png)" in page for name in FIGURES)
    with pytest.raises(SystemExit):
        figures.main([str(swept[0])])
    assert "of a --quick run" in capsys.readouterr().err


def test_figures_leave_out_what_answers_something_else_or_has_no_room(swept: list[Path]) -> None:
    dense, factored = (json.loads(file.read_text(encoding="utf-8")) for file in swept)
    hard = [each for each in dense["results"] if each["labels"]["figure"] == "top-k-hard-rows"]
    (hard_rows,) = figures.panels_of(hard, dense["limits"]).values()
    kinds = {label: [kind for kind, *_ in points] for label, points in hard_rows.items()}
    assert "all NaN" in kinds[sweeps.DIRECT]
    assert kinds[sweeps.DIRECT] == kinds["NumPy"]
    assert not any("NaN" in kind for kind in kinds.get("torch", []))
    for panel in figures.panels_of(factored["results"], factored["limits"]).values():
        for label, points in panel.items():
            assert [x for x, *_ in points] == ([16] if label == factored_sweeps.DENSE else [16, 32])


@pytest.mark.parametrize("name", FIGURES)
def test_figures_of_the_documentation_are_small(name: str) -> None:
    assert (ROOT / "docs" / "figures" / f"{name}.png").stat().st_size < 150_000


def test_memory_breaks_even_where_both_forms_take_as_many_bytes() -> None:
    seq = round(factored_sweeps.smaller_from(factored_sweeps.SHAPE, 2))
    layer = factored_sweeps.LengthWorld(seq, 1, QUICK)
    assert abs(layer.cache.nbytes - layer.names["dense"].nbytes) < 0.02 * layer.cache.nbytes


def test_hot_loops_run_and_cover_the_calls_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    marks: list[int] = []
    monkeypatch.setattr(hot_loops.os, "getppid", lambda: marks.append(0))
    hot_loops.main(3)
    assert len(marks) == 3 * len(hot_loops.LOOPS)
    for budget in instructions.read_budgets(instructions.BUDGET).values():
        assert set(budget["instructions"]) == set(hot_loops.CALLS)


def test_instructions_over_their_budget_fail_and_unknown_machines_pass_loudly() -> None:
    assert instructions.judged({"call": 110}, {"call": 100})[1]
    report, passed = instructions.judged({"call": 111}, {"call": 100})
    assert not passed
    assert "OVER" in report
    assert "--update" in instructions.judged({"call": 80}, {"call": 100})[0]
    assert not instructions.judged({"call": 100, "new": 1}, {"call": 100})[1]
    report, passed = instructions.judged({"call": 100}, None)
    assert passed
    assert "NOT CHECKED" in report
