"""What is no attention and passes in silence, what is named since it cannot be heard, and that nothing is kept alive."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attncache import CaptureWarning, capture

pytest.importorskip("torch", reason="capture needs torch")

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from tests.support.attending import Attends, B, D, H, K, Model, Q, drawn, patterns

SCORES = 2 * drawn(B, H, Q, K)
VALUES = drawn(B, H, K, D)
WEIGHTS = SCORES.softmax(-1).numpy()
HIDDEN = drawn(B, K, K)  # as wide as it is long, so that one may pass for the other

NO_ATTENTION: dict[str, Callable[[], Any]] = {
    "a loss": lambda: F.softmax(drawn(B, Q, K), -1).log().mean(),
    "two axes": lambda: drawn(K, K).softmax(-1) @ drawn(K, K),
    "a router": lambda: F.softmax(HIDDEN @ drawn(K, 4), -1).topk(2, dim=-1)[0],
    "experts": lambda: (F.softmax(HIDDEN @ drawn(K, 4), -1).unsqueeze(-1) * drawn(B, K, 4, K)).sum(2) @ drawn(K, K),
    "a gate": lambda: (HIDDEN.softmax(-1) * HIDDEN) @ drawn(K, K),
    "a gate behind": lambda: F.linear(HIDDEN * HIDDEN.softmax(-1), drawn(K, K)) @ drawn(K, K),
    "a gate in place": lambda: HIDDEN.softmax(-1).mul_(HIDDEN) @ drawn(K, K),
    "a gate of positions": lambda: (HIDDEN[..., :1].softmax(1) * HIDDEN).transpose(1, 2) @ drawn(K, K),
    "pooling": lambda: (HIDDEN[..., :1].softmax(1) * HIDDEN).sum(1) @ drawn(K, K),
    "a sum over the queries": lambda: SCORES.softmax(-1).mT @ drawn(B, H, Q, D),
    "a sum over the heads": lambda: torch.einsum("bhqk,bhqd->bkd", SCORES.softmax(-1), drawn(B, H, Q, D)),
    "an embedding of classes": lambda: F.linear(HIDDEN.softmax(-1), drawn(K, K)) @ drawn(K, K),
}


@pytest.mark.parametrize("name", NO_ATTENTION)
def test_what_is_no_attention_passes_in_silence(name: str) -> None:
    """Beside attention, which comes before it and after."""

    attn = Attends(lambda: SCORES.softmax(-1) @ VALUES)
    model = nn.ModuleDict({"attn": attn, "other": Attends(NO_ATTENTION[name])})
    model.forward = lambda x: (model["attn"](x), model["other"](x), model["attn"](x))
    with capture(model, dtype="float32") as cache:
        model(SCORES)
    assert [(source.module, source.call) for source in cache.sources] == [("attn", 0), ("attn", 1)]
    np.testing.assert_allclose(patterns(cache)[1], WEIGHTS, atol=2e-7)


class Gated(nn.Module):
    """A softmax over the width gates what goes into attention of one head, written with products and a dense choice of experts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.router = nn.Linear(width, width), nn.Linear(width, 3)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.norm, self.qkv, self.conv = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Conv1d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x + self.gate(x).softmax(-1) * x)
        x = x * x[..., :1].softmax(1)
        chosen = self.router(x).softmax(-1)
        x = x + sum(chosen[..., n, None] * expert(x) for n, expert in enumerate(self.experts))
        x = self.conv((x * self.gate(x).softmax(-1)).transpose(1, 2)).transpose(1, 2)
        query, key, value = self.qkv(x).chunk(3, -1)
        return (query @ key.mT).softmax(-1) @ value + torch.einsum("bqc,bkc->bqk", query, key).mean()


@pytest.mark.parametrize("length", [5, 6, 3, 1])
def test_gates_and_experts_around_attention_are_no_alarm(length: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Gated(6), Gated(6))
    x = drawn(1, length, 6)
    with torch.no_grad(), capture(model, dtype="float32") as cache:
        model(x)
    assert cache.shapes == ((1, 1, length, length),) * 2
    assert [source.module for source in cache.sources] == ["0", "1"]


# ---- named


