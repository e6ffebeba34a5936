"""Writes what is at a path, of whatever kind, as one file of ours, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from attncache.array_input import StoredDType
from attncache.cache import AttentionCache
from attncache.files.contents import Contents
from attncache.files.layers import Layer, Part, alone, dense_parts, head_means, parts_of
from attncache.files.schema import Description, Said
from attncache.files.single import write_layers
from attncache.files.strict_json import checked_metadata
from attncache.files.verifying import verify
from attncache.tokens import checked_tokens


@dataclass(frozen=True)
class Change:
    """What becomes of the layers.

    Attributes:
        dtype: what they are stored as; None keeps what they have, but that float64 becomes float32.
        mean_only: whether the head mean takes the place of each layer: one head of float32, the bits of ``head_mean``.
        index: whether head means and row sums are written beside the layers.
    """

    dtype: StoredDType | None = None
    mean_only: bool = False
    index: bool = False


def convert(
    contents: Contents,
    target: Path,
    change: Change,
    tokens: Sequence[str] | Sequence[Sequence[str]] | None = None,
) -> None:
    """Write contents as one file of ours; a file that is there is replaced, or left whole if this fails.

    Args:
        contents: from ``contents_of``. Checksums of ours are compared first, so that no damage gets new ones.
        target: the file.
        change: what becomes of the layers.
        tokens: to be put in the place of those of the source.

    Raises:
        OSError, ValueError: the source cannot be read or is damaged; or as ``AttentionCache.save``. TypeError: tokens or
            metadata cannot be saved.
    """
    shapes = [layer.shape for layer in contents.layers]
    said = checked_tokens(tokens, shapes) if tokens is not None else contents.said.tokens
    metadata: Mapping[str, Any] = checked_metadata(contents.said.metadata)
    if change.mean_only:
        metadata = {**metadata, **_note(contents.layers)}
    if contents.version is not None:
        damage = next((error for file in verify(contents.path) for error in file.errors), None)
        if damage is not None:
            raise damage
    layers = _Layers(contents.layers, change)
    write_layers(
        target,
        [layers.described(number) for number in range(len(shapes))],
        Said(said, contents.said.query_tokens, metadata),
    )


class _Layers:
    """Layers to be written: planned by their headers, made one at a time when their items are asked for."""

    def __init__(self, layers: Sequence[Layer], change: Change) -> None:
        self._layers, self._change = layers, change
        self._latest: tuple[int, AttentionCache] | None = None

    def described(self, number: int) -> tuple[Description, list[Part]]:
        """Description and tensors of one layer; those of queries and keys are made twice, which is cheap beside keeping all."""
        layer, change, name = self._layers[number], self._change, f"layers.{number}"
        if layer.kind == "factored" and not change.mean_only:
            description, planned = parts_of(*self._made(number)._sourced[0], name, index=change.index)

            def again(at: int) -> npt.NDArray[Any]:
                return parts_of(*self._made(number)._sourced[0], name, index=change.index)[1][at].items()

            return description, [part._replace(items=partial(again, at)) for at, part in enumerate(planned)]
        dtype: StoredDType = change.dtype or ("float32" if layer.dtype == "float64" else layer.dtype)  # type: ignore[assignment]
        shape, source = layer.shape, layer.source
        if change.mean_only:
            dtype, shape = "float32", (shape[0], 1, *shape[2:])
            source = source and replace(source, heads=None)
        return dense_parts(lambda: self._made(number)._layer(0), name, dtype, shape, index=change.index, source=source)

    def _made(self, number: int) -> AttentionCache:
        """One layer as it is to be written; remembered until another is asked for."""
        if self._latest is None or self._latest[0] != number:
            self._latest = None  # so that two are never there at once
            layer, change = self._layers[number], self._change
            self._latest = number, _mean_of(layer.as_cache()) if change.mean_only else layer.as_cache(change.dtype)
        return self._latest[1]


def _mean_of(layer: AttentionCache) -> AttentionCache:
    """The head mean of the only layer, as a layer of one head."""
    means = head_means(layer._layer(0))[:, None]
    means.flags.writeable = False
    return alone(lambda cache: cache.push(means, check=False))


def _note(layers: Sequence[Layer]) -> dict[str, Any]:
    """What metadata say of means: of how many heads; nothing where they change nothing."""
    heads = [layer.shape[1] for layer in layers]
    if set(heads) <= {1}:
        return {}
    notes = [f"mean of {n_heads}" for n_heads in heads]
    return {"heads": notes[0] if len(set(notes)) == 1 else notes}
