"""``python -m benchmarks.factored``."""

from __future__ import annotations

import os
import sys

from benchmarks.core.run import main
from benchmarks.factored.suite import FactoredSuite

if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's idle threads sleep: they would spin on others' cores
    sys.exit(main(FactoredSuite()))
