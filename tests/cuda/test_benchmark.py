"""`python -m benchmarks.cuda` as far as it goes without a GPU.

Covered: what it says without a device; with torch, every case on emulated device memory: both contenders answer like the
reference, a wrong answer is refused, a row of the table comes out (timed by the host's clock).
Not covered: device events, and every number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from attncache import AttentionCache
from attncache.cuda import library
from cuda.placing import put
from cuda.recording import Recorder

if TYPE_CHECKING:
    from benchmarks.device_cases import DeviceWorld


@pytest.fixture
def world(emulated: Recorder) -> Iterator[DeviceWorld]:
    pytest.importorskip("torch", reason="answers are compared with torch's")
    import torch

    from benchmarks.device_cases import DeviceWorld
    from benchmarks.worlds import Size

    world = DeviceWorld(Size(2, 301, 1), "float16", torch, lambda tensor: tensor)
    world.cache = AttentionCache(index="off")
    for pattern in world.patterns:
        world.cache.push(put(pattern))
    yield world
    vars(world).clear()  # the cache must let go of its device memory before that is counted


def test_every_case_answers_like_the_reference_and_gives_a_row(world: DeviceWorld) -> None:
    from benchmarks import cuda, timing
    from benchmarks.device_cases import CASES

    for case in CASES:
        row = cuda.measured(case, world, timing.Plan(1e-6, 1e-6, 1, 1), timing.seconds, copied=1e9)
        assert len(row) == len(cuda.HEADER)


def test_a_wrong_answer_is_refused(world: DeviceWorld) -> None:
    from benchmarks import cuda
    from benchmarks.answers import WrongAnswerError
    from benchmarks.case import OURS
    from benchmarks.device_cases import CASES

    case = next(case for case in CASES if case.name == "head_mean")
    wrong = replace(case, contenders={**case.contenders, OURS: "cache.rows(layer, heads=0, device_result=True)"})
    with pytest.raises(WrongAnswerError, match="head_mean at 2 x 301 float16: attncache answers"):
        cuda.check(wrong, world)


def test_it_says_why_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import cuda

    if cuda.why_not() is None:
        pytest.skip("a device is here: it would be measured")
    assert cuda.main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("not measured: ")
    assert any(words in said for words in ("torch", str(library.why_not())))
