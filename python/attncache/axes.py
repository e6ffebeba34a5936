"""Which axis of an array is which: what ``axes=`` says, and what arrays of several numbers of axes mean without it.

Everything that takes patterns of others uses it: from_attentions, from_transformer_lens, files and the commands. It
works on shapes, so that a file's arrays can be arranged before one of them is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Axes: TypeAlias = str | Sequence[str]

WORDS = ("layer", "batch", "head", "query", "key")
_EXAMPLE = 'such as axes="layer head query key"'


def checked_axes(axes: Axes) -> tuple[str, ...]:
    """The names of an array's axes, in the order of its axes.

    Args:
        axes: names out of layer, batch, head, query and key, as one string with spaces or commas between them, or as a
            sequence; query and key must be there, and none twice.

    Raises:
        TypeError: it is neither. ValueError: a name is none of these, is there twice, or query or key is missing.

    >>> checked_axes("layer head query key")
    ('layer', 'head', 'query', 'key')
    """
    names: Any = axes.replace(",", " ").split() if isinstance(axes, str) else axes
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"axes must be a string or a sequence of strings, {_EXAMPLE}, got {axes!r}")
    unknown = [name for name in names if name not in WORDS]
    if unknown:
        raise ValueError(f"axes must be names out of {', '.join(WORDS)}, got {unknown[0]!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"axes must name no axis twice, got {axes!r}")
    if not {"query", "key"} <= set(names):
        raise ValueError(f"axes must name query and key, got {axes!r}")
    return tuple(names)


@dataclass(frozen=True)
class Arrangement:
    """How the layers lie in one array.

    Attributes:
        names: the name of each axis of the array.
        shape: of the array.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def has_layers(self) -> bool:
        """Whether the array has an axis of layers."""
        return "layer" in self.names

    @property
    def n_layers(self) -> int:
        """How many layers the array holds."""
        return self.shape[self.names.index("layer")] if self.has_layers else 1

    @property
    def layer_shape(self) -> tuple[int, int, int, int]:
        """[batch, head, query, key] of one layer; an axis that is not there counts 1."""
        sizes = dict(zip(self.names, self.shape, strict=True))
        batch, head, query, key = (sizes.get(name, 1) for name in WORDS[1:])
        return batch, head, query, key

    def layer(self, array: Any, number: int) -> Any:
        """One layer as [batch, head, query, key]: a view of an array of NumPy or torch, read from a dataset in a file."""
        names = list(self.names)
        if self.has_layers:
            at = names.index("layer")
            array = array[(slice(None),) * at + (number,)]
            names.pop(at)
        if not hasattr(array, "transpose"):  # of h5py or zarr
            array = np.asarray(array)
        for name in WORDS[1:3]:  # batch and head, which may be missing
            if name not in names:
                array = array[None]
                names.insert(0, name)
        return (array.permute if hasattr(array, "permute") else array.transpose)(
            [names.index(name) for name in WORDS[1:]]
        )


def of_one_array(shape: Sequence[int], axes: Axes | None = None) -> Arrangement:
    """How one array that stands alone is read.

    Args:
        shape: of the array.
        axes: as for ``checked_axes``; None reads five axes as [layer, batch, head, query, key] and four or three as one
            layer, [batch, head, query, key] or [head, query, key].

    Raises:
        ValueError: axes names another number of axes than there are; or without axes it is not clear which are which:
            five axes of which the first is 1 and the second is not, four of which the first is not 1, or another number.

    >>> of_one_array((6, 3, 8, 8), "layer head query key").layer_shape
    (1, 3, 8, 8)
    >>> of_one_array((6, 3, 8, 8))
    Traceback (most recent call last):
    ValueError: axes must be given for an array of shape [6, 3, 8, 8]: it may hold 6 layers (axes="layer head query key")
    or one layer of 6 batch items (axes="batch head query key")
    """
    shape = tuple(shape)
    if axes is not None:
        return _named(shape, axes)
    if len(shape) == 5:
        if shape[0] == 1 and shape[1] != 1:
            raise ValueError(
                f"axes must be given for an array of shape {list(shape)}: it may hold {shape[1]} layers "
                f'(axes="batch layer head query key") or one layer of {shape[1]} batch items '
                '(axes="layer batch head query key")'
            )
        return Arrangement(WORDS, shape)
    if len(shape) == 4 and shape[0] != 1:
        raise ValueError(
            f"axes must be given for an array of shape {list(shape)}: it may hold {shape[0]} layers "
            f'(axes="layer head query key") or one layer of {shape[0]} batch items (axes="batch head query key")'
        )
    return of_one_layer(shape)


def of_one_layer(shape: Sequence[int], axes: Axes | None = None) -> Arrangement:
    """How one of several arrays, one per layer, is read.

    Args:
        shape: of the array.
        axes: as for ``checked_axes``; None is [batch, head, query, key] or [head, query, key].

    Raises:
        ValueError: axes names another number of axes than there are; or without axes there are not three or four.
    """
    shape = tuple(shape)
    if axes is not None:
        return _named(shape, axes)
    if len(shape) not in (3, 4):
        raise ValueError(
            f"a layer must be [batch, head, query, key] or [head, query, key], got shape {list(shape)}; "
            f"axes= names other axes, {_EXAMPLE}"
        )
    return Arrangement(WORDS[-len(shape) :], shape)


def _named(shape: tuple[int, ...], axes: Axes) -> Arrangement:
    names = checked_axes(axes)
    if len(names) != len(shape):
        raise ValueError(f"axes must name each of the {len(shape)} axes of shape {list(shape)}, got {' '.join(names)}")
    return Arrangement(names, shape)
