"""The result types of queries that return more than one array."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class TopK(NamedTuple):
    """The k heaviest positions of each selected row or column, heaviest first, and their weights.

    Attributes:
        positions: int64 array of shape [.., k].
        weights: float32 array of the same shape.
    """

    positions: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
