"""The library under test: the emulated one, built once for all files of this folder, and the built one on a device.

What is LONG takes minutes: it runs when this folder or a file of it is named (`pytest tests/cuda`), as .ci/run does.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from attncache.cuda import library
from cuda.compilers import DEVICE_ALONE, NO_GXX, OTHER_LIBRARY, find_gxx
from cuda.emulated import build
from cuda.recording import Recorder

HERE = Path(__file__).resolve().parent
LONG = ("test_planted.py", "test_static.py")
LONG_TESTS = ("under_sanitizers", "[seed2", "-seed2", "[seed3", "-seed3")  # parts of the names of others
IS_DEVICE_ALONE = bool(os.environ.get(DEVICE_ALONE))
LIBRARIES = ("cuda",) if IS_DEVICE_ALONE else ("emulated", "cuda") if library.is_available() else ("emulated",)


def is_named(config: pytest.Config) -> bool:
    """Whether the command line names this folder or something in it."""
    named = (config.invocation_params.dir / str(word).partition("::")[0] for word in config.invocation_params.args)
    return any(path.exists() and path.resolve().is_relative_to(HERE) for path in named)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name in LONG and not is_named(config) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def is_left_out(item: pytest.Item) -> bool:
        if IS_DEVICE_ALONE:
            return "emulated_library" in getattr(item, "fixturenames", ())
        return not is_named(config) and any(part in item.name for part in LONG_TESTS)

    left_out = [item for item in items if item.path.parent == HERE and is_left_out(item)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not is_named(config):
        terminalreporter.write_line(
            f"tests/cuda: left out, as they take minutes: {', '.join(LONG)}, sanitizers, two of three orders of threads; "
            "`pytest tests/cuda` runs them"
        )


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels' sources built by g++ against tests/cuda/shim."""
    if os.environ.get(OTHER_LIBRARY):
        return Path(os.environ[OTHER_LIBRARY])
    if find_gxx() is None:
        pytest.skip(NO_GXX)
    return build(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(params=LIBRARIES)
def recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """A device that attncache can use, and what is asked of its library; the test must leave no memory on it."""
    if request.param == "emulated":
        monkeypatch.setattr(library, "PATH", request.getfixturevalue("emulated_library"))
    yield from recording(monkeypatch)


def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Records what is asked of the library until the test ends."""
    loaded = library.load()
    recorded = Recorder(loaded.status)
    monkeypatch.setattr(loaded, "status", recorded)
    yield recorded
    recorded.failing.clear()
    gc.collect()
    assert recorded.misplaced() == {}, f"memory is left on the device, or was freed twice: {recorded.names()[-20:]}"


@pytest.fixture
def emulated(emulated_library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """The same of the emulated library alone: where streams are made up."""
    monkeypatch.setattr(library, "PATH", emulated_library)
    yield from recording(monkeypatch)
