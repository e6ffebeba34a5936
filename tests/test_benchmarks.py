"""The benchmarks themselves: complete, able to run to the end, and unwilling to time a wrong answer.

Covered at tiny sizes: every registered query has a case, the commands' output, planted wrong answers, the judgement of
goals and of instruction counts, the data of every figure and (with matplotlib) its file; of the long context, its
comparison with float64 (with torch); of a cache larger than memory, its comparison and the limit itself.
Not covered: any number the benchmarks print; the model of the long context; counting under valgrind, which is a stage of .ci/run.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from attncache import AttentionCache, reference

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
    worlds, measuring = importlib.import_module("benchmarks.worlds"), importlib.import_module("benchmarks.measuring")
    for dtype in ("float32", "float16"):
        world = worlds.World(worlds.Size(3, 17, 2), dtype, threads=1)
        for case in run.CASES:
            if dtype in case.dtypes:
                measuring.check(case, world)


def test_quick_run_of_one_case_writes_table_and_json(
    run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "numbers.json"
    assert run.main(["--quick", "--markdown", "--only", "head_mean, direct", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "| head_mean" in printed
    assert "command: python -m benchmarks --quick" in printed
    written = json.loads(file.read_text(encoding="utf-8"))
    assert [result["dtype"] for result in written["results"]] == ["float32", "float16"]
    assert all(result["timings"]["attncache"]["median"] > 0 for result in written["results"])
    measured = [goal["goal"].partition(":")[0] for goal in written["goals"] if goal["share"] is not None]
    assert measured[0] == "head_mean, direct"
    assert len(measured) == 2  # and the call that every run measures


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
        ("attention_from_position, direct", "np.zeros_like({})"),
        ("attention_to_position, auto", "{}[::-1]"),
        ("head_mean, direct", "np.asarray({})[::-1]"),
        ("top_attended_positions, k=10, direct", "{}[::-1]"),
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


def test_direct_cases_run_without_an_index_and_indexed_ones_with_it() -> None:
    worlds = importlib.import_module("benchmarks.worlds")
    world = worlds.World(worlds.Size(3, 17, 2), "float16", threads=1)
    assert world.names["cache"].index == "off"
    assert world.names["indexed"].index_nbytes == 2 * 17 * 17 * 8
    contenders = importlib.import_module("benchmarks.contenders")
    auto = contenders.fresh(world.patterns, "auto")
    contenders.first_and_last(auto.attention_to_position, [(0, 1)] * 17)
    assert world.cache.index_nbytes == 0
    assert auto.index_nbytes == 17 * 17 * 8


@pytest.mark.parametrize("suffix", ["direct", "indexed"])
def test_hot_calls_are_timed_both_ways(suffix: str) -> None:
    cases = {case.name: case for case in importlib.import_module("benchmarks.cases").CASES}
    for call in ("attention_from_position", "attention_to_position", "top_attended_positions, k=10", "head_mean"):
        ours = cases[f"{call}, {suffix}"].contenders["attncache"]
        assert ours.startswith({"direct": "cache.", "indexed": "indexed."}[suffix])


def test_a_timing_of_many_questions_is_given_for_each() -> None:
    timing = importlib.import_module("benchmarks.timing")
    one = timing.for_each_of(4, timing.Timing(8.0, 4.0, 12.0, samples=3, calls_per_sample=1))
    assert one == timing.Timing(2.0, 1.0, 3.0, samples=3, calls_per_sample=4)
    assert one.spread == 0.5


def test_goals_are_reached_at_their_share_and_not_below(run: ModuleType) -> None:
    goals, table = importlib.import_module("benchmarks.goals"), importlib.import_module("benchmarks.table")
    bandwidth, timing = importlib.import_module("benchmarks.bandwidth"), importlib.import_module("benchmarks.timing")

    def timed(seconds: float) -> object:
        return timing.Timing(seconds, seconds, seconds, 1, 1)

    def reached(name: str, share: float, rate: float, ready: float) -> dict[str, bool | None]:
        (case,) = (case for case in run.CASES if case.name == name)
        dtype = case.dtypes[-1]
        times = {"attncache": timed(1.0), "ready-made": timed(ready)}
        result = table.Result(case, "2 x 2", dtype, int(share * 1e6), times)
        limit = {2: bandwidth.Limit(rate, "here")}
        limits = table.Limits(2, bandwidth.Bandwidth(limit, limit, limit), {}, empty="")
        judged = goals.judged([result], limits, "2 x 2", "absent")
        assert len(judged) == len(goals.GOALS) + 1
        return {goal.goal: goal.reached for goal in judged if goal.reached is not None}

    assert list(reached("head_mean, direct", 0.851, 1e6, 1).values()) == [True]
    assert list(reached("head_mean, direct", 0.849, 1e6, 1).values()) == [False]
    assert list(reached("push, float32 as float16", 0.801, 1e6, 1).values()) == [True]
    assert list(reached("attention_to_position, indexed", 0, 1, 1.01).values()) == [True]
    assert list(reached("attention_to_position, indexed", 0, 1, 0.99).values()) == [False]
    assert list(reached("top_attended_positions, k=10, indexed", 0, 1, 1).values()) == [False]  # a second


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


FIGURES = (
    "latency-by-seq",
    "latency-by-heads",
    "top-k-by-k",
    "top-k-hard-rows",
    "threads",
    "asked-often",
    "factored-by-seq",
)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of all figures at tiny sizes, measured without drawing them."""
    folder = tmp_path_factory.mktemp("figures")
    module = importlib.import_module("benchmarks.figures")
    bandwidth = importlib.import_module("benchmarks.bandwidth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bandwidth, "QUICK_BYTES", 1 << 16)
        patch.setattr(module.drawing, "draw", lambda picture, about, folder: f"{folder}/{picture.name}: {about}")
        assert module.main(["--quick", "--folder", str(folder), "--json", str(folder / "data.json")]) == 0
    return folder / "data.json"


def test_every_figure_is_measured_and_in_the_documentation(figures: Path) -> None:
    pictures = {picture["name"]: picture for picture in json.loads(figures.read_text(encoding="utf-8"))["pictures"]}
    assert tuple(pictures) == FIGURES
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for name, picture in pictures.items():
        assert f"](figures/{name}.png)" in page
        for panel in picture["panels"]:
            for label, curve in panel["curves"].items():
                points = [curve[part] for part in ("xs", "medians", "lowers", "uppers")]
                assert len({len(part) for part in points}) == 1, label
                assert all(low <= middle <= high for _, middle, low, high in zip(*points, strict=True)), label


def test_figures_leave_out_torch_where_it_answers_something_else(figures: Path) -> None:
    pictures = {picture["name"]: picture for picture in json.loads(figures.read_text(encoding="utf-8"))["pictures"]}
    for panel in pictures["top-k-hard-rows"]["panels"]:
        kinds = {label: set(curve["xs"]) for label, curve in panel["curves"].items()}
        assert {"all NaN", "a tenth\nNaN", "ascending"} <= kinds["attncache, direct"] == kinds["NumPy"]
        assert not any("NaN" in kind for kind in kinds.get("torch", set()))


def test_figures_are_drawn_from_their_data(figures: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the figures need matplotlib")
    module = importlib.import_module("benchmarks.figures")
    assert module.main(["--redraw", str(figures), "--folder", str(tmp_path), "--only", "threads"]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["threads.png"]
    assert (tmp_path / "threads.png").read_bytes().startswith(b"\x89PNG")


def test_quick_figures_do_not_go_into_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module("benchmarks.figures").main(["--quick"])
    assert "--quick needs --folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", FIGURES)
def test_figures_of_the_documentation_are_small(name: str) -> None:
    assert (ROOT / "docs" / "figures" / f"{name}.png").stat().st_size < 150_000


def test_hot_loops_run_and_cover_the_calls_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    loops = importlib.import_module("benchmarks.hot_loops")
    marks: list[int] = []
    monkeypatch.setattr(loops.os, "getppid", lambda: marks.append(0))
    loops.main(3)
    assert len(marks) == 3 * len(loops.LOOPS)
    budgets = json.loads((ROOT / "benchmarks" / "instructions.json").read_text(encoding="utf-8"))
    for budget in budgets.values():
        assert set(budget["instructions"]) == set(loops.CALLS)


def test_instructions_of_a_call_are_the_difference_of_two_loops() -> None:
    instructions = importlib.import_module("benchmarks.instructions")
    parts = [9999, 150, 250, 77, 1050, 2050]
    assert instructions.per_call(parts, ["an empty loop", "call"], 100) == {"call": 9}
    with pytest.raises(ValueError, match="expected 6 parts for 2 loops, got 5"):
        instructions.per_call(parts[1:], ["an empty loop", "call"], 100)


def test_instructions_over_their_budget_fail_and_unknown_machines_pass_loudly() -> None:
    judged = importlib.import_module("benchmarks.instructions").judged
    assert judged({"call": 110}, {"call": 100})[1]
    report, passed = judged({"call": 111}, {"call": 100})
    assert not passed
    assert "OVER" in report
    assert "--update" in judged({"call": 80}, {"call": 100})[0]
    assert not judged({"call": 100, "new": 1}, {"call": 100})[1]
    report, passed = judged({"call": 100}, None)
    assert passed
    assert "NOT CHECKED" in report


def test_a_new_budget_replaces_its_own_and_keeps_the_others(tmp_path: Path) -> None:
    instructions = importlib.import_module("benchmarks.instructions")
    file = tmp_path / "budget.json"
    instructions.write_budget(file, "one", {"call": 1, "NumPy: mean[position]": 5})
    instructions.write_budget(file, "two", {"call": 2})
    instructions.write_budget(file, "one", {"call": 3})
    budgets = instructions.read_budgets(file)
    assert {name: budget["instructions"] for name, budget in budgets.items()} == {
        "one": {"call": 3},
        "two": {"call": 2},
    }


def test_without_valgrind_nothing_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    instructions = importlib.import_module("benchmarks.instructions")
    monkeypatch.setattr(instructions.shutil, "which", lambda _name: None)
    assert instructions.main([]) == 2
    assert "valgrind is not installed" in capsys.readouterr().err


@pytest.fixture
def factored(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command that measures factored layers, with bandwidths measured on little memory."""
    monkeypatch.setattr(importlib.import_module("benchmarks.bandwidth"), "QUICK_BYTES", 1 << 16)
    return importlib.import_module("benchmarks.factored")


def test_every_factored_case_answers_within_its_bound(factored: ModuleType) -> None:
    world = importlib.import_module("benchmarks.factored_world")
    for causal in (True, False):
        for dtype in ("float32", "float16"):
            layer = world.FactoredWorld(world.Shape(4, 2, 8, 24, 24, causal), dtype, threads=1)
            for case in factored.CASES:
                factored.check(case, layer)


def test_quick_factored_run_writes_table_goals_and_json(
    factored: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["attention_from_position", "edges", "lse", "append_qk"]
    files = [tmp_path / "numbers.json", tmp_path / "report.md"]
    chosen = [part for name in names for part in ("--only", name)]
    assert factored.main(["--quick", *chosen, "--json", str(files[0]), "--write", str(files[1])]) == 0
    printed = capsys.readouterr().out
    assert "command: python -m benchmarks.factored --quick" in printed
    written = json.loads(files[0].read_text(encoding="utf-8"))
    assert {result["operation"].partition(",")[0] for result in written["results"]} == set(names)
    assert all(result["timings"]["attncache"]["median"] > 0 for result in written["results"])
    judged = [goal["goal"].partition(",")[0] for goal in written["goals"]]
    assert judged.count("attention_from_position") == 2
    assert judged.count("lse") == 8
    assert "| lse " in files[1].read_text(encoding="utf-8")


def test_without_torch_its_factored_cells_say_not_measured(
    factored: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bandwidth", "machine", "run", "factored", "factored_world"):
        monkeypatch.setattr(importlib.import_module(f"benchmarks.{name}"), "torch_or_none", lambda: None)
    assert factored.main(["--quick", "--only", "lse"]) == 0
    printed = capsys.readouterr().out
    assert "torch: not installed" in printed
    (layer, *_) = [line for line in printed.splitlines() if line.startswith("lse ")]
    assert layer.split("  ")[-1].strip() == "not measured"


@pytest.mark.parametrize("contender", ["attncache", "NumPy"])
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("attention_from_position, first", "np.roll({}, 1)"),
        ("lse", "np.asarray({}) + np.float32(1e-2)"),
        ("attention_to_position, sums known", "np.asarray({}) * 1.01"),
        ("top_k, one query of the mean, k=10, first", "tuple(part[::-1] for part in {})"),
        ("get_layer, sums known", "np.zeros_like({})"),
    ],
)
def test_a_wrong_answer_of_a_factored_layer_is_refused(
    factored: ModuleType, contender: str, name: str, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (case,) = (case for case in factored.CASES if case.name == name)
    planted = {**case.contenders, contender: wrong.format(case.contenders[contender])}
    assert factored.main(["--quick"], [replace(case, contenders=planted)]) == 1
    printed = capsys.readouterr()
    assert f"{contender} answers" in printed.err
    assert "share of limit" not in printed.out


def test_bounds_of_factored_answers_are_kept_to_the_last_bit() -> None:
    answers = importlib.import_module("benchmarks.factored_answers")
    values, bounds = np.array([0.25, 0.5, 0.125]), (np.full(3, 2.0**-20), np.full(3, 2.0**-10))
    right = answers.Bounded(values, bounds)
    assert right.accepts(values + bounds[0], ours=True)
    assert not right.accepts(values + 1.01 * bounds[0], ours=True)
    assert right.accepts(values + 1.01 * bounds[0], ours=False)
    assert not right.accepts(values * np.nan, ours=False)
    ranked = answers.Bounded(values, bounds, is_ranking=True)
    assert ranked.accepts((np.array([1, 0]), np.array([0.5, 0.25])), ours=True)
    assert not ranked.accepts((np.array([1, 2]), np.array([0.5, 0.125])), ours=True)  # a heavier one is left out
    assert not ranked.accepts((np.array([1, 1]), np.array([0.5, 0.5])), ours=True)


def test_a_figure_without_room_for_the_pattern_ends_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, timing = (
        importlib.import_module("benchmarks.factored_pictures"),
        importlib.import_module("benchmarks.timing"),
    )
    curves = importlib.import_module("benchmarks.curves")
    monkeypatch.setattr(pictures, "DENSE_BYTES", 9 * 16 * 16 * 2)
    drawn = pictures.factored_by_seq((16, 32), curves.Bench(1, timing.QUICK, 0.0))
    for panel in drawn.panels:
        assert {label: curve.xs for label, curve in panel.curves.items() if label == pictures.DENSE} == {
            pictures.DENSE: [16]
        }
        assert all(curve.xs == [16, 32] for label, curve in panel.curves.items() if label != pictures.DENSE)


def test_memory_breaks_even_where_both_forms_take_as_many_bytes() -> None:
    pictures, world = (
        importlib.import_module("benchmarks.factored_pictures"),
        importlib.import_module("benchmarks.factored_world"),
    )
    seq = round(pictures.smaller_from(world.Shape(9, 3, 64, 1, 1), 2))
    shape = world.Shape(9, 3, 64, seq, seq)
    layer = world.FactoredWorld(shape, "float16", threads=1)
    assert abs(layer.cache.nbytes - pictures.dense_bytes(shape, 2)) < 0.02 * layer.cache.nbytes
    longer = world.FactoredWorld(replace(shape, seq_q=2 * seq, seq_k=2 * seq), "float16", threads=1)
    assert longer.cache.nbytes < pictures.dense_bytes(longer.shape, 2)


class Kept(AttentionCache):
    """A cache whose queries and keys can be seen."""

    def queries(self, layer: int) -> np.ndarray:
        return self.factors[layer][0]

    def keys(self, layer: int) -> np.ndarray:
        return self.factors[layer][1]


@pytest.mark.parametrize("is_wrong", [False, True])
def test_long_context_compares_all_layers_with_float64(is_wrong: bool, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="the long context is compared in torch")
    module = importlib.import_module("benchmarks.long_context")
    rng = np.random.default_rng(7)
    cache = Kept()
    cache.factors = [[rng.standard_normal((1, heads, 40, 8)).astype("f2") for heads in (4, 2)] for _ in range(3)]
    for query, key in cache.factors:
        cache.push_qk(query, key)
    positions = np.array([11, 20, 39])
    report = module.Report()
    answers = module.asked(cache, positions, np.array([0, 5, 30]), report)
    if is_wrong:
        answers["columns"] = answers["columns"] * np.float32(1.001)
    module.compare(cache, positions, np.array([0, 5, 30]), answers, report)
    assert report.is_right is not is_wrong
    assert [row[0] for row in report.rows] == ["rows", "columns, at those rows", "top_k, k=10"]
    assert "the same bits" in capsys.readouterr().out


@pytest.fixture
def files() -> ModuleType:
    """The command that measures caches in files."""
    return importlib.import_module("benchmarks.files")


def test_quick_files_run_measures_every_case_and_leaves_nothing_behind(
    files: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, written = tmp_path / "work", [tmp_path / "numbers.json", tmp_path / "report.md"]
    folder.mkdir()
    options = ["--quick", "--folder", str(folder), "--json", str(written[0]), "--write", str(written[1])]
    assert files.main(options) == 0
    assert list(folder.iterdir()) == []
    printed, report = capsys.readouterr().out, json.loads(written[0].read_text(encoding="utf-8"))
    assert "command: python -m benchmarks.files --quick --folder DIR --json FILE" in printed
    assert [result["operation"] for result in report["results"]] == [case.name for case in files.CASES]
    for result in report["results"]:
        assert result["timings"] == {} or result["timings"]["attncache"]["median"] > 0
        assert result["timings"] or "cold" in result["operation"], "only what lies in memory alone cannot be cold"
    assert [len(opened["timings"]) > 1 for opened in report["opened"]] == [True, True]
    assert all(f"## {case.name}" in written[1].read_text(encoding="utf-8") for case in files.CASES)


def test_without_its_library_a_contender_of_files_is_not_measured(
    files: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contenders = importlib.import_module("benchmarks.files_contenders")
    monkeypatch.setattr(contenders, "installed", lambda: dict.fromkeys(("safetensors", "torch", "cp"), False))
    monkeypatch.setattr(importlib.import_module("benchmarks.worlds"), "torch_or_none", lambda: None)
    assert files.main(["--quick", "--only", "save, on the disk"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("2 x 3 x 32")]
    missing = {re.split(r"\s{2,}", line)[1] for line in lines if "not measured" in line}
    assert missing == {"safetensors", "torch", "cp"}


@pytest.mark.parametrize(
    ("name", "contender", "wrong"),
    [
        ("save, on the disk", "attncache", "AttentionCache().save(folder / 'ours.safetensors')"),
        ("save, on the disk", "NumPy", "save_numpy(patterns[::-1], folder)"),
        ("push to disk, layer by layer", "attncache", "pushed_to_disk(patterns[::-1], folder)"),
        ("load into memory", "attncache", "load_ours(kept, mmap=False)[:1]"),
        ("open, all layers", "NumPy", "load_numpy(kept, n_layers, 'r')[1:]"),
        ("open and ask one query", "attncache", "np.nextafter(ask_ours(kept, layer, position), np.float32(2))"),
    ],
)
def test_a_wrong_file_or_answer_is_refused(
    files: ModuleType, name: str, contender: str, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (case,) = (case for case in files.CASES if case.name == name)
    assert files.main(["--quick"], [replace(case, contenders={**case.contenders, contender: wrong})]) == 1
    printed = capsys.readouterr()
    assert f"{contender} does {wrong} wrongly" in printed.err
    assert name.upper() not in printed.out


def test_what_is_done_between_samples_is_not_timed() -> None:
    timing = importlib.import_module("benchmarks.timing")
    calls: list[str] = []
    plan = timing.Plan(0, 0, least=2, most=9)
    actions = {name: lambda name=name: calls.append(name) for name in ("one", "two")}
    found = timing.taking_turns(actions, lambda: (calls.append("before"), time.sleep(0.01)), plan)
    assert calls == ["before", "one", "before", "two"] * 2
    assert all(each.median < 0.01 and each.samples == 2 for each in found.values())


def test_pages_of_a_file_are_counted_and_evicted(tmp_path: Path) -> None:
    pages = importlib.import_module("benchmarks.pages")
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 4096)
    if pages.resident(file) is None or not pages.CAN_EVICT:
        pytest.skip("this system does not tell which pages of a file are in memory")
    assert pages.resident(file) == 1 << 20
    mapping = np.memmap(file, np.uint8, "r")
    assert pages.mapped_and_touched(file) in (None, 0)
    assert mapping[4096] == 0
    assert pages.mapped_and_touched(file) in (None, *range(4096, (1 << 20) + 1, 4096))
    del mapping
    pages.evict([file])
    if pages.file_system(tmp_path).startswith(("ext", "xfs", "btrfs")):
        assert pages.resident(file) == 0


def test_a_process_over_its_memory_limit_does_not_survive() -> None:
    limits = importlib.import_module("benchmarks.memory_limit")
    with limits.limited(96 << 20) as limit:
        assert limit.run([sys.executable, "-c", "bytearray(16 << 20)"]).returncode == 0
        assert limit.run([sys.executable, "-c", "bytearray(160 << 20)"]).returncode != 0
    assert limit.group is None or not limit.group.exists()


def test_larger_than_memory_runs_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module("benchmarks.larger_than_memory").main(["--quick"]) == 0
    printed = capsys.readouterr().out
    assert "answers: the same bits as the reference" in printed
    assert "one row of one layer" in printed


def test_larger_than_memory_finds_a_wrong_answer(tmp_path: Path) -> None:
    module, roles = (
        importlib.import_module(f"benchmarks.{name}") for name in ("larger_than_memory", "limited_process")
    )
    roles.write(tmp_path, module.QUICK)
    roles.ask(tmp_path, module.QUICK)
    assert module.wrong_answers(tmp_path, module.QUICK) == []
    with np.load(tmp_path / roles.ANSWERS) as archive:
        answers = dict(archive)
    answers["rows"] = np.nextafter(answers["rows"], np.float32(2))
    np.savez(tmp_path / roles.ANSWERS, **answers)
    assert module.wrong_answers(tmp_path, module.QUICK) == ["rows"]
