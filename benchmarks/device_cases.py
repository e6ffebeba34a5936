"""What is measured on a device: each query of patterns that lie there, ours beside what a user of torch writes.

Answers stay on the device (``device_result=True``), so that no copy and no waiting of the host is in the time.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from attncache import AttentionCache, reference
from benchmarks import contenders
from benchmarks.answers import Expected
from benchmarks.case import OURS, TORCH, Case, a_layer, a_line, a_position, line_bytes, mean_bytes, top_bytes
from benchmarks.worlds import Pattern, Size, World

K = 10
LONG_K = 300  # beyond what a block sorts by counting


class DeviceWorld(World):
    """Layers of one size and dtype in the memory of a device, shared by torch's tensors and ours.

    to_device: what brings a CPU tensor there, such as ``torch.Tensor.cuda``.
    """

    def __init__(
        self, size: Size, dtype: str, torch: Any, to_device: Any, patterns: list[Pattern] | None = None
    ) -> None:
        super().__init__(size, dtype, 1, patterns)
        self.torch = torch
        self.tensors = [to_device(tensor) for tensor in self.tensors or ()]
        self.cache = AttentionCache(index="off")
        for tensor in self.tensors:
            self.cache.push(tensor)

    @cached_property
    def names(self) -> dict[str, Any]:
        """What the expressions may use."""
        return {**vars(contenders), "cache": self.cache, "tensors": self.tensors, "torch": self.torch}


def on_host(answer: Any) -> Any:
    """An answer on a device as NumPy arrays, once it is there."""
    if isinstance(answer, tuple):
        return tuple(on_host(part) for part in answer)
    if hasattr(answer, "positions"):
        return on_host((answer.positions, answer.weights))
    return answer.cpu().numpy() if hasattr(answer, "cpu") else answer.numpy()


def top_of_layer(k: int) -> Case:
    """The k heaviest of every query of every head."""
    return Case(
        f"top_k, every query of every head, k={k}",
        "top_k",
        ("layer",),
        a_layer,
        {
            OURS: f"cache.top_k({k}, layers=layer, heads=None, device_result=True)",
            TORCH: f"torch_heaviest(tensors[layer][0], {k})",
        },
        lambda world, layer: Expected(
            reference.top_k(world.queries(layer, world.sample), k, layers=0, heads=None),
            reference.rows(world.queries(layer, world.sample), 0, heads=None),
        ),
        lambda world: top_bytes(world, world.size.heads * world.size.seq, k),
        whole=True,
    )


CASES = (
    Case(
        "head_mean",
        "head_mean",
        ("layer",),
        a_layer,
        {
            OURS: "cache.head_mean(layer, device_result=True)",
            TORCH: "tensors[layer][0].mean(0, dtype=torch.float32)",
        },
        lambda world, layer: Expected(reference.rows(world.queries(layer, world.sample), 0)),
        mean_bytes,
        whole=True,
    ),
    Case(
        "rows, one query of every layer",
        "rows",
        ("position",),
        a_position,
        {
            OURS: "cache.rows(positions=position, device_result=True)",
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
            OURS: "cache.columns(positions=position, device_result=True)",
            TORCH: "torch.stack([t[0, :, :, position].mean(0, dtype=torch.float32) for t in tensors])",
        },
        lambda world, position: Expected(
            reference.columns([pattern[..., [position]] for pattern in world.patterns], positions=0)
        ),
        lambda world: world.size.layers * line_bytes(world),
    ),
    Case(
        "columns, every key of the mean",
        "columns",
        ("layer",),
        a_layer,
        {
            OURS: "cache.columns(layer, device_result=True)",
            TORCH: "tensors[layer][0].mean(0, dtype=torch.float32).T.contiguous()",
        },
        lambda world, layer: Expected(reference.columns(world.keys(layer, world.sample), 0)),
        mean_bytes,
        whole=True,
    ),
    Case(
        f"top_k, one query of every head, k={K}",
        "top_k",
        ("layer", "position"),
        a_line,
        {
            OURS: f"cache.top_k({K}, layers=layer, positions=position, heads=None, device_result=True)",
            TORCH: f"torch_heaviest(tensors[layer][0, :, position], {K})",
        },
        lambda world, layer, position: Expected(
            reference.top_k(world.queries(layer, [position]), K, layers=0, positions=0, heads=None),
            reference.rows(world.queries(layer, [position]), 0, 0, heads=None),
        ),
        lambda world: top_bytes(world, world.size.heads),
    ),
    top_of_layer(K),
    top_of_layer(LONG_K),
    Case(
        "edges, one pair in every layer and head",
        "edges",
        ("query", "key"),
        lambda world: (*a_position(world), *a_position(world)),
        {
            OURS: "cache.edges(query, key, device_result=True)",
            TORCH: "torch.stack([t[0, :, query, key] for t in tensors]).float()",
        },
        lambda world, query, key: Expected(
            np.stack([pattern[0, :, query, key] for pattern in world.patterns]).astype(np.float32)
        ),
        lambda world: world.size.layers * world.size.heads * (world.itemsize + 4),
    ),
)
