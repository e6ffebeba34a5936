"""The library under test: the emulated one, built once for all files of this folder, and the built one on a device."""

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
IS_DEVICE_ALONE = bool(os.environ.get(DEVICE_ALONE))
LIBRARIES = ("cuda",) if IS_DEVICE_ALONE else ("emulated", "cuda") if library.is_available() else ("emulated",)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def is_left_out(item: pytest.Item) -> bool:
        return item.path.parent == HERE and "emulated_library" in getattr(item, "fixturenames", ())

    left_out = [item for item in items if IS_DEVICE_ALONE and is_left_out(item)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


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
