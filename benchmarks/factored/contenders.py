"""What a careful user would write in NumPy or torch to ask queries and keys for weights.

Nothing here expands the keys to as many heads as the queries have. 16-bit items are widened in pieces that stay in a
core's cache, as neither library multiplies them as fast; spellings that lost are in README.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attncache import AttentionCache
from benchmarks.dense.contenders import mean_of_heads

Array = npt.NDArray[Any]
Tensor: TypeAlias = Any

PIECE = 2048  # keys that are widened at once: 1 MiB of 128 float32 items
QUERIES = 256  # queries whose scores are made at once


class Factors(NamedTuple):
    """A layer of batch 1, as NumPy arrays or as tensors."""

    query: Any  # [head, query, item]
    key: Any  # [key head, key, item]
    lse: Any  # float32 [head, query], or None
    scale: float
    causal: bool

    @property
    def group(self) -> int:
        """Heads that share a key head."""
        return len(self.query) // len(self.key)

    @property
    def offset(self) -> int:
        """How many keys lie before the one aligned with query 0."""
        return int(self.key.shape[1] - self.query.shape[1])

    def seen(self, position: int) -> int:
        """How many keys a query sees, from the first on."""
        return position + 1 + self.offset if self.causal else int(self.key.shape[1])

    def by_key_head(self) -> Iterator[tuple[slice, Any, Any]]:
        """Which heads share a key head, their queries, and its keys."""
        for number, keys in enumerate(self.key):
            heads = slice(number * self.group, (number + 1) * self.group)
            yield heads, self.query[heads], keys


def hidden(factors: Factors, queries: Any, keys: Any) -> Array:
    """Whether each of the queries does not see each of the keys, [query, key]."""
    keys, last = np.atleast_1d(keys), np.atleast_1d(queries) + factors.offset
    if not factors.causal:
        return np.zeros((len(last), len(keys)), np.bool_)
    unseen: Array = keys[None, :] > last[:, None]
    return unseen


# NumPy


def numpy_softmax(scores: Array) -> Array:
    """The softmax of the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def numpy_scores(queries: Array, keys: Array, out: Array) -> None:
    """float32 queries [n, item] times keys [key, item], widened in pieces, into [n, key]."""
    if keys.dtype == np.float32:
        np.matmul(queries, keys.T, out=out)
        return
    for begin in range(0, len(keys), PIECE):
        piece = keys[begin : begin + PIECE].astype(np.float32)
        np.matmul(queries, piece.T, out=out[:, begin : begin + PIECE])


def numpy_row(factors: Factors, position: int) -> Array:
    """The weights of one query, float32 [head, key]."""
    seen = factors.seen(position)
    weights = np.zeros((len(factors.query), factors.key.shape[1]), np.float32)
    for heads, queries, keys in factors.by_key_head():
        scaled = queries[:, position].astype(np.float32) * np.float32(factors.scale)
        numpy_scores(scaled, keys[:seen], weights[heads, :seen])
        numpy_softmax(weights[heads, :seen])
    return weights


def numpy_edges(factors: Factors, first: Array, second: Array, *, sums_known: bool) -> Array:
    """Some queries with some keys, float32 [head, query, key]."""
    if not sums_known:
        return np.stack([numpy_row(factors, int(position))[:, second] for position in first], axis=1)
    chosen = factors._replace(query=factors.query[:, first], key=factors.key[:, second])
    weights = np.empty((len(factors.query), len(first), len(second)), np.float32)
    for heads, queries, keys in chosen.by_key_head():
        np.matmul(queries.astype(np.float32), keys.astype(np.float32).T, out=weights[heads])
    weights *= np.float32(factors.scale)
    weights -= factors.lse[:, first, None]
    np.exp(weights, out=weights)
    weights[:, hidden(factors, first, second)] = 0
    return weights


