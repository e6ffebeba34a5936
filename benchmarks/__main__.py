"""``python -m benchmarks``."""

from __future__ import annotations

import sys

from benchmarks.core.run import main
from benchmarks.dense.suite import DenseSuite

if __name__ == "__main__":
    sys.exit(main(DenseSuite()))
