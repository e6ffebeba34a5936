"""The queries over any selection of layers, batch items, heads and positions; AttentionCache has them from here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from attncache import _core
from attncache.results import TopK, TopKWithTokens
from attncache.tokens import Described, Tokens, answer_tokens

Selector: TypeAlias = int | slice | Sequence[int] | npt.NDArray[np.integer[Any]] | None
HeadSelector: TypeAlias = Selector | Literal["mean"] | tuple[Literal["mean"], Selector]
Weights: TypeAlias = npt.NDArray[np.float32]


class Selections(_core.Store):
    """Layers that are asked for rows, columns, edges and the heaviest of these."""

    _tokens: Tokens | None
    _query_tokens: Tokens | None

    def rows(
        self,
        layers: Selector = None,
        positions: Selector = None,
        *,
        heads: HeadSelector = "mean",
        batch: Selector = 0,
        out: Weights | None = None,
    ) -> Weights:
        """What the chosen queries attend to.

        A selector is None for all, an int (its axis is dropped), or a slice or sequence of ints (its axis is kept, in
        that order, repeats allowed), which may be an array of NumPy or a tensor of torch with one axis.

        Args:
            layers: which layers; they must have one shape.
            positions: which query positions.
            heads: which heads, or "mean" for the mean over all, or ("mean", selector) for the mean over those.
            batch: which batch items.
            out: None, or a writable C-contiguous float32 array of the result's shape to write into and return. Of layers on
                a device it may lie there: it is then written on its stream, and nobody waits (docs/cuda.md).

        Returns:
            A float32 array, new or ``out``, of shape [layer, batch, head, position, key] without the dropped axes. Exact
            on stored patterns, bounded on factored layers (docs/factored.md).

        Raises:
            IndexError: an index is out of range. TypeError: a selector is of the wrong kind. ValueError: the layers
                differ in shape or device, or there are none, or out does not fit.

        >>> cache = AttentionCache()
        >>> cache.push([[[[1.0, 0.0], [0.25, 0.75]], [[1.0, 0.0], [0.75, 0.25]]]])
        >>> cache.rows(positions=1)
        array([[0.5, 0.5]], dtype=float32)
        >>> cache.rows(0, 1, heads=None)
        array([[0.25, 0.75],
               [0.75, 0.25]], dtype=float32)
        """
        return _core.rows(self, layers, positions, heads, batch, out)

    def columns(
        self,
        layers: Selector = None,
        positions: Selector = None,
        *,
        heads: HeadSelector = "mean",
        batch: Selector = 0,
        out: Weights | None = None,
    ) -> Weights:
        """Who attends to the chosen keys.

        Args:
            layers, heads, batch, out: as for ``rows``.
            positions: which key positions.

        Returns:
            A float32 array of shape [layer, batch, head, position, query] without the dropped axes. Exact on stored
            patterns, bounded on factored layers, which compute the sums of all rows once for it.

        Raises:
            As ``rows``; ValueError also for factored layers on a device: ask ``cpu()``.

        >>> cache = AttentionCache()
        >>> cache.push([[[[1.0, 0.0], [0.25, 0.75]]]])
        >>> cache.columns(0, 0)
        array([1.  , 0.25], dtype=float32)
        """
        return _core.columns(self, layers, positions, heads, batch, out)

    def edges(
        self,
        from_positions: Selector,
        to_positions: Selector,
        *,
        layers: Selector = None,
        heads: HeadSelector = None,
        batch: Selector = 0,
        out: Weights | None = None,
    ) -> Weights:
        """The weights of chosen (query, key) pairs, every chosen query with every chosen key.

        Args:
            from_positions: which query positions.
            to_positions: which key positions.
            layers, heads, batch, out: as for ``rows``; here each head is shown unless asked otherwise.

        Returns:
            A float32 array of shape [layer, batch, head, from, to] without the dropped axes. Exact on stored patterns,
            bounded on factored layers.

        Raises:
            As ``rows``.

        >>> cache = AttentionCache()
        >>> cache.push([[[[1.0, 0.0], [0.25, 0.75]]]])
        >>> cache.edges(-1, 0)
        array([[0.25]], dtype=float32)
        """
        return _core.edges(self, from_positions, to_positions, layers, heads, batch, out)

    def top_k(
        self,
        k: int,
        layers: Selector = None,
        positions: Selector = None,
        *,
        heads: HeadSelector = "mean",
        batch: Selector = 0,
        direction: Literal["from", "to"] = "from",
    ) -> TopK:
        """The k heaviest keys of each chosen query, or the k heaviest queries of each chosen key.

        Args:
            k: how many; 0 gives none, more than there are gives all.
            layers, heads, batch: as for ``rows``.
            positions: which query positions (direction "from") or key positions ("to").
            direction: "from" ranks the keys that a query attends to, "to" the queries that attend to a key.

        Returns:
            TopK(positions, weights): new int64 and float32 arrays of shape [layer, batch, head, position, k] without
            the dropped axes; heaviest first, equal weights to the lower position, NaN after every number. Exact
            on stored patterns; of factored layers the order is exact and the weights are bounded.
            If the cache has ``tokens``, the answer shows them and gives them as ``tokens()``.

        Raises:
            As ``rows``; ValueError also if k is negative or direction is neither, and as ``columns`` if that is "to".

        >>> cache = AttentionCache()
        >>> cache.push([[[[1.0, 0.0], [0.25, 0.75]]]])
        >>> cache.top_k(1, layers=0)
        TopK(positions=array([[0],
               [1]]), weights=array([[1.  ],
               [0.75]], dtype=float32))
        """
        found = TopK(*_core.top_k(self, k, layers, positions, heads, batch, direction))
        described = Described(self._tokens, self._query_tokens, self.shapes, ())
        if described.tokens is None and described.query_tokens is None:
            return found
        known = answer_tokens(described._replace(sources=self._sources), layers, batch, direction)
        return found if known is None else TopKWithTokens.of(*found, known)


for _name, _method in vars(Selections).items():  # a wrong argument is then reported of the class that users know
    if callable(_method):
        _method.__qualname__ = f"AttentionCache.{_name}"
