"""Proves that a sanitizer run tests the instrumented build: otherwise planted bugs would pass unseen.

Runs only where ATTNCACHE_EXPECT_SANITIZER names the sanitizers, as .ci/run sets it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attncache import _core

SYMBOLS = {"address": b"__asan_report", "thread": b"__tsan_write", "undefined": b"__ubsan_handle"}


@pytest.mark.skipif("ATTNCACHE_EXPECT_SANITIZER" not in os.environ, reason="no sanitizer was asked for")
def test_the_loaded_extension_is_the_instrumented_one() -> None:
    extension = Path(_core.__file__).read_bytes()
    for sanitizer in os.environ["ATTNCACHE_EXPECT_SANITIZER"].split(","):
        assert SYMBOLS[sanitizer] in extension
