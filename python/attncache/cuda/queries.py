"""The queries of layers on a device. The core has checked every index; its cpp/bindings/on_device.cpp calls these.

Everything is enqueued on the stream of one of the layers, which waits for the streams of the others, and they for it. Only
answers in NumPy arrays are waited for.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attncache.cuda.device_array import DeviceArray, Memory
from attncache.cuda.layers import DenseLayer, FactoredLayer, Layer
from attncache.cuda.structs import Indices, Pattern, Selection, listed

SCRATCH_BYTES = 1 << 28  # what lines may take that are computed only to be ranked or picked from

Lines: TypeAlias = Literal["rows", "columns"]
_FLOAT = 4


class Picked(NamedTuple):
    """What a query picks.

    Attributes:
        home: the layer on whose stream it runs; one of ``layers`` unless these are none.
        layers: of one shape, on one device.
        batches, heads: indices.
        mean: whether the mean of the heads is asked for, or each of them.
    """

    home: Layer
    layers: list[Layer]
    batches: Indices
    heads: Indices
    mean: bool

    @property
    def n_planes(self) -> int:
        """How many planes of [query, key] the answer is about."""
        return len(self.layers) * len(self.batches) * (1 if self.mean else len(self.heads))

    def call(self, name: str, *arguments: Any) -> None:
        """Enqueue something on the stream."""
        self.home.library.call(name, *arguments, self.home.stream.handle)

    def scratch(self, n_bytes: int) -> Memory:
        """Memory for what is enqueued while it lives."""
        return Memory(self.home.library, self.home.device_number, self.home.stream, n_bytes)

    def result(self, dims: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """An array to be filled."""
        home = self.home
        return DeviceArray.empty(home.library, home.device_number, home.stream, dims, dtype)


_Picked: TypeAlias = tuple[Layer, list[Layer], Indices, Indices, bool]
_Result: TypeAlias = npt.NDArray[Any] | None


def rows(picked: _Picked, positions: tuple[Indices], dims: tuple[int, ...], out: _Result) -> DeviceArray | None:
    """``AttentionCache.rows``, and ``head_mean`` as all rows.

    Args:
        picked: the fields of a Picked.
        positions: which queries.
        dims: the shape of the answer.
        out: the float32 array of that shape to copy it into, or None for an array on the device, which is returned.
    """
    return _floats(Picked(*picked), dims, out, lambda chosen, to: _fill_rows(chosen, *positions, to))


def columns(picked: _Picked, positions: tuple[Indices], dims: tuple[int, ...], out: _Result) -> DeviceArray | None:
    """``AttentionCache.columns``; as ``rows``."""
    return _floats(Picked(*picked), dims, out, lambda chosen, to: _fill_columns(chosen, *positions, to))


def edges(
    picked: _Picked, positions: tuple[Indices, Indices], dims: tuple[int, ...], out: _Result
) -> DeviceArray | None:
    """``AttentionCache.edges``; as ``rows``, positions are those from which and those to which."""
    return _floats(Picked(*picked), dims, out, lambda chosen, to: _fill_edges(chosen, *positions, to))


def top_k(
    picked: _Picked, lines: Lines, positions: Indices, dims: tuple[int, ...], out: Sequence[npt.NDArray[Any]] | None
) -> tuple[DeviceArray, DeviceArray] | None:
    """``AttentionCache.top_k``.

    Args:
        picked, dims: as for ``rows``.
        lines: whether rows are ranked (direction "from") or columns ("to").
        positions: which of them.
        out: the int64 and the float32 array for positions and weights, or None as for ``rows``.
    """
    chosen = Picked(*picked)
    with _running(chosen, is_waited_for=out is not None):
        found = chosen.result(dims, np.int64), chosen.result(dims, np.float32)
        if found[0].nbytes:
            k, to = dims[-1], (found[0].address, found[1].address)
            if lines == "rows" and not chosen.mean and all(layer.kind == "dense" for layer in chosen.layers):
                chosen.call("top_k_rows", ctypes.byref(_selection(chosen)), *listed(positions), k, *to)
            else:
                _rank_lines(chosen, lines, positions, k, to)
        if out is None:
            return found
        for array, host in zip(found, out, strict=True):
            array.numpy(host)
    return None


def _rank_lines(picked: Picked, lines: Lines, positions: Indices, k: int, to: tuple[int, int]) -> None:
    """Write the k heaviest of lines that are not stored as they are: each part is computed, then ranked."""
    length, (places, weights) = picked.home.shape[3 if lines == "rows" else 2], to
    fill = _fill_rows if lines == "rows" else _fill_columns
    for part, some in _parts(picked, positions, length * _FLOAT):
        n_lines = part.n_planes * len(some)
        scratch = part.scratch(n_lines * length * _FLOAT)
        fill(part, some, scratch.address)
        part.call("top_k", scratch.address, n_lines, length, k, places, weights)
        places += n_lines * k * 8
        weights += n_lines * k * _FLOAT


def _floats(
    picked: Picked, dims: tuple[int, ...], out: _Result, fill: Callable[[Picked, int], None]
) -> DeviceArray | None:
    with _running(picked, is_waited_for=out is not None):
        result = picked.result(dims, np.float32)
        if result.nbytes:
            fill(picked, result.address)
        if out is None:
            return result
        result.numpy(out)
    return None


@contextmanager
def _running(picked: Picked, *, is_waited_for: bool) -> Iterator[None]:
    """The time in which work is enqueued on the stream of ``home``, and waited for or not."""
    home = picked.home
    others = {layer.stream.handle for layer in picked.layers} - {home.stream.handle}
    with home.library.on(home.device_number):
        for handle in others:
            home.library.call("stream_wait", home.stream.handle, handle)
        is_finished = False
        try:
            yield
            is_finished = is_waited_for
        finally:
            if not is_finished:
                for each in (each for layer in picked.layers for each in layer.borrowed):
                    each.is_left_in_use()
            for handle in others:
                home.library.call("stream_wait", handle, home.stream.handle)


def _of_one_kind(picked: Picked) -> Iterator[tuple[str, Picked]]:
    """The layers in runs of one kind."""
    for kind, layers in groupby(picked.layers, lambda layer: layer.kind):
        yield kind, picked._replace(layers=list(layers))


def _selection(picked: Picked) -> Selection:
    patterns = [layer.pattern for layer in picked.layers if isinstance(layer, DenseLayer)]
    return Selection.of(patterns, picked.batches, picked.heads, picked.mean)


def _fill_rows(picked: Picked, positions: Indices, to: int) -> None:
    """Write [layer, batch, head, position, key] to an address."""
    for kind, some in _of_one_kind(picked):
        n_bytes = some.n_planes * len(positions) * picked.home.shape[3] * _FLOAT
        if kind == "dense":
            some.call("rows", ctypes.byref(_selection(some)), *listed(positions), to)
        else:
            for at, layer in enumerate(some.layers):
                _factored_rows(some, layer, positions, to + at * (n_bytes // len(some.layers)))
        to += n_bytes


def _factored_rows(picked: Picked, layer: Layer, positions: Indices, to: int) -> None:
    assert isinstance(layer, FactoredLayer)
    batches, heads = listed(picked.batches), listed(picked.heads)
    picked.call("factored_rows", ctypes.byref(layer.struct), *batches, *heads, picked.mean, *listed(positions), to)


def _fill_columns(picked: Picked, positions: Indices, to: int) -> None:
    """Write [layer, batch, head, position, query] to an address."""
    if any(layer.kind == "factored" for layer in picked.layers):
        raise ValueError(
            "layers must be dense for columns on a device, got a factored one: cache.cpu() answers for that, "
            "and so does a layer of its pattern"
        )
    picked.call("columns", ctypes.byref(_selection(picked)), *listed(positions), to)


def _fill_edges(picked: Picked, from_positions: Indices, to_positions: Indices, to: int) -> None:
    """Write [layer, batch, head, from, to] to an address; of factored layers the rows are computed first."""
    for kind, some in _of_one_kind(picked):
        if kind == "dense":
            selection = ctypes.byref(_selection(some))
            some.call("edges", selection, *listed(from_positions), *listed(to_positions), to)
            to += some.n_planes * len(from_positions) * len(to_positions) * _FLOAT
            continue
        for part, rows in _parts(some, from_positions, picked.home.shape[3] * _FLOAT):
            _edges_of_rows(part, rows, to_positions, to)
            to += part.n_planes * len(rows) * len(to_positions) * _FLOAT


def _edges_of_rows(picked: Picked, from_positions: Indices, to_positions: Indices, to: int) -> None:
    """The same of factored layers by way of their rows, which are a pattern of their own: [1, plane, from, key]."""
    n_planes, length = picked.n_planes, picked.home.shape[3]
    row = length * _FLOAT
    plane = len(from_positions) * row
    scratch = picked.scratch(n_planes * plane)
    _fill_rows(picked, from_positions, scratch.address)
    shape = (1, n_planes, len(from_positions), length)
    pattern = Pattern.over(scratch.address, "float32", shape, (n_planes * plane, plane, row))
    each, lines = Selection.of([pattern], _all(1), _all(n_planes), False), _all(len(from_positions))
    picked.call("edges", ctypes.byref(each), *listed(lines), *listed(to_positions), to)


def _all(n: int) -> Indices:
    return np.arange(n, dtype=np.int64)


def _parts(picked: Picked, positions: Indices, line_bytes: int) -> Iterator[tuple[Picked, Indices]]:
    """A selection in pieces whose lines fit into SCRATCH_BYTES, in the order in which their answers lie."""
    axes: dict[str, Any] = {"layers": picked.layers, "batches": picked.batches}
    if not picked.mean:
        axes["heads"] = picked.heads
    if picked.n_planes * len(positions) * line_bytes > SCRATCH_BYTES:
        for name, values in axes.items():
            if len(values) > 1:
                for half in _halves(values):
                    yield from _parts(picked._replace(**{name: half}), positions, line_bytes)
                return
        if len(positions) > 1:
            for half in _halves(positions):
                yield from _parts(picked, half, line_bytes)
            return
    yield picked, positions


def _halves(values: Any) -> tuple[Any, Any]:
    middle = math.ceil(len(values) / 2)
    return values[:middle], values[middle:]
