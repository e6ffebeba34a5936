"""What is measured: every query of the registry, push and get_layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from attncache import reference
from benchmarks.answers import Expected, ranking
from benchmarks.case import (
    NUMPY,
    OURS,
    READY,
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
    no_bytes,
    top_bytes,
)
from benchmarks.worlds import World


def edges_of(world: World, first: Any, second: Any) -> Expected:
    """The reference on the asked queries of every layer only: the same answer in less memory."""
    patterns = [pattern[:, :, np.atleast_1d(first)] for pattern in world.patterns]
    cut = 0 if np.ndim(first) == 0 else range(len(first))
    return Expected(reference.edges(patterns, cut, second))


LINES = (
    Case(
        "attention_from_position",
        "attention_from_position",
        ("layer", "position"),
        a_line,
        {
            OURS: "cache.attention_from_position(layer, position)",
            NUMPY: "patterns[layer][0, :, position].mean(0, dtype=np.float32)",
            TORCH: "tensors[layer][0, :, position].mean(0, dtype=torch.float32)",
            READY: "means[layer][position]",
        },
        lambda world, layer, position: Expected(
            reference.attention_from_position(world.queries(layer, [position]), 0, 0)
        ),
        line_bytes,
    ),
    Case(
        "attention_to_position",
        "attention_to_position",
        ("layer", "position"),
        a_line,
        {
            OURS: "cache.attention_to_position(layer, position)",
            NUMPY: "patterns[layer][0, :, :, position].mean(0, dtype=np.float32)",
            TORCH: "tensors[layer][0, :, :, position].mean(0, dtype=torch.float32)",
            READY: "means[layer][:, position]",
        },
        lambda world, layer, position: Expected(reference.attention_to_position(world.keys(layer, [position]), 0, 0)),
        line_bytes,
    ),
    Case(
        "top_attended_positions, k=10",
        "top_attended_positions",
        ("layer", "position"),
        a_line,
        {
            OURS: f"cache.top_attended_positions(layer, position, {K})",
            NUMPY: f"heaviest_pairs(patterns[layer][0, :, position].mean(0, dtype=np.float32), {K})",
            TORCH: f"torch_heaviest_pairs(tensors[layer][0, :, position].mean(0, dtype=torch.float32), {K})",
            READY: f"heaviest_pairs(means[layer][position], {K})",
        },
        lambda world, layer, position: Expected(
            ranking(reference.top_attended_positions(world.queries(layer, [position]), 0, 0, K)),
            reference.attention_from_position(world.queries(layer, [position]), 0, 0),
        ),
        line_bytes,
    ),
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
    Case(
        "top_k, one query of every head, k=10",
        "top_k",
        ("layer", "position"),
        a_line,
        {
            OURS: f"cache.top_k({K}, layers=layer, positions=position, heads=None)",
            NUMPY: f"heaviest(patterns[layer][0, :, position], {K})",
            TORCH: f"torch_heaviest(tensors[layer][0, :, position], {K})",
        },
        lambda world, layer, position: Expected(
            reference.top_k(world.queries(layer, [position]), K, layers=0, positions=0, heads=None),
            reference.rows(world.queries(layer, [position]), 0, 0, heads=None),
        ),
        lambda world: top_bytes(world, world.size.heads),
    ),
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
        "head_mean",
        "head_mean",
        ("layer",),
        a_layer,
        {
            OURS: "cache.head_mean(layer)",
            NUMPY: "mean_of_heads(patterns[layer][0])",
            TORCH: "tensors[layer][0].mean(0, dtype=torch.float32)",
        },
        lambda world, layer: Expected(reference.head_mean(world.queries(layer, world.sample), 0)),
        mean_bytes,
        whole=True,
    ),
    Case(
        "rows, every query of the mean",
        "rows",
        ("layer",),
        a_layer,
        {
            OURS: "cache.rows(layer)",
            NUMPY: "mean_of_heads(patterns[layer][0])",
            TORCH: "tensors[layer][0].mean(0, dtype=torch.float32)",
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
        "columns, every key of the mean",
        "columns",
        ("layer",),
        a_layer,
        {
            OURS: "cache.columns(layer)",
            NUMPY: "np.ascontiguousarray(mean_of_heads(patterns[layer][0]).T)",
            TORCH: "tensors[layer][0].mean(0, dtype=torch.float32).T.contiguous()",
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
            TORCH: f"torch_heaviest(tensors[layer][0].mean(0, dtype=torch.float32).T, {K})",
        },
        lambda world, layer: Expected(
            reference.top_k(world.keys(layer, world.sample), K, layers=0, direction="to"),
            reference.columns(world.keys(layer, world.sample), 0),
        ),
        lambda world: world.size.weights * world.itemsize + world.size.seq * K * 12,
        whole=True,
    ),
)

STORE = (
    Case(
        "push, float32 as float16",
        None,
        ("layer",),
        a_layer,
        {
            OURS: "pushed(patterns[layer], 'float16')",
            NUMPY: "patterns[layer].astype(np.float16)",
            TORCH: "tensors[layer].half()",
        },
        lambda world, layer: Expected(world.queries(layer, world.sample)[0].astype(np.float16)),
        lambda world: world.size.weights * 6,
        "copy",
        whole=True,
        dtypes=("float32",),
    ),
    Case(
        "push, copied",
        None,
        ("layer",),
        a_layer,
        {
            OURS: "pushed(patterns[layer], copy=True)",
            NUMPY: "patterns[layer].copy()",
            TORCH: "tensors[layer].clone()",
        },
        lambda world, layer: Expected(world.queries(layer, world.sample)[0]),
        lambda world: world.size.weights * 2 * world.itemsize,
        "copy",
        whole=True,
    ),
    Case(
        "push, borrowed",
        None,
        ("layer",),
        a_layer,
        {
            OURS: "pushed(patterns[layer], copy=False)",
            NUMPY: "listed(patterns[layer])",
            TORCH: "listed(tensors[layer])",
        },
        lambda world, layer: Expected(world.queries(layer, world.sample)[0]),
        no_bytes,
        "call",
        whole=True,
    ),
    Case(
        "get_layer",
        None,
        ("layer",),
        a_layer,
        {OURS: "cache.get_layer(layer)", NUMPY: "patterns[layer]", TORCH: "tensors[layer]"},
        lambda world, layer: Expected(world.queries(layer, world.sample)[0]),
        no_bytes,
        "call",
        whole=True,
    ),
)

CASES = (*LINES, *LAYERS, *STORE)
