"""Makes ``python -m attncache`` the same as ``attncache``."""

from __future__ import annotations

import sys

from attncache.cli import main

if __name__ == "__main__":
    sys.exit(main())
