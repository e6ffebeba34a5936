"""``attncache.capture`` on small random models: what it stores, selections, refusals, and the model afterwards.

Sizes: 4 layers, 4 heads, 12 tokens, 2 texts. Tolerance: none.
Not covered: that every weight is right and every output has its bits, of each family of models, padded and not, under both
backends (test_sweep.py, against an oracle); flash attention and devices other than the CPU, which need hardware; real
weights (test_models.py).
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from tests.support.capturing import dense

pytest.importorskip("torch", reason="capture needs torch")
pytest.importorskip("transformers", reason="capture needs transformers")

import torch
from transformers.modeling_utils import AttentionInterface

from attncache import AttentionCache, capture
from attncache.taking import indices
from tests.support.capturing import BATCH, LENGTH, N_HEADS, N_LAYERS, inputs, make

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.mark.parametrize(("dtype", "stored"), [("float16", "float16"), ("float32", "float32"), (None, "bfloat16")])
@pytest.mark.parametrize("store", ["pattern", "qk"])
def test_layers_are_stored_in_the_dtype_asked_for_or_the_models_own(store: Any, dtype: Any, stored: str) -> None:
    model = make("llama: grouped heads").to(torch.bfloat16)
    with capture(model, store, dtype=dtype) as cache:
        model(**inputs())
    assert set(cache.dtypes) == {stored}


def test_a_forward_that_tracks_gradients_can_be_captured() -> None:
    model = make("llama: grouped heads")
    with torch.enable_grad(), capture(model) as cache:
        loss = model(**inputs(), labels=inputs()["input_ids"]).loss
        loss.backward()
    assert cache.n_layers == N_LAYERS
    assert model.model.layers[0].self_attn.q_proj.weight.grad is not None


def test_inference_mode_is_captured_too() -> None:
    model = make("mistral: window")
    with torch.inference_mode(), capture(model) as cache:
        model(**inputs("left"))
    with capture(model) as other:
        model(**inputs("left"))
    for pattern, same in zip(cache, other, strict=True):
        assert np.array_equal(pattern, same)


@pytest.mark.parametrize("store", ["pattern", "qk"])
@pytest.mark.parametrize("layers", [0, -1, [1, -1], slice(1, 3), np.array([2]), [3, 0, 3], []], ids=str)
def test_layers_selects_among_the_models_layers_in_their_order(layers: Any, store: Any) -> None:
    model = make("llama: grouped heads")
    with capture(model, store) as every, capture(model, store, layers) as some:
        model(**inputs())
    numbers = sorted(set(indices(layers, N_LAYERS, "layers", "n_layers")))
    assert some.n_layers == len(numbers)
    for number, pattern in zip(numbers, dense(some), strict=True):
        assert np.array_equal(pattern, dense(every)[number])


@pytest.mark.parametrize("store", ["pattern", "qk"])
@pytest.mark.parametrize("heads", [0, -1, [0, 1], [0, 2], [0, 1, 2], [3, 0], slice(2, None), [1, 1]], ids=str)
@pytest.mark.parametrize("name", ["llama: grouped heads", "gpt-oss: sinks, window in every other layer"])
def test_heads_selects_query_heads_with_their_key_heads_and_sinks(name: str, heads: Any, store: Any) -> None:
    model = make(name)
    with capture(model, store, dtype="float32") as every, capture(model, store, None, heads, "float32") as some:
        model(**inputs())
    wanted = list(indices(heads, N_HEADS, "heads", "n_heads"))
    for whole, pattern in zip(dense(every), dense(some), strict=True):
        assert pattern.shape == (BATCH, len(wanted), LENGTH, LENGTH)
        assert np.array_equal(pattern, whole[:, wanted])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"layers": 4}, IndexError, "layer 4 is out of range for n_layers=4"),
        ({"layers": [0, -5]}, IndexError, "layer -5 is out of range for n_layers=4"),
        (
            {"layers": "all"},
            ValueError,
            "layers must name modules of the model, got 'all', which is none; one is 'model",
        ),
        ({"layers": True}, TypeError, "layers must be None, an int, a slice or a sequence of ints, got bool"),
        ({"heads": 4}, IndexError, "head 4 is out of range for n_heads=4"),
        ({"heads": 1.0}, TypeError, "heads must be None, an int, a slice or a sequence of ints, got float"),
        ({"store": "keys"}, ValueError, "store must be 'pattern' or 'qk', got 'keys'"),
        ({"dtype": "int8"}, ValueError, "dtype must be None, 'float16', 'bfloat16' or 'float32', got 'int8'"),
        ({"progress": 1}, TypeError, "progress must be True, False, None or callable, got int"),
        ({"model": "gpt2"}, TypeError, r"model must be a torch\.nn\.Module, got str"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    model = arguments.pop("model", None) or make("llama: grouped heads")
    with pytest.raises(error, match="^" + words.replace("(", r"\(")), capture(model, **arguments):
        model(**inputs())


def test_an_exception_leaves_the_model_as_it_was() -> None:
    model = make("llama: grouped heads")
    before = {name: dict(module._forward_hooks) for name, module in model.named_modules()}
    plain = model(**inputs()).logits
    caches = []

    def fail() -> None:
        with capture(model) as cache:
            caches.append(cache)
            model(**inputs())
            raise KeyError("of the user")

    with pytest.raises(KeyError):
        fail()
    assert caches[0].n_layers == N_LAYERS
    assert {name: dict(module._forward_hooks) for name, module in model.named_modules()} == before
    assert "get_interface" in vars(AttentionInterface)
    assert torch.equal(plain, model(**inputs()).logits)


def test_a_capture_may_follow_or_surround_another() -> None:
    model = make("llama: grouped heads")
    with capture(model, dtype="float32") as outer, capture(model, "qk", layers=[0], dtype="float32") as inner:
        model(**inputs())
    with capture(model, dtype="float32") as again:
        model(**inputs())
    assert (outer.n_layers, inner.n_layers) == (N_LAYERS, 1)
    for first, second in zip(dense(outer), dense(again), strict=True):
        assert np.array_equal(first, second)


def test_two_models_are_captured_at_once_each_into_its_own_cache() -> None:
    causal, encoder = make("llama: grouped heads"), make("bert: bidirectional")
    first, second = capture(causal), capture(encoder, layers=0)
    one = first.__enter__()
    two = second.__enter__()
    causal(**inputs())
    first.__exit__(None, None, None)  # not in the order of entering
    encoder(**inputs())
    second.__exit__(None, None, None)
    assert (one.n_layers, two.n_layers) == (N_LAYERS, 1)
    assert np.triu(two[0], 1).any()


def test_threads_capture_a_model_each() -> None:
    models = [make(name) for name in ("llama: grouped heads", "gpt2: one key head per head")]
    caches: dict[int, AttentionCache] = {}

    def work(number: int) -> None:
        with torch.no_grad(), capture(models[number]) as cache:
            for _ in range(1):
                models[number].generate(**inputs(), max_new_tokens=8, do_sample=False)
        caches[number] = cache

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, model in enumerate(models):
        with capture(model) as alone:
            model.generate(**inputs(), max_new_tokens=8, do_sample=False)
        for together, pattern in zip(caches[number], alone, strict=True):
            assert np.array_equal(together, pattern)


@pytest.mark.filterwarnings("default")  # torch.compile warns about Python itself
def test_a_compiled_model_runs_uncompiled_while_it_is_captured() -> None:
    model = make("llama: grouped heads")
    compiled = torch.compile(model, backend="eager")
    compiled(**inputs())
    with capture(model) as cache:
        compiled(**inputs())
    assert cache.n_layers == N_LAYERS
    with capture(compiled) as cache:
        compiled(**inputs())
    assert cache.n_layers == N_LAYERS
