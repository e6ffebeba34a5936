"""What is measured: every query of the registry, and what ``hot_cases`` and ``store_cases`` add."""

from __future__ import annotations

from typing import Any

import numpy as np

from attncache import reference
from benchmarks import hot_cases, store_cases
from benchmarks.answers import Expected
from benchmarks.case import (
    NUMPY,
    OURS,
    SEVERAL,
    TORCH,
    Case,
    K,
    a_block,
    a_layer,
    a_line,
    a_pair,
    a_position,
    line_bytes,
    mean_bytes,
    top_bytes,
)
from benchmarks.worlds import World


def edges_of(world: World, first: Any, second: Any) -> Expected:
    """The reference on the asked queries of every layer only: the same answer in less memory."""
    patterns = [pattern[:, :, np.atleast_1d(first)] for pattern in world.patterns]
    cut = 0 if np.ndim(first) == 0 else range(len(first))
    return Expected(reference.edges(patterns, cut, second))


def top_of_heads(k: int) -> Case:
    """The k heaviest of one query in each head."""
    return Case(
        f"top_k, one query of every head, k={k}",
        "top_k",
        ("layer", "position"),
        a_line,
        {
            OURS: f"cache.top_k({k}, layers=layer, positions=position, heads=None)",
            NUMPY: f"heaviest(patterns[layer][0, :, position], {k})",
            TORCH: f"torch_heaviest(tensors[layer][0, :, position], {k})",
        },
        lambda world, layer, position: Expected(
            reference.top_k(world.queries(layer, [position]), k, layers=0, positions=0, heads=None),
            reference.rows(world.queries(layer, [position]), 0, 0, heads=None),
        ),
        lambda world: top_bytes(world, world.size.heads, k),
    )


LINES = (
    Case(
        "rows, one query of every layer",
        "rows",
        ("position",),
        a_position,
        {
            OURS: "cache.rows(positions=position)",
            NUMPY: "np.stack([p[0, :, position].mean(0, dtype=np.float32) for p in patterns])",
            TORCH: "torch.stack([t[0, :, position].mean(0, dtype=torch.float32) for t in tensors])",
        },
        lambda world, position: Expected(
            reference.rows([pattern[:, :, [position]] for pattern in world.patterns], positions=0)
        ),
        lambda world: world.size.layers * line_bytes(world),
    ),
    Case(
        "columns, one key of every layer",
        "columns",
        ("position",),
        a_position,
        {
            OURS: "cache.columns(positions=position)",
            NUMPY: "np.stack([p[0, :, :, position].mean(0, dtype=np.float32) for p in patterns])",
            TORCH: "torch.stack([t[0, :, :, position].mean(0, dtype=torch.float32) for t in tensors])",
        },
        lambda world, position: Expected(
            reference.columns([pattern[..., [position]] for pattern in world.patterns], positions=0)
        ),
        lambda world: world.size.layers * line_bytes(world),
    ),
    top_of_heads(K),
    Case(
        "edges, one pair in every layer and head",
        "edges",
        ("query", "key"),
        a_pair,
        {
            OURS: "cache.edges(query, key)",
            NUMPY: "np.stack([p[0, :, query, key] for p in patterns]).astype(np.float32)",
            TORCH: "torch.stack([t[0, :, query, key] for t in tensors]).float()",
        },
        edges_of,
        lambda world: world.size.layers * world.size.heads * (world.itemsize + 4),
        None,
    ),
    Case(
        f"edges, {SEVERAL} x {SEVERAL} in every layer and head",
        "edges",
        ("query", "key"),
        a_block,
        {
            OURS: "cache.edges(query, key)",
            NUMPY: "np.stack([p[0][:, query[:, None], key] for p in patterns]).astype(np.float32)",
            TORCH: "torch.stack([t[0][:, query[:, None], key] for t in tensors]).float()",
        },
        edges_of,
        lambda world: world.size.layers * world.size.heads * SEVERAL**2 * (world.itemsize + 4),
        None,
    ),
)

LAYERS = (
    Case(
        "rows, every query of the mean",
        "rows",
        ("layer",),
        a_layer,
        {
            OURS: "cache.rows(layer)",
            NUMPY: "mean_of_heads(patterns[layer][0])",
            TORCH: "torch_mean_of_heads(tensors[layer][0])",
        },
        lambda world, layer: Expected(reference.rows(world.queries(layer, world.sample), 0)),
        mean_bytes,
        whole=True,
    ),
    Case(
        "rows, every query of every head",
        "rows",
        ("layer",),
        a_layer,
        {
            OURS: "cache.rows(layer, heads=None)",
            NUMPY: "patterns[layer][0].astype(np.float32)",
            TORCH: "tensors[layer][0].to(torch.float32, copy=True)",
        },
        lambda world, layer: Expected(reference.rows(world.queries(layer, world.sample), 0, heads=None)),
        lambda world: world.size.weights * (world.itemsize + 4),
        "copy",
        whole=True,
    ),
    Case(
        "rows, every query of every head, into out",
        "rows",
        ("layer",),
        a_layer,
        {
            OURS: "cache.rows(layer, heads=None, out=heads_out)",
            NUMPY: "widened(patterns[layer][0], heads_out)",
            TORCH: "heads_out_tensor.copy_(tensors[layer][0])",
        },
        lambda world, layer: Expected(reference.rows(world.queries(layer, world.sample), 0, heads=None)),
        lambda world: world.size.weights * (world.itemsize + 4),
        "overwrite",
        whole=True,
    ),
    Case(
        "columns, every key of the mean",
        "columns",
        ("layer",),
        a_layer,
        {
            OURS: "cache.columns(layer)",
            NUMPY: "np.ascontiguousarray(mean_of_heads(patterns[layer][0]).T)",
            TORCH: "torch_mean_of_heads(tensors[layer][0]).T.contiguous()",
        },
        lambda world, layer: Expected(reference.columns(world.keys(layer, world.sample), 0)),
        mean_bytes,
        whole=True,
    ),
    Case(
        "top_k, every query of every head, k=10",
        "top_k",
        ("layer",),
        a_layer,
        {
            OURS: f"cache.top_k({K}, layers=layer, heads=None)",
            NUMPY: f"heaviest(patterns[layer][0], {K})",
            TORCH: f"torch_heaviest(tensors[layer][0], {K})",
        },
        lambda world, layer: Expected(
            reference.top_k(world.queries(layer, world.sample), K, layers=0, heads=None),
            reference.rows(world.queries(layer, world.sample), 0, heads=None),
        ),
        lambda world: top_bytes(world, world.size.heads * world.size.seq),
        whole=True,
    ),
    Case(
        "top_k, every key of the mean, k=10",
        "top_k",
        ("layer",),
        a_layer,
        {
            OURS: f"cache.top_k({K}, layers=layer, direction='to')",
            NUMPY: f"heaviest(mean_of_heads(patterns[layer][0]).T, {K})",
            TORCH: f"torch_heaviest(torch_mean_of_heads(tensors[layer][0]).T, {K})",
        },
        lambda world, layer: Expected(
            reference.top_k(world.keys(layer, world.sample), K, layers=0, direction="to"),
            reference.columns(world.keys(layer, world.sample), 0),
        ),
        lambda world: world.size.weights * world.itemsize + world.size.seq * K * 12,
        whole=True,
    ),
)


CASES = (*hot_cases.CASES, *LINES, *LAYERS, *store_cases.CASES)
