"""Where captured queries and keys go: into factored layers as they are, or into dense layers computed at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from attncache import _core
from attncache.cache import AttentionCache
from attncache.capturing.masks import Sight
from attncache.factored import Options, dense_pattern, push_pattern_of
from attncache.sources import StoredDType, stored_dtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Piece:
    """The chosen heads of one call.

    Attributes:
        query: CPU tensor of shape [batch, head, query, head_dim].
        key: CPU tensor of shape [batch, key head, key, head_dim], where the last key is the last query's own.
        sight: what the layer's queries see, these included.
        first_key: the position of ``key[:, :, 0]``.
        scale, softcap: how scores come from products.
        sinks: float32 [head] or None.
    """

    query: torch.Tensor
    key: torch.Tensor
    sight: Sight
    first_key: int
    scale: float
    softcap: float | None
    sinks: npt.NDArray[np.float32] | None

    @property
    def options(self) -> Options:
        """How the pattern comes from query and key."""
        return Options(
            scale=self.scale,
            causal=self.sight.causal,
            window=self.sight.window,
            softcap=self.softcap,
            key_mask=self.key_mask(self.first_key),
            sinks=self.sinks,
        )

    def key_mask(self, first: int) -> npt.NDArray[np.bool_] | None:
        """Which keys from position ``first`` on may be seen, bool [batch, key], or None if all may."""
        mask = self.sight.key_mask
        if mask is None:
            return None
        mask = mask[:, first:]
        return np.ascontiguousarray(mask.expand(self.query.shape[0], mask.shape[1]).numpy())


_LARGE = 4 << 20  # bytes of a layer's queries


def give_back_after(piece: Piece) -> None:
    """Give freed memory back to the system after a large layer.

    What a layer leaves behind, if only a small object, lies on the heap behind the activations that the model has freed
    by then, and would keep their room from being used again: gigabytes over all layers of a long text.
    """
    if piece.query.nbytes >= _LARGE:
        _core.give_back_freed_memory()


class LayerStore(Protocol):
    """Takes the pieces of layers: one to begin a layer, more to append to it."""

    def begin(self, piece: Piece) -> None:
        """Make a new layer."""

    def append(self, layer: int, piece: Piece) -> None:
        """Add the piece's queries, and their keys, at the end of a layer."""

    def finish(self, advance: Callable[[], None]) -> None:
        """Leave every layer whole; called once, and ``advance`` after each layer that took work."""


class FactoredLayers:
    """Keeps queries and keys.

    Args:
        cache: where the layers go.
        joins_late: whether what is appended to a layer is kept in memory and joins it at the end: a layer on disk is
            written anew for it.
    """

    def __init__(self, cache: AttentionCache, joins_late: bool = False) -> None:
        self._cache = cache
        self._joins_late = joins_late
        self._later: dict[int, list[tuple[torch.Tensor, torch.Tensor, npt.NDArray[np.bool_] | None]]] = {}

    def begin(self, piece: Piece) -> None:
        self._cache.push_qk(piece.query, piece.key, **piece.options._asdict())
        give_back_after(piece)

    def append(self, layer: int, piece: Piece) -> None:
        n_new = piece.query.shape[2]
        key_mask = piece.key_mask(piece.sight.n_keys - n_new)
        key = piece.key[:, :, -n_new:]
        if self._joins_late:
            self._later.setdefault(layer, []).append((piece.query.clone(), key.clone(), key_mask))
        else:
            self._cache.append_qk(layer, piece.query, key, key_mask=key_mask)

    def finish(self, advance: Callable[[], None]) -> None:
        import torch  # noqa: PLC0415 (loaded already: it made the tensors)

        for layer in sorted(self._later):
            queries, keys, masks = zip(*self._later.pop(layer), strict=True)
            shown = [np.ones((key.shape[0], key.shape[2]), np.bool_) for key in keys]
            mask = np.concatenate(
                [given if given is not None else all_ for given, all_ in zip(masks, shown, strict=True)], 1
            )
            self._cache.append_qk(layer, torch.cat(queries, 2), torch.cat(keys, 2), key_mask=mask)
            advance()


class DenseLayers:
    """Computes each pattern as its queries and keys arrive; rows of later calls join their layer at the end.

    Args:
        cache: where the layers go.
        dtype: what they are stored as; None keeps the dtype of the queries.
    """

    def __init__(self, cache: AttentionCache, dtype: StoredDType | None) -> None:
        self._cache = cache
        self._dtype = dtype
        self._rows: dict[int, list[tuple[int, npt.NDArray[Any]]]] = {}

    def begin(self, piece: Piece) -> None:
        push_pattern_of(self._cache, piece.query, piece.key, piece.options, self._dtype_of(piece))
        give_back_after(piece)

    def append(self, layer: int, piece: Piece) -> None:
        rows = dense_pattern(piece.query, piece.key, piece.options, self._dtype_of(piece))
        self._rows.setdefault(layer, []).append((piece.first_key, rows))

    def finish(self, advance: Callable[[], None]) -> None:
        for layer in sorted(self._rows):
            rows = self._rows.pop(layer)
            first = self._cache[layer]
            first_key, last = rows[-1]
            n_queries = first.shape[2] + sum(row.shape[2] for _, row in rows)
            merged = np.zeros((*first.shape[:2], n_queries, first_key + last.shape[3]), last.dtype)
            query = 0
            for first_key, row in [(0, first), *rows]:
                merged[:, :, query : query + row.shape[2], first_key : first_key + row.shape[3]] = row
                query += row.shape[2]
            merged.flags.writeable = False
            new = AttentionCache(self._dtype, index=self._cache.index)
            new.push(merged, check=False, source=self._cache.sources[layer])
            self._cache._replace_layer(layer, new)
            advance()

    def _dtype_of(self, piece: Piece) -> StoredDType:
        """What the pattern of a piece is stored as."""
        return self._dtype or stored_dtype(piece.query.dtype) or "float32"