def numpy_columns(factors: Factors, positions: Array) -> Array:
    """The head mean of some keys' columns from known sums, float32 [key, query]."""
    mean = np.zeros((len(positions), factors.query.shape[1]), np.float32)
    first = max(0, int(positions.min()) - factors.offset) if factors.causal else 0
    for heads, queries, keys in factors.by_key_head():
        chosen = keys[positions].astype(np.float32) * np.float32(factors.scale)
        for query, lse in zip(queries[:, first:], factors.lse[heads, first:], strict=True):
            weights = chosen @ query.astype(np.float32, copy=False).T
            weights -= lse
            mean[:, first:] += np.exp(weights, out=weights)
    mean[hidden(factors, np.arange(mean.shape[1]), positions).T] = 0
    mean /= len(factors.query)
    return mean


def numpy_blocks(factors: Factors) -> Iterator[tuple[slice, slice, Array]]:
    """Heads, queries and their scores [head, query, seen key], block after block; -inf where a key is hidden."""
    n_queries = factors.query.shape[1]
    for heads, queries, keys in factors.by_key_head():
        wide_keys = keys.astype(np.float32, copy=False)
        for begin in range(0, n_queries, QUERIES):
            end = min(begin + QUERIES, n_queries)
            seen = factors.seen(end - 1)
            scaled = queries[:, begin:end].astype(np.float32) * np.float32(factors.scale)
            scores = (scaled.reshape(-1, scaled.shape[-1]) @ wide_keys[:seen].T).reshape(*scaled.shape[:2], seen)
            if factors.causal:
                recent = slice(factors.seen(begin), seen)
                unseen = hidden(factors, np.arange(begin, end), np.arange(recent.start, seen))
                scores[..., recent][:, unseen] = -np.inf
            yield heads, slice(begin, end), scores


def numpy_lse(factors: Factors) -> Array:
    """The normalisers of all rows, float32 [head, query]."""
    lse = np.empty(factors.query.shape[:2], np.float32)
    for heads, queries, scores in numpy_blocks(factors):
        greatest = scores.max(axis=-1, keepdims=True)
        np.exp(np.subtract(scores, greatest, out=scores), out=scores)
        lse[heads, queries] = greatest[..., 0] + np.log(scores.sum(axis=-1))
    return lse


def numpy_pattern(factors: Factors, dtype: str) -> Array:
    """The whole pattern, [head, query, key]."""
    pattern = np.zeros((*factors.query.shape[:2], factors.key.shape[1]), dtype)
    for heads, queries, scores in numpy_blocks(factors):
        pattern[heads, queries, : scores.shape[-1]] = numpy_softmax(scores)
    return pattern


def numpy_head_mean(factors: Factors) -> Array:
    """The mean over heads of the whole pattern, float32 [query, key]."""
    mean = np.zeros((factors.query.shape[1], factors.key.shape[1]), np.float32)
    for _, queries, scores in numpy_blocks(factors):
        mean[queries, : scores.shape[-1]] += numpy_softmax(scores).sum(axis=0)
    mean /= len(factors.query)
    return mean


def numpy_mean_row(factors: Factors, position: int) -> Array:
    """The mean over heads of one query's weights, float32 [key]."""
    return mean_of_heads(numpy_row(factors, position))


# torch


def torch_row(factors: Factors, position: int) -> Tensor:
    """The weights of one query, float32 [head, key]."""
    torch = importlib.import_module("torch")
    seen = factors.seen(position)
    grouped = factors.query[:, position].view(len(factors.key), factors.group, -1).float() * factors.scale
    keys = factors.key[:, :seen]
    if keys.dtype == torch.float32:
        scores = torch.bmm(keys, grouped.mT).mT  # twice as fast as grouped @ keys.mT
    else:
        scores = torch.empty((len(keys), factors.group, seen))
        for number, queries in enumerate(grouped):
            for begin in range(0, seen, PIECE):
                piece = keys[number, begin : begin + PIECE].float()
                torch.mm(queries, piece.T, out=scores[number, :, begin : begin + PIECE])
    weights = torch.softmax(scores.contiguous(), -1).view(-1, seen)
    return torch.nn.functional.pad(weights, (0, factors.key.shape[1] - seen))


