"""Writes what is at a path, of whatever kind, as one file of ours, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from attncache.array_input import StoredDType
from attncache.cache import AttentionCache
from attncache.files.contents import Contents, Layer
from attncache.files.layer_writing import Part, dense_parts, parts_of
from attncache.files.said import Said
from attncache.files.schema import Description
from attncache.files.single import write_layers
from attncache.files.user_metadata import checked_metadata
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
    said = checked_tokens(tokens, shapes) if tokens is not None else contents.tokens
    metadata: Mapping[str, Any] = checked_metadata(contents.metadata)
    if change.mean_only:
        metadata = {**metadata, **_note(contents.layers)}
    if contents.version is not None:
        damage = next((error for file in verify(contents.path) for error in file.errors), None)
        if damage is not None:
            raise damage
    layers = _Layers(contents, change)
    described = [layers.described(number) for number in range(len(shapes))]
    write_layers(target, described, Said(said, contents.query_tokens, metadata))


class _Layers:
    """Layers to be written: planned by their headers, made one at a time when their items are asked for."""

    def __init__(self, contents: Contents, change: Change) -> None:
        self._contents = contents
        self._change = change
        self._latest: tuple[int, AttentionCache] | None = None

    def described(self, number: int) -> tuple[Description, list[Part]]:
        """Description and tensors of one layer."""
        name, stored, change = f"layers.{number}", self._contents.layers[number], self._change
        if stored.kind == "factored" and not change.mean_only:
            return self._factored(number, name)
        dtype = change.dtype or _narrowed(stored.dtype)
        shape, source = stored.shape, stored.source
        if change.mean_only:
            dtype, shape = "float32", (shape[0], 1, *shape[2:])
            source = source and replace(source, heads=None)
        return dense_parts(lambda: (self._made(number), 0), name, dtype, shape, index=change.index, source=source)

    def _factored(self, number: int, name: str) -> tuple[Description, list[Part]]:
        """As ``described``, of queries and keys: they are made twice, which is cheap beside keeping all."""

        def parts() -> tuple[Description, list[Part]]:
            return parts_of(self._made(number), 0, name, index=self._change.index)

        def again(part: Part) -> Part:
            return part._replace(items=lambda: next(same for same in parts()[1] if same.name == part.name).items())

        description, planned = parts()
        return description, [again(part) for part in planned]

    def _made(self, number: int) -> AttentionCache:
        """One layer as it is to be written; remembered until another is asked for."""
        if self._latest is None or self._latest[0] != number:
            self._latest = None  # so that two are never there at once
            change = self._change
            layer = self._contents.read_layer(number, None if change.mean_only else change.dtype)
            self._latest = number, _mean_of(layer) if change.mean_only else layer
        return self._latest[1]


def _mean_of(layer: AttentionCache) -> AttentionCache:
    """The head mean of the only layer, as a layer of one head."""
    batch_size, _, seq_q, seq_k = layer.shapes[0]
    means = np.empty((batch_size, 1, seq_q, seq_k), np.float32)
    for batch in range(batch_size):
        layer.head_mean(0, batch, out=means[batch, 0])
    means.flags.writeable = False
    mean = AttentionCache(index="off")
    mean.push(means, check=False)
    return mean


def _note(layers: Sequence[Layer]) -> dict[str, Any]:
    """What metadata say of means: of how many heads; nothing where they change nothing."""
    heads = [layer.shape[1] for layer in layers]
    if set(heads) <= {1}:
        return {}
    notes = [f"mean of {n_heads}" for n_heads in heads]
    return {"heads": notes[0] if len(set(notes)) == 1 else notes}


def _narrowed(dtype: str) -> StoredDType:
    """What a layer of this dtype is stored as if nothing else is asked for."""
    return "float32" if dtype == "float64" else dtype  # type: ignore[return-value]
