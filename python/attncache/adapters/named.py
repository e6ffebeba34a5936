"""Reads one pattern under the name that its owner knows it by, so that an error says which of many it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from attncache.array_input import ArrayInput, is_torch_tensor, read_array
from attncache.axes import Axes, of_one_layer
from attncache.layer_source import LayerSource

FUSED = "use attncache.capture, or load the model with attn_implementation='eager'"


class LayerPattern(NamedTuple):
    """One layer to push.

    Attributes:
        pattern: [batch, head, query, key].
        source: what is known of the place in the model that it comes from.
    """

    pattern: ArrayInput
    source: LayerSource | None = None


def named_array(name: str, pattern: Any, axes: Axes | None = None) -> ArrayInput:
    """The pattern as ``push`` reads it.

    Args:
        name: what to call it in an error.
        pattern: as for ``push``, and a tensor on any device, which is copied; None is a layer that gave no attention.
        axes: the names of its axes; None is [batch, head, query, key] or [head, query, key].

    Raises:
        As ``push``, with the name in front; ValueError if pattern is None.

    >>> named_array("attentions[1]", None)
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
        array = in_memory(pattern)
        if not hasattr(array, "shape"):  # of DLPack, or what is no array at all
            return read_array(array)
        source = read_array(of_one_layer(array.shape, axes).layer(array, 0))
        return source._replace(is_converted=isinstance(pattern, list | tuple) or source.is_converted)


def in_memory(values: Any) -> Any:
    """A tensor without its gradient and in CPU memory; nested lists as an array; anything else as it is."""
    if is_torch_tensor(values):
        return values.detach().cpu()
    if isinstance(values, list | tuple):
        try:
            return np.asarray(values)
        except ValueError as error:
            raise TypeError(f"pattern must be an array, got a {type(values).__name__}: {error}") from error
    return values


@contextmanager
def errors_named(name: str) -> Iterator[None]:
    """Puts a name in front of every TypeError and ValueError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError  # a subclass may take other arguments
        raise kind(f"{name}: {error}") from error
