"""The emulated library, built once for all files of this folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cuda import emulated
from cuda.compilers import NO_GXX, find_gxx

OTHER_LIBRARY = "ATTNCACHE_EMULATED_LIBRARY"  # set by test_planted.py, which asks whether these tests see a bug


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels' sources built by g++ against tests/cuda/shim."""
    if os.environ.get(OTHER_LIBRARY):
        return Path(os.environ[OTHER_LIBRARY])
    if find_gxx() is None:
        pytest.skip(NO_GXX)
    return emulated.build(tmp_path_factory.mktemp("emulated"))
