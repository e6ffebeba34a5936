"""fork, for processes of the harness that must share memory and skip the start of an interpreter."""

from __future__ import annotations

import os
import warnings


def fork() -> int:
    """As ``os.fork``. Python warns of threads; ours are made anew in a child that needs them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()
