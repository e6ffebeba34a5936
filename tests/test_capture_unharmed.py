"""A capture leaves a model, its bits, its hooks and whatever wraps it as they were, and exceptions pass through it."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import capture

pytest.importorskip("torch", reason="capture needs torch")

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.support.attending import (
    BYS,
    WIDTH,
    B,
    D,
    H,
    K,
    X,
    assert_captured,
    drawn,
    expected,
    hooks_of,
    model_of,
    patterns,
)

pytestmark = pytest.mark.usefixtures("everything_is_as_it_was")

BACKWARDS = pytest.mark.parametrize("backward", [torch.Tensor.backward, torch.autograd.backward])


@BYS
@pytest.mark.parametrize("store", ["pattern", "qk"])
def test_bits_of_output_and_gradients_are_the_same(by: str, store: Any) -> None:
    if (by, store) == ("softmax", "qk"):
        pytest.skip("a softmax alone has no queries")
    model = model_of(by)
    results = []
    for is_captured in (False, True):
        model.zero_grad()
        if is_captured:
            with capture(model, store, dtype="float32") as cache:
                out = model(X)
                out.square().sum().backward()
        else:
            out = model(X)
            out.square().sum().backward()
        results.append([out.detach(), *(weight.grad.clone() for weight in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert_captured(cache, model)
    assert hooks_of(model) == 0


# ---- exceptions


class Stops(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def forward(self, _: Any) -> None:
        raise self.error("stop")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
@BYS
def test_an_exception_of_the_model_leaves_everything(error: type[BaseException], by: str) -> None:
    model = model_of(by).append(Stops(error))
    with pytest.raises(error, match="stop"), torch.no_grad(), capture(model, dtype="float32") as cache:
        model(X)
    assert hooks_of(model) == 0
    assert_captured(cache, model[:2])


def test_an_exception_of_the_capture_leaves_everything() -> None:
    model = model_of("softmax")
    with pytest.raises(IndexError, match="head 9 is out of range for n_heads=4"), capture(model, heads=9):
        model(X)
    assert hooks_of(model) == 0
    with torch.no_grad(), capture(model, dtype="float32") as cache:
        model(X)
    assert_captured(cache, model)


def test_an_exception_that_the_user_catches_ends_nothing() -> None:
    model = model_of()
    with torch.no_grad(), capture(model, dtype="float32") as cache:
        with pytest.raises(RuntimeError):
            model(drawn(B, K, WIDTH + 1))
        model(X)
    assert_captured(cache, model)


# ---- what wraps a model


@BYS
def test_a_compiled_module_is_heard(by: str) -> None:
    model = model_of(by)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        plain = compiled(X)
        for captured in (model, compiled):
            with capture(captured, dtype="float32") as cache:
                assert torch.equal(compiled(X), plain)
            assert_captured(cache, model)
        assert torch.equal(compiled(X), plain)


def test_a_module_compiled_in_place_is_heard() -> None:
    model = model_of()
    model[0].compile(backend="eager")
    with torch.no_grad():
        model(X)
        with capture(model, dtype="float32") as cache:
            model(X)
    assert_captured(cache, model)


def test_data_parallel_is_heard() -> None:
    model = model_of()
    parallel = nn.DataParallel(model)
    with torch.no_grad(), capture(parallel, dtype="float32") as cache:
        parallel(X)
    assert [source.module for source in cache.sources] == ["module.0", "module.1"]
    assert_captured(cache, model)


@BYS
@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("where", ["inside", "outside", "the model"])
@BACKWARDS
def test_a_layer_that_the_backward_pass_runs_again_is_one(by: str, again: bool, where: str, backward: Any) -> None:
    model = model_of(by, again=again if where == "inside" else None)
    x = X.clone().requires_grad_()

    def run() -> torch.Tensor:
        if where == "outside":
            return model[1](checkpoint(model[0], x, use_reentrant=again))
        return model(x) if where == "inside" else checkpoint(model, x, use_reentrant=again)

    backward(run().square().sum())
    plain = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    with capture(model, dtype="float32") as cache:
        backward(run().square().sum())
    assert all(torch.equal(weight.grad, before) for weight, before in zip(model.parameters(), plain, strict=True))
    assert_captured(cache, model)


@BACKWARDS
def test_a_module_that_runs_twice_and_again_in_the_backward_pass_is_two(backward: Any) -> None:
    model = model_of(again=False)
    twice = nn.Sequential(model[0], model[0])
    with capture(twice, dtype="float32") as cache:
        backward(twice(X.clone().requires_grad_()).sum())
    assert [(source.module, source.call) for source in cache.sources] == [("0", 0), ("0", 1)]
    assert_captured(cache, twice)


def test_hooks_of_others_do_as_they_did() -> None:
    model = model_of()
    seen = []
    model[0].register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    model[0].register_forward_hook(lambda _module, _args, out: out * 2)
    model.register_forward_hook(lambda *_: seen.append("after"), always_call=True)
    plain = model(X)
    with capture(model, dtype="float32") as cache:
        handle = model[1].register_forward_hook(lambda _module, _args, out: out.new_zeros(()))
        assert model(X) == 0
        handle.remove()
    assert torch.equal(model(X), plain)
    assert len(seen) == 3
    np.testing.assert_allclose(patterns(cache)[0], expected(model[:1], X + 1)[0], rtol=0, atol=2e-6)


def test_copies_made_during_a_capture_keep_no_hook() -> None:
    model = model_of()
    with torch.no_grad(), capture(model, dtype="float32") as cache:
        model(X)
        copied = copy.deepcopy(model)
        assert torch.equal(copied(X + 1), model.__class__.forward(copied, X + 1))
        loaded = pickle.loads(pickle.dumps(model))
        loaded(X + 1)
        state = copy.deepcopy(model.state_dict())
    assert_captured(cache, model)
    assert hooks_of(model) == hooks_of(copied) == 0
    assert torch.equal(loaded(X), model(X))
    assert state.keys() == model.state_dict().keys()


def test_a_model_under_functional_call_is_heard() -> None:
    model = model_of()
    weights = {name: 2 * weight.detach() for name, weight in model.named_parameters()}
    with torch.no_grad(), capture(model, dtype="float32") as cache:
        torch.func.functional_call(model, weights, (X,))
    doubled = copy.deepcopy(model)
    doubled.load_state_dict(weights)
    assert_captured(cache, doubled)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@BYS
def test_a_transform_of_torch_func_is_left_alone_and_told(by: str) -> None:
    model = model_of(by)
    several = torch.stack([X, X + 1])
    with torch.no_grad():
        plain = torch.vmap(model)(several)
        with pytest.raises(ValueError, match=r"torch\.func|no softmax .* was heard"), capture(model):
            assert torch.equal(torch.vmap(model)(several), plain)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@BYS
def test_a_trace_is_left_alone_and_told(by: str) -> None:
    model = model_of(by)
    with torch.no_grad():
        plain = torch.jit.trace(model, X, check_trace=False)
        with pytest.raises(ValueError, match=r"torch\.jit\.trace|no softmax .* was heard"), capture(model):
            traced = torch.jit.trace(model, X, check_trace=False)
        assert str(traced.inlined_graph).count("aten::") == str(plain.inlined_graph).count("aten::")
        assert torch.equal(traced(X + 1), model(X + 1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused() -> None:
    class Nested(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    model = Nested()
    for x in (
        torch.nested.nested_tensor([drawn(H, 5, D), drawn(H, 3, D)]),
        torch.nested.nested_tensor([drawn(5, H, D), drawn(3, H, D)], layout=torch.jagged).transpose(1, 2),
    ):
        model(x)
        told = "cannot be captured: its queries and keys are nested tensors"
        with pytest.raises(ValueError, match=told), capture(model):
            model(x)


FIRST_IN_A_PROCESS = """
import sys, warnings, torch
from attncache import capture
from tests.test_capture_layers import Attention, X
warnings.simplefilter("ignore")
model = Attention()
with torch.no_grad(), capture(model):
    model(X)
assert "torch._dynamo" not in sys.modules, "a capture loads the compiler, which takes seconds"
before = torch.compile
with torch.no_grad(), capture(model, dtype="float32") as cache:
    compiled = torch.compile(model, backend="eager")
    compiled(X)
assert cache.shapes == ((2, 4, 7, 7),), cache.shapes
assert torch.compile is before
assert torch._dynamo.eval_frame._stance.stance == "default"
"""


def test_a_capture_loads_no_compiler_and_hears_what_is_compiled_in_it() -> None:
    subprocess.run([sys.executable, "-c", FIRST_IN_A_PROCESS], check=True, cwd=Path(__file__).parent.parent)
