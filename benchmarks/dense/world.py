"""The stored patterns that cases run on: the same layers as NumPy arrays, as caches and as torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from attncache import AttentionCache, reference, set_num_threads
from benchmarks.core.case import Case, World
from benchmarks.core.machine import torch_or_none
from benchmarks.core.timing import Plan
from benchmarks.dense import contenders

SEED = 20251
FULLY_CHECKED = 1 << 22  # weights in a layer; larger layers are checked on SAMPLED positions
SAMPLED = 64

Pattern = npt.NDArray[Any]


@dataclass(frozen=True)
class Size:
    """The shape of one layer, batch 1; how many of them a world holds, and how many questions a hot loop asks."""

    heads: int
    seq: int
    layers: int
    questions: int = 4096

    @property
    def weights(self) -> int:
        """Weights in one layer."""
        return self.heads * self.seq * self.seq

    def __str__(self) -> str:
        return f"{self.heads} x {self.seq}"


FULL_SIZES = (Size(12, 128, 8), Size(12, 1024, 6), Size(32, 2048, 3))
QUICK_SIZES = (Size(3, 32, 2, questions=64),)


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


class DenseWorld(World):
    """Layers of one size and dtype, shared without copies by all contenders.

    ``cache`` answers directly (index="off"), ``indexed`` holds the index of every layer. patterns: the layers; None
    for causal softmax.
    """

    def __init__(
        self,
        size: Size,
        dtype: str,
        threads: int,
        plan: Plan,
        patterns: list[Pattern] | None = None,
        *,
        last: bool = True,
    ) -> None:
        self.size, self.dtype, self.threads, self.plan = size, dtype, threads, plan
        self.shape = str(size)
        self.is_last = last  # of the sizes of a run: goals hold here
        self.itemsize = np.dtype(dtype).itemsize
        self.rng = np.random.default_rng([SEED, size.heads, size.seq])
        seeds = [(SEED, size.seq, self.itemsize, layer) for layer in range(size.layers)]
        self.patterns = patterns or [causal_softmax(size, dtype, seed, threads) for seed in seeds]
        self.torch = torch_or_none()
        self.tensors = None if self.torch is None else [self.torch.from_numpy(pattern) for pattern in self.patterns]
        for pattern in self.patterns:
            pattern.flags.writeable = False  # every contender reads the same memory, and none may write there
        self.cache = contenders.fresh(self.patterns, "off")
        few = size.weights > FULLY_CHECKED
        everything = np.arange(size.seq)
        self.sample = np.sort(self.rng.choice(size.seq, SAMPLED, replace=False)) if few else everything

    def is_judged_for(self, case: Case) -> bool:
        """Goals hold for the largest layer, in float16 if the case has it."""
        return self.is_last and self.dtype == case.dtypes[-1]

    def close(self) -> None:
        """Give attncache its threads again."""
        set_num_threads(self.threads)

    @cached_property
    def means(self) -> list[Pattern]:
        """The head mean of every layer, float32 [query, key]: the ready-made answers."""
        return [reference.head_mean([pattern], 0) for pattern in self.patterns]

    @cached_property
    def indexed(self) -> AttentionCache:
        """The layers once more, with the index of each built."""
        return contenders.fresh(self.patterns, "eager")

    def queries(self, layer: int, positions: Any) -> list[Pattern]:
        """One layer cut down to some query positions, as the reference wants it."""
        return [self.patterns[layer][:, :, positions]]

    def keys(self, layer: int, positions: Any) -> list[Pattern]:
        """One layer cut down to some key positions, as the reference wants it."""
        return [self.patterns[layer][..., positions]]

    @cached_property
    def names(self) -> dict[str, Any]:
        """What a contender's expression can refer to."""
        mean, heads = np.empty((self.size.seq,) * 2, np.float32), np.empty(self.patterns[0].shape[1:], np.float32)
        return {
            **vars(contenders),
            "cache": self.cache,
            "indexed": self.indexed,
            "patterns": self.patterns,
            "means": self.means,
            "tensors": self.tensors,
            "mean_out": mean,
            "heads_out": heads,
            "mean_out_tensor": None if self.torch is None else self.torch.from_numpy(mean),
            "heads_out_tensor": None if self.torch is None else self.torch.from_numpy(heads),
            "np": np,
            "torch": self.torch,
        }
