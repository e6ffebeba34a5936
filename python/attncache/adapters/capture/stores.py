"""Where captured attention goes: into factored layers as queries and keys, or into dense layers computed at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from attncache import _core
from attncache.adapters.capture.calls import Call, Weights
from attncache.adapters.capture.growth import Step
from attncache.adapters.capture.weights import dense_weights, heard_weights
from attncache.array_input import ArrayInput, StoredDType, stored_dtype
from attncache.cache import AttentionCache
from attncache.factored import pattern_layer
from attncache.layer_source import LayerSource
from attncache.scoring import Options, key_heads_for

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Piece:
    """What one call adds to a layer.

    Attributes:
        call, step: the call, and how it goes on with its layer.
        source: where the layer comes from.
        heads: the chosen heads, in their order.
        has_sinks: whether the sinks of the call take part in its weights.
        is_as_returned: whether its weights are those that the function returned.
        why_not_factored: why queries and keys cannot carry them; None if they can.
    """

    call: Call | Weights
    step: Step
    source: LayerSource
    heads: list[int]
    has_sinks: bool
    is_as_returned: bool
    why_not_factored: str | None

    @property
    def _scored(self) -> Call:
        """The call, which has queries and keys."""
        assert isinstance(self.call, Call)
        return self.call

    def query(self) -> torch.Tensor:
        """CPU tensor of shape [batch, head, query, head_dim]."""
        return _on_cpu(_chosen(self._scored.query, self.heads))

    def key(self, first: int) -> torch.Tensor:
        """CPU tensor of shape [batch, key head, key, head_dim]: the keys from position ``first`` on, zeros where forgotten."""
        import torch  # noqa: PLC0415 (loaded already: it made the tensors)

        call, step = self._scored, self.step
        heads = key_heads_for(self.heads, call.query.shape[1], call.key.shape[1])
        key = _on_cpu(_chosen(call.key, heads)[:, :, max(first - step.first_key, 0) : step.n_given])
        n_forgotten = step.first_key - first
        if n_forgotten > 0:
            key = torch.cat([key.new_zeros(*key.shape[:2], n_forgotten, key.shape[3]), key], dim=2)
        return key

    def key_mask(self, first: int) -> npt.NDArray[np.bool_] | None:
        """Which keys from position ``first`` on may be seen, bool [batch, key], or None if all may."""
        sight = self.step.sight
        if sight is None or sight.key_mask is None:
            return None
        mask = sight.key_mask[:, first:]
        return np.ascontiguousarray(mask.expand(self.call.n_batch, mask.shape[1]).numpy())

    def options(self, first: int) -> Options:
        """How the weights over the keys from position ``first`` on come from query and key."""
        sight, sinks = self.step.sight, self._scored.sinks if self.has_sinks else None
        assert sight is not None
        return Options(
            scale=self._scored.scale,
            causal=sight.causal,
            window=sight.window,
            softcap=self._scored.softcap,
            key_mask=self.key_mask(first),
            sinks=None if sinks is None else sinks[self.heads].float().cpu().numpy().astype(np.float32),
        )

    def rows(self, dtype: StoredDType) -> ArrayInput:
        """The weights over the keys that the call was given, [batch, head, query, key]."""
        call, step = self.call, self.step
        if isinstance(call, Weights):
            weights = heard_weights(call, self.heads, dtype)
        elif self.why_not_factored is None:
            layer = pattern_layer(self.query(), self.key(step.first_key), self.options(step.first_key), dtype)
            weights = layer.memory[0]
        else:
            weights = dense_weights(
                call, step.seen, step.n_given, self.heads, dtype, sinks=self.has_sinks, as_returned=self.is_as_returned
            )
        return ArrayInput(weights, dtype, is_writable=False)


_LARGE = 4 << 20  # bytes of a layer's queries, or of its weights


def _give_back_after(piece: Piece) -> None:
    """Give freed memory back to the system after a large layer.

    What a layer leaves behind, if only a small object, lies on the heap behind the activations that the model has freed
    by then, and would keep their room from being used again: gigabytes over all layers of a long text.
    """
    if (piece.call.weights if isinstance(piece.call, Weights) else piece.call.query).nbytes >= _LARGE:
        _core.give_back_freed_memory()


def _chosen(tensor: torch.Tensor, heads: list[int]) -> torch.Tensor:
    """These heads of [batch, head, ..]; without a copy where they are all of them."""
    return tensor if heads == list(range(tensor.shape[1])) else tensor[:, heads]


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in CPU memory, float64 narrowed."""
    return (tensor.float() if str(tensor.dtype) == "torch.float64" else tensor).cpu()


class LayerStore(Protocol):
    """Takes the pieces of layers: one to begin a layer, more to append to it.

    Attributes:
        patterns: the numbers of layers that became patterns where queries and keys were wanted, each with the reason.
    """

    patterns: dict[int, str]

    def begin(self, piece: Piece) -> None:
        """Make a new layer."""

    def append(self, layer: int, piece: Piece) -> None:
        """Add the piece's queries, and their keys, at the end of a layer."""

    def finish(self, advance: Callable[[], None]) -> None:
        """Leave every layer whole; called once, and ``advance`` after each layer that took work."""


