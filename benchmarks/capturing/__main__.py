"""``python -m benchmarks.capturing``."""

from __future__ import annotations

import sys

from benchmarks.capturing.suite import CapturingSuite
from benchmarks.core.run import main

if __name__ == "__main__":
    sys.exit(main(CapturingSuite()))
