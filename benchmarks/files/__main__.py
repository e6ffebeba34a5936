"""``python -m benchmarks.files``."""

from __future__ import annotations

import sys

from benchmarks.core.run import main
from benchmarks.files.suite import FilesSuite

if __name__ == "__main__":
    sys.exit(main(FilesSuite()))
