"""Modules of one's own that call scaled_dot_product_attention, under every spelling and as models are run; and the truth of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from attncache import CaptureWarning, capture

pytest.importorskip("torch", reason="capture needs torch")

import torch
import torch.nn.functional as F
from torch.nn.functional import scaled_dot_product_attention as imported_by_name

from tests.support.attending import (
    CLOSE,
    STORES,
    Array,
    B,
    D,
    H,
    K,
    Q,
    assert_is,
    by_hand,
    captured,
    drawn,
    qkv,
)

SPELLINGS: dict[str, Callable[..., Any]] = {
    "by name": imported_by_name,
    "aten": torch.ops.aten.scaled_dot_product_attention,
    "aten.default": torch.ops.aten.scaled_dot_product_attention.default,
    "aten by name": lambda q, k, v: torch.ops.aten.scaled_dot_product_attention(query=q, key=k, value=v),
    "keywords": lambda q, k, v: F.scaled_dot_product_attention(value=v, query=q, key=k),
    "places": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, None, 0.0, False),
    "C": torch._C._nn.scaled_dot_product_attention,
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_heard(name: str) -> None:
    query, key, value = qkv(B, H)
    assert_is(captured(query, key, value, by=SPELLINGS[name]), by_hand(query, key))


@STORES
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, -1.0])
def test_the_scale_is_that_of_the_call(scale: float, store: Any) -> None:
    query, key, value = qkv(B, H)
    is_instead = store == "qk" and scale <= 0
    words = "is a pattern, since .* its scale is -?[01], and queries and keys are kept with one above zero"
    with pytest.warns(CaptureWarning, match=words) if is_instead else nullcontext():
        cache = captured(query, key, value, options={"scale": scale}, store=store)
    assert cache.kinds == ("factored" if store == "qk" and not is_instead else "dense",)
    assert_is(cache, by_hand(query, key, scale=scale), within=5e-6)


@STORES
@pytest.mark.parametrize("dtype", CLOSE)
def test_every_dtype(dtype: torch.dtype, store: Any) -> None:
    query, key, value = qkv(B, H, dtype=dtype)
    cache = captured(query, key, value, store=store, dtype=None)
    assert_is(cache, by_hand(query, key), CLOSE[dtype])
    kept = {torch.float64: "float32"}.get(dtype, str(dtype).removeprefix("torch."))
    assert cache.dtypes == (kept,)


# ---- as models are run


class Own(torch.nn.Module):
    """Attention of four heads as people write it."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = H, dropout
        self.qkv, self.out = torch.nn.Linear(32, 96), torch.nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, H, D)).permute(2, 0, 3, 1, 4)
        query, key = (torch.nn.functional.normalize(each, dim=-1) * 3 for each in (query, key))
        found = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return self.out(found.transpose(1, 2).flatten(2))

    def expected(self, x: torch.Tensor) -> Array:
        """Its pattern, in the dtype of its weights up to the scores."""
        query, key, _ = self.qkv(x).detach().unflatten(-1, (3, H, D)).permute(2, 0, 3, 1, 4)
        query, key = (torch.nn.functional.normalize(each, dim=-1) * 3 for each in (query, key))
        return by_hand(query, key)


def own(**options: Any) -> Own:
    torch.manual_seed(0)
    return Own(**options)


X = drawn(B, K, 32)


@STORES
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_model_runs_with_gradients_and_without(mode: Any, store: Any) -> None:
    model = own().eval()
    with mode():
        plain = model(X)
        with capture(model, store, dtype="float32") as cache:
            out = model(X)
    assert torch.equal(out, plain)
    assert_is(cache, model.expected(X))


@STORES
def test_gradients_are_the_same_to_the_bit(store: Any) -> None:
    model = own()
    x = X.clone().requires_grad_()
    found = []
    for is_captured in (False, True):
        if is_captured:
            with capture(model, store):
                model(x).square().sum().backward()
        else:
            model(x).square().sum().backward()
        found.append([each.grad.clone() for each in (x, *model.parameters())])
        model.zero_grad()
        x.grad = None
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@STORES
def test_autocast_is_as_it_was(store: Any) -> None:
    model = own().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(X)
        with capture(model, store, dtype=None) as cache:
            out = model(X)
            assert torch.is_autocast_enabled("cpu")
        expected = model.expected(X)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, plain)
    assert_is(cache, expected, within=2e-2)


def test_the_weights_before_dropout_are_kept_and_dropout_named() -> None:
    model = own(dropout=0.5)
    torch.manual_seed(1)
    with pytest.warns(CaptureWarning, match="ran with dropout"), capture(model, dtype="float32") as cache:
        out = model(X)
    torch.manual_seed(1)
    assert torch.equal(out, model(X))
    assert_is(cache, model.expected(X))


# ---- truth


class Other(torch.Tensor):
    """A tensor with attention of its own, which is wrong."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        return found + 0.25 if func is F.scaled_dot_product_attention else found


class Doubles(torch.overrides.TorchFunctionMode):
    """A mode that gives queries another scale than it was told."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            args = (2 * args[0], *args[1:])
        return func(*args, **(kwargs or {}))


def test_a_tensor_whose_attention_is_another_is_refused() -> None:
    query, key, value = qkv(B, H)
    with pytest.raises(ValueError, match=r"attn\) cannot be captured: .*output differs by 0\.25 where rounding allows"):
        captured(query.as_subclass(Other), key, value)
    cache = captured(query.as_subclass(Other), key, value, check=False)
    assert_is(cache, by_hand(query, key))


def test_a_mode_that_changes_attention_is_refused() -> None:
    query, key, value = qkv(B, H)
    with Doubles(), pytest.raises(ValueError, match=r"attn\) cannot be captured: .*output differs by"):
        captured(query, key, value)
    with Doubles():
        assert_is(captured(query, key, value, check=False), by_hand(query, key))


def test_an_output_that_is_no_tensor_is_refused() -> None:
    class Pair(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = super().__torch_function__(func, types, args, kwargs or {})
            return (found, None) if func is F.scaled_dot_product_attention else found

    query, key, value = qkv(B, H)
    with pytest.raises(ValueError, match=r"cannot be captured: .* gave an output other than"):
        captured(query.as_subclass(Pair), key, value)


def test_a_patch_around_attention_is_heard_through(monkeypatch: pytest.MonkeyPatch) -> None:
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **_: original(q * 3, k, v))
    query, key, value = qkv(B, H)
    assert_is(captured(query, key, value, by=F.scaled_dot_product_attention), by_hand(query * 3, key))


def test_an_error_of_the_model_is_its_own() -> None:
    with pytest.raises(RuntimeError, match="size"):
        captured(drawn(B, H, Q, D), drawn(B, H, K, D + 1), drawn(B, H, K, D))
