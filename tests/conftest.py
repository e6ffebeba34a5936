"""What every test file shares: the installed package under test, its header, and the level, thread and dtype fixtures.

Covered: that the tested attncache is the installed one, never the source tree's `python/attncache`; that a forced
SIMD level or thread count is really in force, and that no test leaves another one behind.
Seeds: every random array comes from `support.patterns.SEED`; hypothesis runs derandomised, so a failure repeats by itself.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import settings

# Files are tested side by side, and torch's threads would wait for each other: five times as long on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import attncache
from tests.support.command_line import Run
from tests.support.patterns import DTYPES, SEED

settings.register_profile("fixed", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("fixed")

SOURCE_TREE = Path(__file__).resolve().parents[1] / "python"


def tested_package() -> Path:
    """Where the attncache under test lives."""
    return Path(attncache.__file__).resolve().parent


def cpu_name() -> str:
    """The CPU's own name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def pytest_configure() -> None:
    if tested_package().is_relative_to(SOURCE_TREE):
        raise pytest.UsageError(f"the tests must run against an installed attncache, got {tested_package()}")


def pytest_report_header() -> list[str]:
    return [
        f"attncache {attncache.__version__} from {tested_package()}",
        f"cpu {cpu_name()}, threads {attncache.get_num_threads()}",
        f"simd {attncache.simd.active()} of {', '.join(attncache.simd.available())}",
        f"numpy {np.__version__}, ml_dtypes {ml_dtypes.__version__}, seed {SEED}",
    ]


@pytest.fixture(autouse=True)
def _leaves_level_and_threads_alone() -> Iterator[None]:
    before = attncache.simd.active(), attncache.get_num_threads()
    yield
    assert (attncache.simd.active(), attncache.get_num_threads()) == before, "the test left its level or threads behind"


@pytest.fixture(params=attncache.simd.available())
def simd_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each SIMD level of this machine, forced for the test and restored after it."""
    before = attncache.simd.active()
    with attncache.simd.use(request.param):
        assert attncache.simd.active() == request.param
        yield request.param
        assert attncache.simd.active() == request.param, "the forced level did not last"
    assert attncache.simd.active() == before


@pytest.fixture(params=(1, 2, 3), ids=lambda count: f"threads{count}")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """A thread count, forced for the test and restored after it."""
    before = attncache.get_num_threads()
    attncache.set_num_threads(request.param)
    assert attncache.get_num_threads() == request.param
    yield request.param
    attncache.set_num_threads(before)


@pytest.fixture(params=tuple(DTYPES))
def dtype(request: pytest.FixtureRequest) -> str:
    """The name of each dtype a layer may be stored in."""
    return str(request.param)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, asserts that it succeeded silently, gives the lines of its output."""

    from attncache import cli

    def command(*arguments: str) -> list[str]:
        assert cli.main([str(argument) for argument in arguments]) == 0
        output, errors = capsys.readouterr()
        assert errors == ""
        return output.splitlines()

    return command


@pytest.fixture
def ask(run: Run) -> Callable[..., Any]:
    """The same with ``--json``: the value of the one document on stdout."""

    def command(*arguments: str) -> Any:
        (line,) = run(*arguments, "--json")
        return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    return command


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str]]:
    """Runs a command that must end with 1: its document with ``--json``, and its one line on stderr.

    Without ``--json`` it must say the same on stderr.
    """

    from attncache import cli

    def command(*arguments: str) -> tuple[Any, str]:
        words = [str(argument) for argument in arguments]
        assert cli.main(words) == 1
        line = capsys.readouterr().err
        assert cli.main([*words, "--json"]) == 1
        output, errors = capsys.readouterr()
        assert errors == line
        assert re.fullmatch(r"attncache: error: [^\n]+\n", line)
        assert output.count("\n") == 1
        return json.loads(output), line.removeprefix("attncache: error: ").rstrip("\n")

    return command


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, as in a terminal: what is started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def without_gradients() -> Iterator[None]:
    """No gradients of torch; and a capture of the test must leave transformers as it was."""
    import torch
    from transformers.modeling_utils import AttentionInterface

    before = AttentionInterface.get_interface
    with torch.no_grad():
        yield
    assert AttentionInterface.get_interface is before, "a capture left its patch behind"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory of five runs, run-1.safetensors, run-2, .."""
    from tests.support.asked_of_runs import write_runs

    directory = tmp_path / "runs"
    directory.mkdir()
    write_runs(directory, 5)
    return directory


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Counts the caches that are opened, and those that still are."""
    from tests.support.asked_of_runs import Opened

    return Opened(monkeypatch)


@pytest.fixture
def everything_is_as_it_was() -> Iterator[None]:
    """Captures of the test must leave no mode of torch open, no function replaced, and nothing that listens."""
    import torch
    import torch.nn.functional as F

    from attncache.adapters.capture.seams import listening

    before = [F.scaled_dot_product_attention, F.softmax, F.multi_head_attention_forward, torch.softmax]
    yield
    assert torch._C._len_torch_function_stack() == 0
    assert before == [F.scaled_dot_product_attention, F.softmax, F.multi_head_attention_forward, torch.softmax]
    assert not listening.of_thread()
    assert not listening._listeners
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch._dynamo.eval_frame._stance.stance == "default"
