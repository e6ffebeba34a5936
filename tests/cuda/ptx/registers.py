"""Registers: one value per thread, and whether it was ever computed from values that somebody wrote.

A value nobody wrote may be moved and computed with (compilers do that with what is not used later); what is computed
from it counts as unwritten too. Where such a value decides something, the machine raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .memory import UNSIGNED
from .program import SIZES

Array: TypeAlias = npt.NDArray[Any]
Mask: TypeAlias = "npt.NDArray[np.bool_] | None"  # None: all threads that are alive

DTYPES: dict[str, np.dtype[Any]] = {"pred": np.dtype(np.bool_), "f16": np.dtype(np.float16)}
DTYPES |= {f"{kind}{8 * size}": dtype for kind in "bu" for size, dtype in UNSIGNED.items()}
DTYPES |= {f"s{8 * size}": np.dtype(f"i{size}") for size in UNSIGNED}
DTYPES |= {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64), "bf16": np.dtype(np.uint16)}
DTYPES |= {"f16x2": np.dtype(np.uint32), "bf16x2": np.dtype(np.uint32)}


class RegisterFile:
    """One register: `raw` holds its bits for every thread."""

    __slots__ = ("dead", "defined", "name", "raw", "views", "whole")

    def __init__(self, name: str, kind: str, n_lanes: int, dead: npt.NDArray[np.bool_]) -> None:
        dtype = np.dtype(np.bool_) if kind == "pred" else UNSIGNED[SIZES[kind]]
        self.name = name
        self.raw = np.zeros(n_lanes, dtype)
        self.views = {dtype: self.raw}
        self.dead = dead  # threads that have ended: shared with the machine
        self.clear()

    def clear(self) -> None:
        self.defined = np.zeros(len(self.raw), np.bool_)
        self.whole = False  # defined for every thread that is alive; `defined` is then not kept

    def view(self, dtype: np.dtype[Any]) -> Array:
        """The same bits as another type of the same size."""
        if dtype not in self.views:
            self.views[dtype] = self.raw.view(dtype)
        return self.views[dtype]

    def write(self, value: Any, mask: Mask, sources: Sequence[RegisterFile] = ()) -> None:
        """Set the value of some threads, of a type of the register's size."""
        view = self.view(value.dtype)
        if mask is None:
            view[...] = value
        else:
            np.copyto(view, value, where=mask)
        self.define(mask, sources)

    def define(self, mask: Mask, sources: Sequence[RegisterFile] = (), known: Array | None = None) -> None:
        """Note that some threads' values were computed from `sources` and `known`."""
        for source in sources:
            if not source.whole:
                known = source.defined if known is None else known & source.defined
        if known is None and mask is None:
            self.whole = True
        elif known is not None or not self.whole:
            if self.whole:
                self.defined[...] = True
            if known is None:
                self.defined |= mask  # type: ignore[arg-type]
            elif mask is None:
                self.defined[...] = known
            else:
                np.copyto(self.defined, known, where=mask)
            self.whole = bool((self.defined | self.dead).all())

    def unknown(self, lanes: Array) -> Array:
        """Which of these threads hold a value nobody wrote."""
        return np.zeros(0, np.int64) if self.whole else lanes[~self.defined[lanes]]
