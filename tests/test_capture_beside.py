"""Captures beside each other, beside the modes of others, and in several threads: none disturbs another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attncache import CaptureWarning, capture

pytest.importorskip("torch", reason="capture needs torch")

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tests.support.attending import (
    BYS,
    X,
    assert_captured,
    expected,
    model_of,
    patterns,
)

pytestmark = pytest.mark.usefixtures("everything_is_as_it_was")


class Counts(TorchFunctionMode):
    """Somebody else's mode."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


# ---- modes of others


@BYS
def test_a_mode_that_was_open_before_sees_what_it_saw(by: str) -> None:
    model, plain, beside = model_of(by), Counts(), Counts()
    with torch.no_grad():
        with plain:
            model(X)
        with beside, capture(model, dtype="float32") as cache:
            model(X)
    assert_captured(cache, model)
    assert beside.names[: len(plain.names)] == plain.names or set(plain.names) <= set(beside.names)


@BYS
def test_a_mode_that_opens_inside_hides_nothing(by: str) -> None:
    model, inside = model_of(by), Counts()
    with torch.no_grad(), capture(model, dtype="float32") as cache:
        with inside:
            model(X)
        assert torch._C._len_torch_function_stack() == 1
    assert_captured(cache, model)
    assert inside.names


def test_a_mode_that_stays_open_longer_stays() -> None:
    model, longer = model_of(), Counts()
    with torch.no_grad():
        with capture(model, dtype="float32") as cache:
            longer.__enter__()
            model(X)
        assert_captured(cache, model)
        longer.names.clear()
        X.sum()
        assert longer.names == ["sum"]
        longer.__exit__(None, None, None)


def test_a_mode_that_closes_amid_a_capture_is_closed() -> None:
    model, shorter = model_of(), Counts()
    shorter.__enter__()
    with torch.no_grad(), capture(model, dtype="float32") as cache:
        model(X)
        shorter.__exit__(None, None, None)  # PyTorch closes whichever is on top
    assert_captured(cache, model)
    shorter.names.clear()
    X.sum()
    assert not shorter.names


def test_a_default_device_is_no_matter() -> None:
    model = model_of()
    with torch.no_grad(), torch.device("cpu"), capture(model, dtype="float32") as cache, torch.device("cpu"):
        model(X)
    assert_captured(cache, model)


# ---- captures beside each other


@BYS
def test_captures_of_two_models_do_not_mix(by: str) -> None:
    one, two = model_of(by), nn.Sequential(*reversed(model_of(by)))
    with torch.no_grad(), capture(one, dtype="float32") as first, capture(two, dtype="float32") as second:
        one(X)
        two(X + 1)
    assert_captured(first, one)
    assert_captured(second, two, X + 1)


def test_one_model_in_two_stores() -> None:
    model = model_of()
    with torch.no_grad(), capture(model, dtype="float32") as first:
        with capture(model, "qk", layers=[1], dtype="float32") as second:
            model(X)
        assert second.sources[0].module == "1"
        np.testing.assert_allclose(patterns(second)[0], expected(model)[1], rtol=0, atol=2e-6)
    assert_captured(first, model)


def test_captures_that_end_in_another_order() -> None:
    model = model_of()
    first, second = capture(model, dtype="float32"), capture(model, dtype="float32")
    caches = [first.__enter__(), second.__enter__()]
    with torch.no_grad():
        model(X)
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
    for cache in caches:
        assert_captured(cache, model)


def test_a_capture_goes_on_when_an_earlier_one_has_ended() -> None:
    model = model_of()
    first = capture(model, layers=[])
    first.__enter__()
    with capture(model, dtype="float32") as cache, torch.no_grad():
        first.__exit__(None, None, None)
        model(X)
    assert_captured(cache, model)


# ---- threads


@BYS
def test_captures_in_threads_at_once_hear_their_own(by: str) -> None:
    models = [model_of(by) for _ in range(4)]
    together, caches = threading.Barrier(4), {}

    def run(number: int) -> None:
        with torch.no_grad(), capture(models[number], dtype="float32") as cache:
            together.wait(20)
            models[number](X + number)
            together.wait(20)
        caches[number] = cache

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, model in enumerate(models):
        assert_captured(caches[number], model, X + number)


def run_in_a_thread(run: Callable[[], Any]) -> Any:
    found = []
    thread = threading.Thread(target=lambda: found.append(run()))
    thread.start()
    thread.join()
    return found[0]


@BYS
def test_a_forward_in_another_thread_is_told_and_not_recorded(by: str) -> None:
    model = model_of(by)
    plain = model(X)
    with pytest.warns(CaptureWarning, match="it ran in another thread than the capture"), capture(model) as cache:
        out = run_in_a_thread(lambda: model(X))
    assert torch.equal(out, plain)
    assert cache.is_empty


def test_a_forward_beside_in_another_thread_is_left_alone() -> None:
    model = model_of()
    with torch.no_grad(), capture(model, dtype="float32") as cache:
        run_in_a_thread(lambda: model(X + 1))
        model(X)
        run_in_a_thread(lambda: model(X + 2))
    assert_captured(cache, model)
