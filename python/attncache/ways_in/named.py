"""Reads one pattern under the name that its owner knows it by, so that an error says which of many it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from attncache.sources import Source, read_source

FUSED = "use attncache.capture, or load the model with attn_implementation='eager'"


def named_source(name: str, pattern: Any) -> Source:
    """The pattern as ``push`` reads it.

    Args:
        name: what to call it in an error.
        pattern: as for ``push``; None is a layer that gave no attention.

    Raises:
        As ``push``, with the name in front; ValueError if pattern is None.

    >>> named_source("attentions[1]", None)
    Traceback (most recent call last):
    ValueError: attentions[1] must be a pattern, got None: the layer has no attention weights, or computed them in a
    fused kernel such as SDPA; use attncache.capture, or load the model with attn_implementation='eager'
    """
    if pattern is None:
        raise ValueError(
            f"{name} must be a pattern, got None: the layer has no attention weights, or computed them in a fused "
            f"kernel such as SDPA; {FUSED}"
        )
    with errors_named(name):
        return read_source(pattern)


@contextmanager
def errors_named(name: str) -> Iterator[None]:
    """Puts a name in front of every TypeError and ValueError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError  # a subclass may take other arguments
        raise kind(f"{name}: {error}") from error
