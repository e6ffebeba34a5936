"""Writes what is at a path, of whatever kind, as one file of ours, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from attncache import _core
from attncache.array_input import ArrayInput, StoredDType
from attncache.files.contents import Contents
from attncache.files.layers import FileLayer, Planned, dense_layer, planned, planned_dense
from attncache.files.schema import Said
from attncache.files.single import write_file
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
    write_file(
        target,
        [_planned(layer, f"layers.{number}", change) for number, layer in enumerate(contents.layers)],
        Said(said, contents.said.query_tokens, metadata),
    )


def _planned(layer: FileLayer, name: str, change: Change) -> Planned:
    """How a layer is written: planned by its header, and loaded when its items are asked for."""

    def changed() -> _core.Layer:
        return _mean_of(layer) if change.mean_only else layer.load(change.dtype)

    def plan() -> Planned:
        return planned(changed(), layer.source, name, index=change.index)

    if layer.kind == "factored" and not change.mean_only:  # made twice, which is cheap beside keeping all
        return plan()._replace(items=lambda: plan().items())
    dtype: StoredDType = change.dtype or ("float32" if layer.dtype == "float64" else layer.dtype)  # type: ignore[assignment]
    shape, source = layer.shape, layer.source
    if change.mean_only:
        dtype, shape = "float32", (shape[0], 1, *shape[2:])
        source = source and replace(source, heads=None)
    return planned_dense(changed, source, name, dtype, shape, index=change.index)


def _mean_of(layer: FileLayer) -> _core.Layer:
    """The head mean as a layer of one head."""
    asked = layer.asked()
    batch_size, _, seq_q, seq_k = layer.shape
    means = np.empty((batch_size, 1, seq_q, seq_k), np.float32)
    for batch in range(batch_size):
        asked.head_mean(0, batch, out=means[batch, 0])
    return dense_layer(ArrayInput(means, "float32", is_writable=False))


def _note(layers: Sequence[FileLayer]) -> dict[str, Any]:
    """What metadata say of means: of how many heads; nothing where they change nothing."""
    heads = [layer.shape[1] for layer in layers]
    if set(heads) <= {1}:
        return {}
    notes = [f"mean of {n_heads}" for n_heads in heads]
    return {"heads": notes[0] if len(set(notes)) == 1 else notes}
