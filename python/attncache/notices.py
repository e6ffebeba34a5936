"""The categories of this package's warnings, so that a user can silence or raise one kind alone."""

from __future__ import annotations


class PatternWarning(UserWarning):
    """What was pushed does not look like attention weights: negative numbers, or rows that sum to more than 1."""


class CaptureWarning(UserWarning):
    """A capture ended without some of the attention that it was asked for."""
