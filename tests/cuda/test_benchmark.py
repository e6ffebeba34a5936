"""`python -m benchmarks.cuda` as far as it goes without a GPU.

Covered: what it says without a device; with torch, every case on emulated device memory, torch's side on the CPU: both
contenders answer like the reference, a wrong answer is refused, the report and its JSON come out (timed by the host's
clock), a case that fails or comes too late is named and the others go on.
Not covered: device events, and every number.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from attncache.cuda import library
from cuda.placing import put
from cuda.recording import Recorder

if TYPE_CHECKING:
    from benchmarks.cuda import Run
    from benchmarks.device_case import DeviceCase
    from benchmarks.device_worlds import Place


@pytest.fixture
def place(emulated: Recorder) -> Place:
    """Torch's tensors on the CPU, and copies of them on the emulated device."""
    torch = pytest.importorskip("torch", reason="answers are compared with torch's")
    from benchmarks.device_worlds import Place, numpy_of

    return Place(
        torch, "cpu", lambda tensor: put(numpy_of(torch, tensor)), lambda answer: torch.from_numpy(answer.numpy())
    )


@pytest.fixture
def run(place: Place, tmp_path: Path) -> Run:
    from benchmarks import timing
    from benchmarks.cuda import Run, writer
    from benchmarks.device_clocks import Clocks, Plans
    from benchmarks.device_table import Report

    seconds, plan = timing.seconds, timing.Plan(1e-6, 1e-6, 1, 1)
    plans, clocks = Plans(plan, plan, plan, copied_bytes=1 << 20), Clocks(seconds, seconds, seconds)
    report, write = Report({"device": "emulated"}), writer(tmp_path / "report.json")
    return Run(place, plans, clocks, report, budget=1e9, write=write)


def dense_case(name: str) -> DeviceCase[Any]:
    from benchmarks.device_cases import CASES

    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize(("dtype", "seq"), [("float16", 301), ("bfloat16", 40), ("float32", 40)])
def test_every_dense_case_answers_like_the_reference(run: Run, dtype: str, seq: int) -> None:
    from benchmarks.device_cases import CASES, LONG_K
    from benchmarks.worlds import Size

    cases = [case for case in CASES if f"k={LONG_K}" not in case.name or seq > LONG_K]
    run.measure([(Size(2, seq, 2), dtype)], cases)
    assert run.report.missed == []
    assert {result.name for result in run.report.results} == {case.name for case in cases}
    assert len(run.report.results) == sum(3 if case.is_small else 1 for case in cases)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_case_of_queries_and_keys_is_within_its_bound(run: Run, dtype: str) -> None:
    from benchmarks.device_factored import CASES, TINY

    run.measure([(TINY, dtype)], CASES)
    assert run.report.missed == []
    assert [result.name for result in run.report.results] == [case.name for case in CASES]


def test_large_layers_are_checked_on_some_positions(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import device_worlds
    from benchmarks.device_cases import LONG_K, WHOLE_LAYERS
    from benchmarks.device_measuring import check
    from benchmarks.worlds import Size

    monkeypatch.setattr(device_worlds, "FULLY_CHECKED", 0)
    world = device_worlds.DeviceWorld(place, Size(2, 65, 1), "bfloat16")
    assert len(world.sample) == device_worlds.SAMPLED
    for case in WHOLE_LAYERS:
        if f"k={LONG_K}" not in case.name:  # more than there are keys
            check(case, world)
    vars(world).clear()


def test_a_wrong_answer_is_refused_and_the_others_are_timed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import device_cases
    from benchmarks.worlds import Size

    right = dense_case("edges, one pair in every layer and head")
    wrong = replace(dense_case("head_mean"), ours="cache.rows(layer, heads=0, device_result=True)")
    failing = replace(dense_case("head_mean"), name="failing", ours="cache.head_mean(5, device_result=True)")
    monkeypatch.setattr(device_cases, "CASES", (wrong, failing, right))
    run.measure([(Size(2, 9, 1), "float16")], device_cases.CASES)
    assert [result.name for result in run.report.results] == [right.name] * 3
    (_, refused), (_, failed) = run.report.missed
    assert "head_mean at 2 x 9 float16: attncache answers" in refused
    assert failed.startswith("IndexError: ")


def test_what_comes_after_the_budget_is_named(run: Run) -> None:
    from benchmarks.worlds import Size

    run.budget = -1
    run.measure([(Size(2, 9, 1), "float16")], [dense_case("head_mean")])
    assert run.report.results == []
    assert [reason for _, reason in run.report.missed] == ["the time is up"]


def test_the_report_says_what_was_measured_and_whether_the_goal_was_met(run: Run, tmp_path: Path) -> None:
    from benchmarks.device_case import Goal
    from benchmarks.worlds import Size

    case = dense_case("rows, one query of one layer")
    run.measure([(Size(2, 9, 1), "float16")], [case])
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(run.report.as_json()))
    assert [result["way"] for result in written["results"]] == ["device", "enqueue", "complete"]
    assert [result["expressions"][0] for result in written["results"]] == [case.ours] * 2 + [
        "cache.rows(layer, position)"
    ]
    device, enqueue, _ = run.report.results
    share = device.share(run.report.copied)
    assert share == pytest.approx(9 * (2 * 2 + 4) / device.ours.median / run.report.copied)
    assert enqueue.share(run.report.copied) is None
    for goal, met in (
        (Goal(share=share), "met"),
        (Goal(share=2 * share), "missed"),
        (Goal(share=share, ratio=2 * device.ratio), "missed"),
        (Goal(), "-"),
    ):
        assert run.report.row(replace(device, goal=goal))[-1] == met
    assert case.name in run.report.text(markdown=True)


def test_it_says_why_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import cuda

    if cuda.why_not() is None:
        pytest.skip("a device is here: it would be measured")
    assert cuda.main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("not measured: ")
    assert any(words in said for words in ("torch", str(library.why_not())))
