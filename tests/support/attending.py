"""Modules of one's own that attend as they are told, and what float64 by hand says of them; for tests of capture's seams."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from attncache import AttentionCache, capture

pytest.importorskip("torch", reason="capture needs torch")

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

Array = npt.NDArray[Any]
B, H, Q, K, D = 2, 4, 5, 7, 8  # all different, so that no axis passes for another
CLOSE = {torch.float64: 2e-6, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


class Attends(torch.nn.Module):
    """A module that calls its function with what it is not given, so that nothing but the call tells of it."""

    def __init__(self, attend: Callable[[], Any], **told: Any) -> None:
        super().__init__()
        self.attend = attend
        self.__dict__.update(told)

    def forward(self, _: Any) -> Any:
        return self.attend()


class Model(torch.nn.Module):
    """A model whose modules run one after another on the same input."""

    def __init__(self, **modules: torch.nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, given: Any) -> Any:
        return [module(given) for module in self.children()]


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64).to(dtype)


def qkv(
    *leading: int, n_queries: int = Q, n_keys: int = K, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(
        2 * drawn(*leading, n, D, dtype=dtype, seed=seed) for seed, n in enumerate((n_queries, n_keys, n_keys))
    )


def by_hand(query: torch.Tensor, key: torch.Tensor, added: Any = 0.0, scale: float | None = None) -> Array:
    """Softmax of queries times keys in float64; a bool mask shows where it is True; zeros where a query sees no key."""
    scores = query.double() @ key.double().mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if isinstance(added, torch.Tensor) and added.dtype == torch.bool:
        scores = scores.masked_fill(~added, -torch.inf)
    else:
        scores = scores + added
    return scores.softmax(-1).nan_to_num().numpy()


def captured(
    *args: Any,
    by: Callable[..., Any] = F.scaled_dot_product_attention,
    n_items: int = B,
    told: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> AttentionCache:
    """What is captured of a model of one module, told so much, that makes the call by that function."""
    model = Model(attn=Attends(lambda: by(*args, **(options or {})), **(told or {})))
    with capture(model, **{"dtype": "float32", **settings}) as cache:
        model(torch.zeros(n_items, 3))
    return cache


def patterns(cache: AttentionCache) -> list[Array]:
    return [cache.edges(None, None, layers=layer, heads=None, batch=slice(None)) for layer in range(cache.n_layers)]


def assert_is(cache: AttentionCache, expected: Array, within: float = 2e-6) -> None:
    (found,) = patterns(cache)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=within)


STORES = pytest.mark.parametrize("store", ["pattern", "qk"])


WIDTH = H * D
X = drawn(B, K, WIDTH)


class Attention(torch.nn.Module):
    """Attention as it is, or run again in the backward pass."""

    def __init__(self, by: str = "sdpa", again: bool | None = None) -> None:
        super().__init__()
        self.num_heads, self.by, self.again = H, by, again
        self.qkv, self.out = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def split(self, x: torch.Tensor) -> Any:
        return self.qkv(x).unflatten(-1, (3, H, D)).permute(2, 0, 3, 1, 4)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.split(x)
        if self.by == "softmax":
            found = (query @ key.mT * D**-0.5).softmax(-1) @ value
        else:
            found = F.scaled_dot_product_attention(query, key, value)
        return self.out(found.transpose(1, 2).flatten(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attend(x) if self.again is None else checkpoint(self.attend, x, use_reentrant=self.again)


def model_of(by: str = "sdpa", **options: Any) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(*(Attention(by, **options) for _ in range(2)))


def expected(model: torch.nn.Module, x: torch.Tensor = X) -> list[Array]:
    """The patterns of its modules, by hand."""
    found = []
    with torch.no_grad():
        for module in model:
            query, key, _ = module.split(x)
            found.append(by_hand(query, key))
            x = module.attend(x)
    return found


def assert_captured(cache: AttentionCache, model: torch.nn.Module, x: torch.Tensor = X) -> None:
    found = patterns(cache)
    assert len(found) == 2
    for ours, theirs in zip(found, expected(model, x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


def hooks_of(model: torch.nn.Module) -> int:
    names = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called")  # fmt: skip
    return sum(len(getattr(module, name)) for module in model.modules() for name in names)


BYS = pytest.mark.parametrize("by", ["sdpa", "softmax"])
