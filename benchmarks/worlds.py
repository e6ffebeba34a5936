"""The data one group of cases runs on: the same layers as NumPy arrays, as an attncache and as torch tensors."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from attncache import AttentionCache, reference
from benchmarks import contenders

SEED = 20251
FULLY_CHECKED = 1 << 22  # weights in a layer; larger layers are checked on SAMPLED positions
SAMPLED = 64

Pattern = npt.NDArray[Any]


@dataclass(frozen=True)
class Size:
    """The shape of one layer, batch 1, and how many of them a world holds."""

    heads: int
    seq: int
    layers: int

    @property
    def weights(self) -> int:
        """Weights in one layer."""
        return self.heads * self.seq * self.seq


FULL_SIZES = (Size(12, 128, 8), Size(12, 1024, 6), Size(32, 2048, 3))
QUICK_SIZES = (Size(3, 32, 2),)


def torch_or_none() -> ModuleType | None:
    """The torch module, or None where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None


def causal_softmax(size: Size, dtype: str, seed: Sequence[int], threads: int) -> Pattern:
    """One layer [1, head, query, key]: softmax over past keys of normal scores with deviation 2."""
    pattern = np.empty((1, size.heads, size.seq, size.seq), dtype)

    def fill(head: int) -> None:
        rng = np.random.default_rng([*seed, head])
        scores = rng.standard_normal((size.seq, size.seq), np.float32)
        weights = np.tril(np.exp(2 * scores))
        weights /= weights.sum(axis=1, keepdims=True)
        pattern[0, head] = weights

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(size.heads)))
    return pattern


class World:
    """Layers of one size and dtype, shared without copies by all contenders."""

    def __init__(self, size: Size, dtype: str, threads: int) -> None:
        self.size = size
        self.dtype = dtype
        self.threads = threads
        self.itemsize = np.dtype(dtype).itemsize
        self.rng = np.random.default_rng([SEED, size.heads, size.seq])
        seeds = [(SEED, size.seq, self.itemsize, layer) for layer in range(size.layers)]
        self.patterns = [causal_softmax(size, dtype, seed, threads) for seed in seeds]
        self.torch = torch_or_none()
        self.tensors = None if self.torch is None else [self.torch.from_numpy(pattern) for pattern in self.patterns]
        self.cache = AttentionCache()
        for pattern in self.patterns:
            pattern.flags.writeable = False  # read-only arrays are borrowed: every contender reads the same memory
            self.cache.push(pattern)
        few = size.weights > FULLY_CHECKED
        everything = np.arange(size.seq)
        self.sample = np.sort(self.rng.choice(size.seq, SAMPLED, replace=False)) if few else everything
        self._means: list[Pattern] | None = None

    @property
    def means(self) -> list[Pattern]:
        """The head mean of every layer, float32 [query, key]: the ready-made answers."""
        if self._means is None:
            self._means = [reference.head_mean([pattern], 0) for pattern in self.patterns]
        return self._means

    def queries(self, layer: int, positions: Any) -> list[Pattern]:
        """One layer cut down to some query positions, as the reference wants it."""
        return [self.patterns[layer][:, :, positions]]

    def keys(self, layer: int, positions: Any) -> list[Pattern]:
        """One layer cut down to some key positions, as the reference wants it."""
        return [self.patterns[layer][..., positions]]

    def names(self) -> dict[str, Any]:
        """What a contender's expression can refer to."""
        own = {"cache": self.cache, "patterns": self.patterns, "tensors": self.tensors, "torch": self.torch}
        return {**vars(contenders), **own, "np": np, "means": self.means}