class Talks(nn.Module):
    """Attention whose heads are mixed after the softmax."""

    def __init__(self, mix: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.mix = mix
        self.linear, self.conv, self.norm = nn.Linear(H, H), nn.Conv2d(H, H, 1), nn.BatchNorm2d(H)
        self.matrix = nn.Parameter(drawn(H, H))

    def forward(self, _: Any) -> torch.Tensor:
        return self.mix(self, SCORES.softmax(-1)) @ VALUES


MIXES: dict[str, tuple[str, Callable[..., torch.Tensor]]] = {
    "linear": ("linear", lambda m, w: m.linear(w.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    "conv": ("conv2d", lambda m, w: m.conv(w)),
    "conv and norm": ("conv2d", lambda m, w: m.norm(m.conv(w)).contiguous()),
    "norm": ("batch_norm", lambda m, w: m.norm(w).contiguous()),
    "einsum": ("einsum", lambda m, w: torch.einsum("hg,bgqk->bhqk", m.matrix, w)),
    "einsum, weights first": ("einsum", lambda m, w: torch.einsum("bgqk,gh->bhqk", w, m.matrix)),
    "matmul": ("matmul", lambda m, w: (w.permute(0, 2, 3, 1) @ m.matrix).permute(0, 3, 1, 2)),
    "matmul in front": ("matmul", lambda m, w: (m.matrix @ w.transpose(1, 2)).transpose(1, 2)),
    "heads in another order": ("getitem", lambda _, w: w[:, [1, 0, 3, 2]]),
    "a difference": ("sub", lambda _, w: w - 0.5 * w.flip(1)),
    "a sum in place": ("add_", lambda m, w: w.add_(m.matrix[0, 0])),
    "the best alone": ("topk|zeros_like|scatter", lambda _, w: torch.zeros_like(w).scatter(3, *w.topk(2, 3)[::-1])),
    "a power": ("pow", lambda _, w: F.dropout(w**2, 0.1, training=True).to(torch.float32)),
}


@pytest.mark.parametrize("name", MIXES)
def test_weights_that_are_mixed_before_they_multiply_are_named(name: str) -> None:
    by, mix = MIXES[name]
    model = nn.ModuleDict({"plain": Attends(lambda: SCORES.softmax(-1) @ VALUES), "talks": Talks(mix)})
    model.forward = lambda x: [module(x) for module in model.values()]
    with torch.no_grad():
        told = rf"talks passes its softmax through _*({by})_* before it multiplies"
        with pytest.warns(CaptureWarning, match=told), capture(model, dtype="float32") as cache:
            model(SCORES)
        assert [source.module for source in cache.sources] == ["plain"]
        told = rf"Talks cannot be captured: .* passes its softmax through _*({by})_*"
        with pytest.raises(ValueError, match=told), capture(model["talks"]):
            model["talks"](SCORES)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_attention_is_named() -> None:
    class Scores(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.softmax(-1) @ x.mT

    model = Model(plain=Attends(lambda: SCORES.softmax(-1) @ VALUES), scripted=torch.jit.script(Scores()))
    told = "scripted ran, and no softmax or scaled_dot_product_attention of it was heard"
    with pytest.warns(CaptureWarning, match=told), capture(model) as cache:
        model(SCORES)
    assert [source.module for source in cache.sources] == ["plain"]


def test_a_module_called_attention_that_was_not_heard_is_named() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(K, K), nn.Linear(K, K)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weights = (self.query(x) @ self.key(x).mT).exp()
            return weights / weights.sum(-1, keepdim=True) @ x

    model = Model(attention=Attention())
    told = r"Model cannot be captured: attention ran, and no softmax .* of it was heard"
    with pytest.raises(ValueError, match=told), capture(model):
        model(SCORES)


# ---- nothing is kept


class Watches(TorchFunctionMode):
    """Holds weak references to every tensor that a function returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[weakref.ref[torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.seen.append(weakref.ref(out))
        return out


class Block(nn.Module):
    """Attention of each seam, a bias that changes each time, dropout, talking heads, and softmaxes that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.mix = 2, nn.Linear(8, 24), nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        bias = torch.randn(x.shape[1], x.shape[1])
        out = F.scaled_dot_product_attention(query, key, value, bias)
        weights = F.dropout(((query @ key.mT) + bias).softmax(-1), 0.5, self.training)
        out = out + weights.view(-1, *weights.shape[2:]) @ value.flatten(0, 1).view_as(value).flatten(0, 1)
        unused = F.dropout(out.softmax(-1), 0.5, self.training)
        talks = self.mix(weights) @ value
        return x + (out + talks).transpose(1, 2).flatten(2) + unused.mean() + out.softmax(-1).log().mean()


@pytest.mark.parametrize("training", [False, True])
def test_no_tensor_outlives_the_forward(training: bool) -> None:
    model = nn.Sequential(Block(), Block()).train(training)
    x = drawn(1, 5, 8)
    gc.disable()
    try:
        with warnings.catch_warnings(), torch.set_grad_enabled(training):
            warnings.simplefilter("ignore", CaptureWarning)
            with capture(model), Watches() as watches:
                out = model(x)
                if training:
                    out.sum().backward()
                del out
                alive = [seen() for seen in watches.seen if seen() is not None]
                shapes = [tuple(tensor.shape) for tensor in alive]
                del alive
    finally:
        gc.enable()
    assert len(watches.seen) > 20
    assert not shapes
