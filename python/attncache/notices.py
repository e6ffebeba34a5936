"""The categories of this package's warnings, so that a user can silence or raise one kind alone, and how they are given."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).parent)


class PatternWarning(UserWarning):
    """What was pushed does not look like attention weights: negative numbers, or rows that sum to more than 1."""


class CaptureWarning(UserWarning):
    """A capture ended without some of the attention that it was asked for."""


def warn_user(message: str, category: type[Warning], through: tuple[str, ...] = ()) -> None:
    """Warn about the line of the user's own code that called this package, however deep in it we are.

    Args:
        message, category: the warning.
        through: files of others that stand between, each by the end of its path.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None:
        path = frame.f_code.co_filename
        if not path.startswith(_PACKAGE) and not path.endswith(through or "\0"):
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
