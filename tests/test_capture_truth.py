"""``attncache.capture`` holds what the model computed, or says that it cannot.

Covered: attention functions of one's own against what they return and put out, masks of any form, checkpointed layers,
other threads, shared modules. Sizes: 2 layers, 4 heads, 12 tokens. Tolerance: 1e-5 between two float32 computations of
one weight. Not covered: functions that change fewer rows of a long call than are compared (weights.py says how many).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.capturing import IDS, assert_close, dense, llama

pytest.importorskip("torch", reason="capture needs torch")
pytest.importorskip("transformers", reason="capture needs transformers")

import torch
from transformers import AttentionInterface

from attncache import CaptureWarning, capture
from tests.support.capturing import LENGTH, inputs, make

pytestmark = pytest.mark.usefixtures("without_gradients")


def scores_of(module: Any, query: Any, key: Any, scaling: float) -> Any:
    key = key.repeat_interleave(module.num_key_value_groups, 1)
    return (query @ key.mT * scaling).masked_fill(~torch.ones(query.shape[2], key.shape[2]).tril().bool(), -torch.inf)


def function(change: Callable[[Any], Any], weigh: Callable[[Any], Any], *, returns_weights: bool) -> Any:
    def attention(module: Any, query: Any, key: Any, value: Any, *_: Any, **options: Any) -> Any:
        weights = weigh(change(scores_of(module, query, key, options["scaling"])).softmax(-1))
        value = value.repeat_interleave(module.num_key_value_groups, 1)
        return (weights @ value).transpose(1, 2).contiguous(), weights if returns_weights else None

    return attention


def cut_edge(scores: Any) -> Any:
    scores = scores.clone()
    scores[:, 1, 7, 3] = -torch.inf
    return scores


def silence_head(weights: Any) -> Any:
    weights = weights.clone()
    weights[:, 2] = 0
    return weights


def same(tensor: Any) -> Any:
    return tensor


VARIANTS = {
    "one edge cut": (cut_edge, same),
    "one head silenced": (same, silence_head),
    "another scale": (lambda scores: scores * 1.5, same),
    "an unmasked row": (lambda scores: scores.nan_to_num(neginf=0.0), same),
}


def with_function(attention: Any) -> Any:
    AttentionInterface.register("of_ones_own", attention)
    return llama(attn_implementation="of_ones_own")


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_that_a_function_returns_are_what_is_stored(variant: str) -> None:
    model = with_function(function(*VARIANTS[variant], returns_weights=True))
    with capture(model, dtype="float32") as cache:
        outputs = model(IDS, output_attentions=True)
    for ours, theirs in zip(cache, outputs.attentions, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("variant", VARIANTS)
def test_queries_and_keys_are_not_kept_where_a_function_returns_other_weights(variant: str) -> None:
    model = with_function(function(*VARIANTS[variant], returns_weights=True))
    words = r"(is a pattern|are patterns), since .*: its function returned other weights .*the weights differ by [0-9.e-]+ where"
    with pytest.warns(CaptureWarning, match=words), capture(model, "qk", dtype="float32") as cache:
        outputs = model(IDS, output_attentions=True)
    assert cache.kinds[0] == "dense"
    np.testing.assert_array_equal(cache[0], outputs.attentions[0].numpy())


@pytest.mark.parametrize("store", ["pattern", "qk"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_function_whose_output_is_another_is_refused_with_the_difference(variant: str, store: Any) -> None:
    model = with_function(function(*VARIANTS[variant], returns_weights=False))
    words = (
        r"layer 0 .*did not compute the softmax of its queries, keys and mask: the output differs by [0-9.e-]+ where"
    )
    with pytest.raises(ValueError, match=words), capture(model, store) as cache:
        model(IDS)
    assert cache.is_empty


@pytest.mark.parametrize("store", ["pattern", "qk"])
@pytest.mark.parametrize("returns_weights", [True, False])
def test_a_function_that_computes_plain_attention_is_captured(store: Any, returns_weights: bool) -> None:
    model = with_function(function(same, same, returns_weights=returns_weights))
    with capture(model, store, dtype="float32") as cache:
        model(IDS)
    model.set_attn_implementation("eager")
    assert_close(cache, model(IDS, output_attentions=True).attentions)


def test_a_function_without_an_output_to_compare_is_refused() -> None:
    attention = function(same, same, returns_weights=False)
    model = with_function(lambda *args, **kwargs: (attention(*args, **kwargs)[0].flatten(2), None))
    with pytest.raises(ValueError, match="it returned neither weights nor an output"), capture(model):
        model(IDS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama: grouped heads", "mistral: window", "bert: bidirectional"])
def test_the_rounding_of_half_precision_is_no_difference(name: str, backend: str, dtype: Any) -> None:
    model = make(name, attn_implementation=backend).to(dtype)
    with capture(model, "qk") as cache:
        model(**inputs("left"))
    assert cache.n_layers == 4


def masked(name: str) -> torch.Tensor:
    causal = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    if name == "an edge cut out":
        causal[..., 6:, 3] = False
    elif name == "a prefix that sees itself":
        causal[..., :5, :5] = True
    elif name == "a mask for each head":
        causal = causal.repeat(1, 4, 1, 1)
        causal[:, 1, 8:, :4] = False
    return causal


@pytest.mark.parametrize("name", ["an edge cut out", "a prefix that sees itself", "a mask for each head"])
def test_a_pattern_is_kept_under_any_mask(name: str) -> None:
    mask = masked(name)
    model = llama(attn_implementation="sdpa")
    with capture(model, dtype="float32") as cache:
        model(IDS, attention_mask=mask)
    model.set_attn_implementation("eager")
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert_close(cache, model(IDS, attention_mask=additive, output_attentions=True).attentions)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_chosen_heads_under_any_mask_are_those_of_the_whole(dtype: Any) -> None:
    model = llama()
    with capture(model, dtype=dtype) as whole, capture(model, heads=[3, 0], dtype=dtype) as chosen:
        model(IDS, attention_mask=masked("an edge cut out"))
    for some, every in zip(dense(chosen), dense(whole), strict=True):
        np.testing.assert_array_equal(some, every[:, [3, 0]])
    assert {source.heads for source in chosen.sources if source} == {(3, 0)}


@pytest.mark.parametrize("store", ["pattern", "qk"])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.filterwarnings("ignore")  # transformers' advice about caches
def test_a_checkpointed_layer_that_runs_again_in_the_backward_pass_is_captured_once(
    store: Any, use_reentrant: bool
) -> None:
    model = llama().train()
    with capture(model, store, dtype="float32") as plain:
        model(IDS)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    with torch.enable_grad(), capture(model, store, dtype="float32") as cache:
        model(IDS, labels=IDS).loss.backward()
    assert_close(cache, dense(plain), within=0)


def test_a_forward_in_another_thread_is_neither_recorded_nor_hurt() -> None:
    model = llama()
    hurt: list[Exception] = []
    done = threading.Event()

    def forwards() -> None:
        try:
            with torch.no_grad():
                while not done.is_set():
                    model(IDS[:, :5])
        except ValueError as error:
            hurt.append(error)

    other = threading.Thread(target=forwards)
    other.start()
    try:
        for _ in range(10):
            with capture(model) as cache:
                model(IDS)
            assert cache.shapes == ((1, 4, LENGTH, LENGTH),) * 2
    finally:
        done.set()
        other.join()
    assert not hurt