def torch_mean_row(factors: Factors, position: int) -> Tensor:
    """The mean over heads of one query's weights, float32 [key]."""
    return torch_row(factors, position).mean(0)


def torch_edges(factors: Factors, first: Array, second: Array, *, sums_known: bool) -> Tensor:
    """Some queries with some keys, float32 [head, query, key]."""
    torch = importlib.import_module("torch")
    if not sums_known:
        return torch.stack([torch_row(factors, int(position))[:, second] for position in first], dim=1)
    queries, keys = factors.query[:, first].float(), factors.key[:, second].float()
    scores = torch.bmm(queries.reshape(len(keys), -1, queries.shape[-1]), keys.mT).view(len(queries), len(first), -1)
    weights = torch.exp(scores.mul_(factors.scale).sub_(factors.lse[:, first, None]))
    return weights.masked_fill_(torch.from_numpy(hidden(factors, first, second)), 0)


def torch_columns(factors: Factors, positions: Array) -> Tensor:
    """The head mean of some keys' columns from known sums, float32 [key, query]."""
    torch = importlib.import_module("torch")
    n_queries = factors.query.shape[1]
    mean = torch.zeros((len(positions), n_queries))
    first = max(0, int(positions.min()) - factors.offset) if factors.causal else 0
    for heads, queries, keys in factors.by_key_head():
        chosen = keys[positions].float() * factors.scale
        weights = torch.matmul(chosen, queries[:, first:].float().mT).sub_(factors.lse[heads, None, first:])
        mean[:, first:] += weights.exp_().sum(0)
    mean.masked_fill_(torch.from_numpy(hidden(factors, np.arange(n_queries), positions).T), 0)
    return mean.div_(len(factors.query))


def torch_lse(factors: Factors) -> Tensor:
    """The normalisers that ``scaled_dot_product_attention`` computes on its way forward, float32 [head, query].

    This is the operator that it calls for these tensors; the keys stand in for values.
    """
    flash = importlib.import_module("torch").ops.aten._scaled_dot_product_flash_attention_for_cpu
    query, key = factors.query[None], factors.key[None]
    return flash(query, key, key, 0.0, factors.causal, scale=factors.scale)[1][0]


def torch_softmax_of(factors: Factors) -> Iterator[tuple[slice, Tensor]]:
    """Heads and their weights, float32 [head, query, key]: the softmax of queries times keys, key head by key head."""
    torch = importlib.import_module("torch")
    unseen = torch.from_numpy(hidden(factors, np.arange(factors.query.shape[1]), np.arange(factors.key.shape[1])))
    for heads, queries, keys in factors.by_key_head():
        scores = torch.matmul(queries.float(), keys.float().T).mul_(factors.scale)
        if factors.causal:
            scores.masked_fill_(unseen, -torch.inf)
        yield heads, torch.softmax(scores, -1)


def torch_pattern(factors: Factors, dtype: str) -> Tensor:
    """The whole pattern, [head, query, key]."""
    torch = importlib.import_module("torch")
    shape = (*factors.query.shape[:2], factors.key.shape[1])
    pattern = torch.empty(shape, dtype=getattr(torch, dtype))
    for heads, weights in torch_softmax_of(factors):
        pattern[heads] = weights
    return pattern


def torch_head_mean(factors: Factors) -> Tensor:
    """The mean over heads of the whole pattern, float32 [query, key]."""
    total: Tensor = sum(weights.sum(0) for _, weights in torch_softmax_of(factors))
    return total.div_(len(factors.query))


# A cache's own changes


def pushed_qk(query: Array, key: Array, *, causal: bool, copy: bool) -> AttentionCache:
    """A fresh cache, one factored layer pushed."""
    cache = AttentionCache()
    cache.push_qk(query, key, causal=causal, copy=copy)
    return cache


def appended_qk(cache: AttentionCache, query: Array, key: Array) -> AttentionCache:
    """The cache with positions added to its first layer."""
    cache.append_qk(0, query, key)
    return cache
