"""The layers of queries and keys that cases run on: one layer's queries and keys as NumPy arrays, as caches and as tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from attncache import AttentionCache, pattern_from_qk
from benchmarks.core.case import NUMPY, TORCH, WIDE, World
from benchmarks.core.machine import torch_or_none
from benchmarks.core.timing import Plan
from benchmarks.dense.contenders import heaviest, torch_heaviest
from benchmarks.dense.world import SAMPLED, SEED
from benchmarks.factored import contenders
from benchmarks.factored.answers import ExactRows, exact_rows
from benchmarks.factored.contenders import Factors

Array = npt.NDArray[Any]
NUMPY_WIDE, TORCH_WIDE = f"{NUMPY}, {WIDE}", f"{TORCH}, {WIDE}"


@dataclass(frozen=True)
class Shape:
    """One layer, batch 1: ``heads`` share ``key_heads``; the last query is aligned with the last key if causal."""

    heads: int
    key_heads: int
    head_dim: int
    seq_q: int
    seq_k: int
    causal: bool = True

    @property
    def pairs(self) -> int:
        """The pairs of a query and a key it sees, in all heads."""
        seen = self.seq_q * self.seq_k
        return self.heads * (seen - self.seq_q * (self.seq_q - 1) // 2 if self.causal else seen)

    @property
    def query_items(self) -> int:
        """Items of all queries."""
        return self.heads * self.seq_q * self.head_dim

    @property
    def key_items(self) -> int:
        """Items of all keys."""
        return self.key_heads * self.seq_k * self.head_dim

    @property
    def weights(self) -> int:
        """Weights of the pattern."""
        return self.heads * self.seq_q * self.seq_k

    def __str__(self) -> str:
        seen = "" if self.causal else ", all seen"
        return f"{self.heads}/{self.key_heads} x {self.head_dim}, {self.seq_q} x {self.seq_k}{seen}"


def normal_items(shape: tuple[int, ...], deviation: float, dtype: str, seed: int) -> Array:
    """Normal items, head after head, so that a large layer needs no second copy in float32."""
    items = np.empty(shape, dtype)
    for head in range(shape[1]):
        rng = np.random.default_rng([SEED, seed, head, shape[2]])
        items[0, head] = rng.standard_normal(shape[2:], np.float32) * np.float32(deviation)
    return items


class FactoredWorld(World):
    """One layer of queries and keys, whose scores have deviation 2, shared without copies by all contenders.

    ``fresh()`` makes a cache that knows no sum of a row; ``cache`` knows them all.
    """

    def __init__(self, shape: Shape, dtype: str, threads: int, plan: Plan) -> None:
        self.layer, self.shape = shape, str(shape)
        self.dtype, self.threads, self.plan = dtype, threads, plan
        self.without = frozenset({NUMPY_WIDE, TORCH_WIDE} if dtype == "float32" else ())
        self.itemsize = np.dtype(dtype).itemsize
        self.rng = np.random.default_rng([SEED, shape.heads, shape.seq_k])
        self.scale = shape.head_dim**-0.5
        self.query = normal_items((1, shape.heads, shape.seq_q, shape.head_dim), 2, dtype, 0)
        self.key = normal_items((1, shape.key_heads, shape.seq_k, shape.head_dim), 1, dtype, 1)
        self.torch = torch_or_none()
        self.tensors = (
            None if self.torch is None else [self.torch.from_numpy(each[0]) for each in (self.query, self.key)]
        )
        for items in (self.query, self.key):
            items.flags.writeable = False  # every contender reads the same memory, and none may write there
        few = shape.seq_q > SAMPLED
        everything = np.arange(shape.seq_q)
        self.sample = np.sort(self.rng.choice(shape.seq_q, SAMPLED, replace=False)) if few else everything

    def fresh(self, *, copy: bool | None = False) -> AttentionCache:
        """A new cache that holds this layer, borrowed unless ``copy`` says otherwise."""
        cache = AttentionCache()
        cache.push_qk(self.query, self.key, scale=self.scale, causal=self.layer.causal, copy=copy)
        return cache

    @cached_property
    def cache(self) -> AttentionCache:
        """The layer with its sums known."""
        cache = self.fresh()
        cache.lse(0)
        return cache

    @cached_property
    def grown(self) -> AttentionCache:
        """The layer copied, to append positions to."""
        return self.fresh(copy=True)

    @cached_property
    def stored(self) -> Factors:
        """The layer as NumPy arrays without a batch; its normalisers not known."""
        return Factors(self.query[0], self.key[0], None, self.scale, self.layer.causal)

    @cached_property
    def factors(self) -> Factors:
        """The layer as NumPy arrays without a batch, and its normalisers."""
        return self.stored._replace(lse=self.cache.lse(0)[0].copy())

    @cached_property
    def wide(self) -> Factors:
        """The layer once more in float32: what a user keeps who has memory for it."""
        wide = [items.astype(np.float32) for items in (self.query[0], self.key[0])]
        return self.factors._replace(query=wide[0], key=wide[1])

    def as_tensors(self, factors: Factors) -> Factors | None:
        """The same memory as tensors; None without torch."""
        if self.torch is None or self.tensors is None:
            return None
        is_stored = factors.query is self.factors.query
        query, key = self.tensors if is_stored else map(self.torch.from_numpy, (factors.query, factors.key))
        return factors._replace(query=query, key=key, lse=self.torch.from_numpy(factors.lse))

    @cached_property
    def sampled_rows(self) -> ExactRows:
        """The exact rows of ``sample``, for answers about the whole layer."""
        return exact_rows(self.stored, self.sample)

    @cached_property
    def names(self) -> dict[str, Any]:
        """What a contender's expression can refer to."""
        last = slice(-1, None)
        return {
            **vars(contenders),
            "heaviest": heaviest,
            "torch_heaviest": torch_heaviest,
            "fresh": self.fresh,
            "cache": self.cache,
            "grown": self.grown,
            "query": self.query,
            "key": self.key,
            "last_query": self.query[:, :, last],
            "last_key": self.key[:, :, last],
            "dtype": self.dtype,
            "causal": self.layer.causal,
            "factors": self.factors,
            "tensors": self.as_tensors(self.factors),
            **({} if self.dtype == "float32" else {"wide": self.wide, "wide_tensors": self.as_tensors(self.wide)}),
            "pattern_from_qk": pattern_from_qk,
            "np": np,
            "torch": self.torch,
        }


def all_seen(shape: Shape) -> Shape:
    """The same layer without a causal mask."""
    return replace(shape, causal=False)
