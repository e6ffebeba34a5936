"""Layers in the memory of a CUDA device: what a cache keeps of them, and how they come into it and to the CPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from attncache import _core
from attncache.array_input import PATTERN, Argument, StoredDType, checked_copy, is_on_device
from attncache.cuda.arrays import Borrowed, borrow_rows
from attncache.cuda.device_array import Memory
from attncache.cuda.structs import Factored, Pattern
from attncache.factored import KEY, QUERY
from attncache.scoring import Options, Ranges, Scoring, checked_scoring


class Layer(ABC):
    """A layer on a device, as the store needs to know it.

    Attributes:
        kind: "dense" or "factored".
        shape: of its pattern.
        borrowed: the memory it lies in.
    """

    kind: Literal["dense", "factored"]

    def __init__(self, shape: tuple[int, ...], borrowed: Sequence[Borrowed]) -> None:
        self.shape, self.borrowed = shape, borrowed
        first = borrowed[0]
        self.library, self.device_number, self.stream, self.dtype = (
            first.library,
            first.device,
            first.stream,
            first.dtype,
        )

    @property
    def device(self) -> str:
        """Its name, such as "cuda:0"."""
        return f"cuda:{self.device_number}"

    @property
    def nbytes(self) -> int:
        """The bytes of its items on the device."""
        return sum(each.nbytes for each in self.borrowed)

    @abstractmethod
    def copy_into(self, cache: _core.Store) -> None:
        """Append a copy in CPU memory to a cache."""


def _pattern(borrowed: Borrowed) -> Pattern:
    dtype: Any = borrowed.dtype  # one of those that are stored: borrow_rows saw to it
    strides = [step if length > 1 else 0 for length, step in zip(borrowed.shape, borrowed.strides, strict=True)]
    return Pattern.over(borrowed.address, dtype, borrowed.shape, strides)  # along an axis of one item they mean nothing


class DenseLayer(Layer):
    """A pattern on a device."""

    kind = "dense"

    def __init__(self, pattern: Borrowed) -> None:
        super().__init__(pattern.shape, [pattern])
        self.pattern = _pattern(pattern)

    def copy_into(self, cache: _core.Store) -> None:
        cache._push(self.borrowed[0].numpy(), self.dtype, self.dtype, shares_memory=True)


class FactoredLayer(Layer):
    """Queries and keys on a device, their options on both sides."""

    kind = "factored"

    def __init__(self, query: Borrowed, key: Borrowed, scoring: Scoring) -> None:
        super().__init__((*query.shape[:3], key.shape[2]), [query, key])
        self.scoring = scoring
        hidden = _hidden(scoring.hidden, (query.shape[0], key.shape[2]))
        uploaded = [self._uploaded(each) for each in (hidden, scoring.sinks, scoring.lse)]
        self._memory = uploaded  # as long as the struct below points at it
        self.struct = Factored(
            _pattern(query),
            _pattern(key),
            scoring.scale,
            scoring.softcap,
            scoring.causal,
            scoring.window,
            *(each and each.address for each in uploaded),
        )

    def _uploaded(self, values: npt.NDArray[Any] | None) -> Memory | None:
        if values is None:
            return None
        memory = Memory(self.library, self.device_number, self.stream, values.nbytes)
        if values.nbytes:
            with self.library.on(self.device_number):
                source = values.ctypes.data
                self.library.call("copy_to_device", memory.address, source, values.nbytes, self.stream.handle)
        return memory

    def copy_into(self, cache: _core.Store) -> None:
        query, key = ((each.numpy(), self.dtype, self.dtype, True) for each in self.borrowed)
        cache._push_qk(query, key, *self.scoring)


def _hidden(runs: Ranges, shape: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
    """Which keys are hidden, 1 for those; None if none is."""
    if not runs:
        return None
    hidden = np.zeros(shape, np.uint8)
    for row, of_item in zip(hidden, runs, strict=True):
        for begin, end in of_item:
            row[begin:end] = 1
    return hidden


def layer_of_pattern(dtype: StoredDType | None, pattern: Any, copy: bool | None) -> DenseLayer:
    """The layer that ``AttentionCache.push`` makes of an array on a device."""
    return DenseLayer(_borrowed(pattern, PATTERN, dtype, copy))


def layer_of_factors(
    dtype: StoredDType | None, query: Any, key: Any, options: Options, *, copy: bool | None
) -> FactoredLayer:
    """The layer that ``AttentionCache.push_qk`` makes of arrays on a device."""
    for one, other, argument in ((query, key, KEY), (key, query, QUERY)):
        if is_on_device(one) and not is_on_device(other):
            raise ValueError(f"query and key must lie on one device, but {argument.name} lies in CPU memory")
    copy = checked_copy(copy)
    queries, keys = (_borrowed(each, argument, dtype, copy) for each, argument in ((query, QUERY), (key, KEY)))
    scoring = checked_scoring(queries.shape, keys.shape, options)
    if queries.device != keys.device:
        raise ValueError(f"query and key must lie on one device, got cuda:{queries.device} and cuda:{keys.device}")
    if queries.dtype != keys.dtype:
        raise ValueError(f"query and key must have one dtype on a device, got {queries.dtype} and {keys.dtype}")
    keys.move_to(queries.stream)
    return FactoredLayer(queries, keys, scoring)


def _borrowed(values: Any, argument: Argument, dtype: StoredDType | None, copy: bool | None) -> Borrowed:
    if copy:
        raise ValueError(
            f"copy must be None or False for an array on a device, got True: its layer lies over the {argument.name} "
            "itself; pass a clone to keep it from others"
        )
    borrowed = borrow_rows(values, argument)
    if dtype is not None and borrowed.dtype != dtype:
        raise ValueError(
            f"{argument.name} must hold {dtype} as the cache says, got {borrowed.dtype}; convert it on its device first"
        )
    return borrowed