class FactoredLayers:
    """Keeps queries and keys, and the pattern of a layer whose first call they do not give.

    Args:
        cache: where the layers go.
        dtype: what patterns are stored as, as for ``DenseLayers``.
        joins_late: whether what is appended to a layer is kept in memory and joins it at the end: a layer on disk is
            written anew for it.
    """

    def __init__(self, cache: AttentionCache, dtype: StoredDType | None, joins_late: bool = False) -> None:
        self.patterns: dict[int, str] = {}
        self._dense = DenseLayers(cache, dtype)
        self._cache = cache
        self._joins_late = joins_late
        self._later: dict[int, list[tuple[torch.Tensor, torch.Tensor, npt.NDArray[np.bool_] | None]]] = {}
        self._across: dict[int, list[torch.Tensor]] = {}
        self._first: dict[int, Piece] = {}

    def begin(self, piece: Piece) -> None:
        if piece.why_not_factored is not None:
            self._dense.begin(piece)
            self.patterns[self._cache.n_layers - 1] = piece.why_not_factored
            return
        options = piece.options(0)._asdict()
        self._cache.push_qk(piece.query(), piece.key(0), **options, source=piece.source)
        _give_back_after(piece)

    def append(self, layer: int, piece: Piece) -> None:
        if layer in self.patterns:
            self._dense.append(layer, piece)
            return
        if piece.why_not_factored is not None:
            raise ValueError(
                f"its queries and keys no longer give its weights: {piece.why_not_factored}; store='pattern' keeps the "
                "weights themselves"
            )
        if piece.source.kind == "cross":  # only queries are new; the layer is made anew at the end
            self._across.setdefault(layer, []).append(piece.query().clone())
            self._first.setdefault(layer, piece)
            return
        n_new = piece.call.n_queries
        first = piece.step.n_keys - n_new
        key_mask = piece.key_mask(first)
        key = piece.key(first)
        if self._joins_late:
            self._later.setdefault(layer, []).append((piece.query().clone(), key.clone(), key_mask))
        else:
            self._cache.append_qk(layer, piece.query(), key, key_mask=key_mask)

    def finish(self, advance: Callable[[], None]) -> None:
        import torch  # noqa: PLC0415 (loaded already: it made the tensors)

        self._dense.finish(advance)
        for layer in sorted(self._later):
            queries, keys, masks = zip(*self._later.pop(layer), strict=True)
            shown = [np.ones((key.shape[0], key.shape[2]), np.bool_) for key in keys]
            mask = np.concatenate(
                [given if given is not None else all_ for given, all_ in zip(masks, shown, strict=True)], 1
            )
            self._cache.append_qk(layer, torch.cat(queries, 2), torch.cat(keys, 2), key_mask=mask)
            advance()
        for layer in sorted(self._across):
            piece, later = self._first.pop(layer), self._across.pop(layer)
            new = AttentionCache(self._cache.dtypes[layer], index=self._cache.index)
            before = _tensor_of(self._cache, layer, later[0].dtype)
            key = _on_cpu(piece.key(0))
            new.push_qk(torch.cat([before, *later], 2), key, **piece.options(0)._asdict(), source=piece.source)
            self._cache._take(new._layer(0), new.sources[0], layer)
            advance()


def _tensor_of(cache: AttentionCache, layer: int, dtype: torch.dtype) -> torch.Tensor:
    """The queries of a factored layer as a tensor of that dtype."""
    import torch  # noqa: PLC0415 (loaded already: it made the tensors)

    memory = np.array(cache._layer(layer).memory[0])
    stored = cache.dtypes[layer]
    found = (
        torch.from_numpy(memory.view(np.int16)).view(torch.bfloat16)
        if stored == "bfloat16"
        else torch.from_numpy(memory)
    )
    return found.to(dtype)


class DenseLayers:
    """Computes each pattern as its queries and keys arrive; rows of later calls join their layer at the end.

    Args:
        cache: where the layers go.
        dtype: what they are stored as; None keeps the dtype of the queries.
    """

    def __init__(self, cache: AttentionCache, dtype: StoredDType | None) -> None:
        self.patterns: dict[int, str] = {}
        self._cache = cache
        self._dtype = dtype
        self._rows: dict[int, list[tuple[int, ArrayInput]]] = {}

    def begin(self, piece: Piece) -> None:
        rows = piece.rows(self._dtype_of(piece))
        if piece.step.first_key:
            rows = _joined([(piece.step.first_key, rows)])
        self._cache.push(rows, source=piece.source, check=False)
        _give_back_after(piece)

    def append(self, layer: int, piece: Piece) -> None:
        rows = piece.rows(self._dtype_of(piece))
        self._rows.setdefault(layer, []).append((piece.step.first_key, rows))

    def finish(self, advance: Callable[[], None]) -> None:
        for layer in sorted(self._rows):
            rows = self._rows.pop(layer)
            first = ArrayInput(self._cache._layer(layer).memory[0], self._cache.dtypes[layer], is_writable=False)
            new = AttentionCache(index=self._cache.index)
            new.push(_joined([(0, first), *rows]), source=self._cache.sources[layer], check=False)
            self._cache._take(new._layer(0), new.sources[0], layer)
            advance()

    def _dtype_of(self, piece: Piece) -> StoredDType:
        """What the pattern of a piece is stored as."""
        own = str(piece.call.dtype).removeprefix("torch.")
        return self._dtype or stored_dtype("float32" if own == "float64" else own) or "float32"


def _joined(pieces: list[tuple[int, ArrayInput]]) -> ArrayInput:
    """Rows beneath each other, each piece from the position of its first key on; zeros elsewhere."""
    arrays: list[npt.NDArray[Any]] = [source.array for _, source in pieces]
    n_keys = max(first + array.shape[3] for (first, _), array in zip(pieces, arrays, strict=True))
    joined = np.zeros((*arrays[0].shape[:2], sum(array.shape[2] for array in arrays), n_keys), arrays[0].dtype)
    query = 0
    for (first, _), array in zip(pieces, arrays, strict=True):
        joined[:, :, query : query + array.shape[2], first : first + array.shape[3]] = array
        query += array.shape[2]
    joined.flags.writeable = False
    return ArrayInput(joined, pieces[0][1].dtype, is_writable=False)
