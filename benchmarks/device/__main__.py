"""``python -m benchmarks.device``."""

from __future__ import annotations

import sys

from benchmarks.core.run import main
from benchmarks.device.suite import DeviceSuite

if __name__ == "__main__":
    sys.exit(main(DeviceSuite()))
