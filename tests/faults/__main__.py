"""``python -m tests.faults``."""

from __future__ import annotations

import sys

from tests.faults.run import main

sys.exit(main())
