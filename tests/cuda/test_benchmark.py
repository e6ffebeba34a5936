"""`python -m benchmarks.device` as far as it goes without a GPU.

Covered: what it says without a device; with torch, every case on emulated device memory, torch's side on the CPU: both
contenders answer like the reference, a wrong answer is refused, the report comes out (timed by the host's clock, answers
written into NumPy arrays), what fails or comes too late is named and the others go on.
Not covered: device events, answers written into memory of the device, and every number.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from attncache.cuda import library
from cuda.launching import Emulated
from cuda.placing import put

pytestmark = pytest.mark.minutes  # CI runs it in the stage of CUDA

if TYPE_CHECKING:
    from benchmarks.core.table import Report
    from benchmarks.device.cases import DeviceCase
    from benchmarks.device.world import Place


@pytest.fixture
def place(emulated: Emulated) -> Place:
    """Torch's tensors on the CPU, and copies of them on the emulated device."""
    torch = pytest.importorskip("torch", reason="answers are compared with torch's")
    from benchmarks.core.timing import Plan, seconds
    from benchmarks.device.clocks import Clocks, Plans
    from benchmarks.device.world import Place, numpy_of

    plan = Plan(1e-6, 1e-6, 1, 1)
    plans, clocks = Plans(plan, plan, plan, copied_bytes=1 << 20), Clocks(seconds, seconds, seconds)
    return Place(
        torch,
        "cpu",
        lambda tensor: put(numpy_of(torch, tensor)),
        lambda shape: np.empty(shape, np.float32),
        plans,
        clocks,
    )


def measured(place: Place, layer: Any, dtype: str, cases: Sequence[DeviceCase], budget: float = 1e9) -> Report:
    """What a run over one layer finds."""
    from benchmarks.core.run import measured
    from benchmarks.core.table import Report
    from benchmarks.device.suite import DeviceSuite

    report = Report({"device": "emulated"})
    measured(DeviceSuite(place, [(layer, dtype)]), Namespace(budget=budget), cases, report, lambda _report: None)
    return report


def case_named(name: str) -> DeviceCase:
    from benchmarks.device.cases import CASES

    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize(("dtype", "seq"), [("float16", 301), ("bfloat16", 40), ("float32", 40)])
def test_every_case_of_patterns_answers_like_the_reference(place: Place, dtype: str, seq: int) -> None:
    from benchmarks.dense.world import Size
    from benchmarks.device.cases import LONG_K, PATTERNS

    cases = [case for case in PATTERNS if f"k={LONG_K}" not in case.name or seq > LONG_K]
    report = measured(place, Size(2, seq, 2), dtype, cases)
    assert report.missed == []
    assert list(dict.fromkeys(result.operation for result in report.results)) == [case.name for case in cases]
    ways = {result.operation: result.way for result in report.results if result.way != "host, enqueued"}
    assert all((ways[case.name] == "device") == (case.out is not None and not case.is_small) for case in cases)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_case_of_queries_and_keys_is_within_its_bound(place: Place, dtype: str) -> None:
    from benchmarks.device.cases import ROWS
    from benchmarks.device.suite import TINY_LONG

    report = measured(place, TINY_LONG, dtype, ROWS)
    assert report.missed == []
    assert [result.operation for result in report.results] == [case.name for case in ROWS]


def test_large_layers_are_checked_on_some_positions(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.core.run import check
    from benchmarks.dense.world import Size
    from benchmarks.device import world
    from benchmarks.device.cases import LONG_K, PATTERNS

    monkeypatch.setattr(world, "FULLY_CHECKED", 0)
    layers = world.DenseDeviceWorld(place, Size(2, 65, 1), "bfloat16")
    assert len(layers.sample) == world.SAMPLED
    for case in PATTERNS:
        if f"k={LONG_K}" not in case.name:  # more than there are keys
            check(case, layers)
    layers.close()


def test_a_wrong_answer_is_refused_and_the_others_are_timed(place: Place) -> None:
    from benchmarks.dense.world import Size

    right = case_named("edges, one pair in every layer and head")
    mean = case_named("head_mean")
    wrong = replace(mean, contenders={**mean.contenders, "attncache": "cache.rows(layer, heads=0)"})
    failing = replace(mean, name="failing", contenders={**mean.contenders, "attncache": "cache.head_mean(5)"})
    report = measured(place, Size(2, 9, 1), "float16", [wrong, failing, right])
    assert [(result.operation, result.way) for result in report.results] == [
        (right.name, way) for way in ("device", "host, enqueued", "host, to NumPy")
    ]
    (where, refused), (_, failed) = report.missed
    assert where == "head_mean at 2 x 9 float16"
    assert refused.startswith("wrong answer: attncache answers cache.rows(layer, heads=0, out=out)")
    assert failed.startswith("IndexError: ")
    assert right.name in report.text(markdown=True)


def test_what_comes_after_the_budget_is_named(place: Place) -> None:
    from benchmarks.dense.world import Size

    report = measured(place, Size(2, 9, 1), "float16", [case_named("head_mean")], budget=-1)
    assert report.results == []
    assert report.missed == [("head_mean", "the time is up")]


def test_it_says_why_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.core.run import main
    from benchmarks.device.suite import DeviceSuite

    if DeviceSuite().why_not() is None:
        pytest.skip("a device is here: it would be measured")
    assert main(DeviceSuite(), []) == 0
    said = capsys.readouterr().out
    assert said.startswith("not measured: ")
    assert any(words in said for words in ("torch", str(library.why_not())))
