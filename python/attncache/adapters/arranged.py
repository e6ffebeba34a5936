"""The layers in arrays whose axes are named, or follow the rules without names; used by from_attentions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from attncache.adapters.named import errors_named, in_memory, named_array
from attncache.array_input import ArrayInput, read_array
from attncache.axes import Arrangement, Axes, checked_axes, of_one_array


def is_one_array(values: Any) -> bool:
    """Whether it is one array: of NumPy, torch or the like, or a dataset of h5py or zarr, which is read layer by layer."""
    return hasattr(values, "shape") and hasattr(values, "dtype") and hasattr(values, "__getitem__")


def layers_of_array(array: Any, axes: Axes | None) -> Iterator[ArrayInput]:
    """The layers of one array that stands alone.

    Raises:
        As ``attncache.axes.of_one_array``, and as ``push`` with the number of the layer in front.
    """
    arrangement = of_one_array(array.shape, axes)
    return (_layer(f"attentions[{number}]", array, arrangement, number) for number in range(arrangement.n_layers))


def layers_of_arrays(named: Sequence[tuple[str, Any]], axes: Axes) -> Iterator[ArrayInput]:
    """The layers of several arrays whose axes are named: one each, or one batch item each if layers are named.

    Args:
        named: what errors call each array, and the array.
        axes: the names of the axes of each.

    Raises:
        ValueError: axes names both layer and batch, so that the arrays count neither; or the arrays differ in shape or
            dtype; or as ``push``.
    """
    names = checked_axes(axes)
    if "layer" not in names:
        return (named_array(name, array, axes) for name, array in named)
    if "batch" in names:
        raise ValueError(
            f"axes must leave out layer or batch where several arrays are given, which count the one that is left out, "
            f"got {' '.join(names)} for {len(named)} arrays; pass them one by one"
        )
    return _stacked([(name, in_memory(array)) for name, array in named], axes)


def _stacked(named: Sequence[tuple[str, Any]], axes: Axes) -> Iterator[ArrayInput]:
    """Layer by layer, with one batch item of each array."""
    shapes = [tuple(np.shape(array)) for _, array in named]
    for (name, _), shape in zip(named, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(f"{name} must have the shape of {named[0][0]}, {list(shapes[0])}, got {list(shape)}")
    with errors_named(named[0][0]):
        arrangement = of_one_array(shapes[0], axes)
    for number in range(arrangement.n_layers):
        items = [_layer(name, array, arrangement, number) for name, array in named]
        for (name, _), item in zip(named, items, strict=True):
            if item.dtype != items[0].dtype:
                raise ValueError(f"{name} must have the dtype of {named[0][0]}, {items[0].dtype}, got {item.dtype}")
        yield ArrayInput(np.concatenate([item.array for item in items]), items[0].dtype, is_writable=False)


def _layer(name: str, array: Any, arrangement: Arrangement, number: int) -> ArrayInput:
    with errors_named(name):
        return read_array(in_memory(arrangement.layer(array, number)))
