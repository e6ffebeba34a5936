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
from cuda.emulated import build, load
from cuda.header import Library
from cuda.launching import Emulated

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
def on_device(request: pytest.FixtureRequest) -> None:
    """A device that attncache can use; on the emulated one the test must leave no memory."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")


@pytest.fixture
def emulated(emulated_library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulated]:
    """The emulated device alone, and what its runtime is asked for: where streams are made up, or calls fail."""
    monkeypatch.setattr(library, "PATH", emulated_library)
    runtime = Emulated(Library(emulated_library), load(emulated_library))
    gc.collect()
    runtime.clear()
    before = runtime.live_bytes()
    yield runtime
    runtime.clear()
    gc.collect()
    assert runtime.live_bytes() == before, "memory is left on the device"
