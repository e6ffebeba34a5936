"""The library under test: the emulated one, built once for all files of this folder, and the built one on a device."""

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
