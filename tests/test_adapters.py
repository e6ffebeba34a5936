"""Patterns that other libraries hand out, as a cache: Hugging Face's tuples, arrays, plain mappings.

Covered: one pattern per layer and the steps of a generation (growing keys, an encoder's keys, the slots of a static
cache), as NumPy arrays of every dtype and as torch's; each error with its words. Values compare by equality.
Sizes: layers of [2, 3, 4, 4] unless said, answers of 3 tokens.
Not covered: sliding windows (test_generation.py), TransformerLens (test_transformer_lens.py), axes (test_axes.py).
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attncache import AttentionCache, LayerSource
from tests.support.patterns import DTYPES, Array, assert_same, make

BATCH, HEADS, PROMPT, ANSWER = 2, 3, 4, 3
TEXT = PROMPT + ANSWER
LAYERS = [make("causal", (BATCH, HEADS, PROMPT, PROMPT), "float32", layer) for layer in range(3)]


def whole_text(dtype: str = "float32") -> list[Array]:
    """The patterns of two layers over prompt and answer."""
    return [make("causal", (BATCH, HEADS, TEXT, TEXT), dtype, layer) for layer in range(2)]


def steps_of(layers: list[Array], prompt: int = PROMPT) -> tuple[tuple[Array, ...], ...]:
    """Those patterns as a generation hands them out: the prompt, then one row per token."""
    n_past = layers[0].shape[3] - layers[0].shape[2]
    first_rows = [0, *range(prompt, layers[0].shape[2] + 1)]
    return tuple(
        tuple(layer[:, :, first:end, : n_past + end] for layer in layers) for first, end in pairwise(first_rows)
    )


# One pattern per layer.


@pytest.mark.parametrize("kind", [tuple, list, iter, np.stack], ids=["tuple", "list", "iterator", "one array"])
def test_a_sequence_gives_one_layer_per_pattern(kind: Any) -> None:
    cache = AttentionCache.from_attentions(kind(LAYERS))
    assert_same(cache.patterns, tuple(LAYERS))
    assert cache.sources == (None,) * 3


def test_patterns_without_a_batch_become_a_batch_of_one() -> None:
    cache = AttentionCache.from_attentions([layer[1] for layer in LAYERS])
    assert_same(cache.patterns, tuple(layer[1:] for layer in LAYERS))


def test_layers_without_attention_are_left_out_and_the_others_keep_their_numbers() -> None:
    expected = (LayerSource(layer=1), LayerSource(layer=3))
    for attentions in ((None, LAYERS[0], None, LAYERS[1]), [(None, LAYERS[0], None, LAYERS[1])]):
        cache = AttentionCache.from_attentions(attentions)
        assert_same(cache.patterns, tuple(LAYERS[:2]))
        assert cache.sources == expected


def test_an_output_gives_its_attentions() -> None:
    output = SimpleNamespace(attentions=tuple(LAYERS), beam_indices=None)
    assert_same(AttentionCache.from_attentions(output).patterns, tuple(LAYERS))


def test_a_mapping_gives_its_layers_in_the_order_of_their_numbers() -> None:
    mapping = {2: LAYERS[2], np.int64(0): LAYERS[0], 1: LAYERS[1]}
    assert_same(AttentionCache.from_attentions(mapping).patterns, tuple(LAYERS))


def test_a_mapping_keeps_the_numbers_of_its_layers() -> None:
    cache = AttentionCache.from_attentions({5: LAYERS[1], 2: LAYERS[0], 7: None})
    assert_same(cache.patterns, tuple(LAYERS[:2]))
    assert cache.sources == (LayerSource(layer=2), LayerSource(layer=5))


@pytest.mark.parametrize("name", ["layer_{}", "encoder.layer.{}.attention.self", "blocks.{}.attn.hook_pattern", "{}"])
def test_names_that_differ_in_one_number_are_layers_in_its_order(name: str) -> None:
    numbers = (10, 9, 2)
    cache = AttentionCache.from_attentions({name.format(n): LAYERS[at] for at, n in enumerate(numbers)})
    assert_same(cache.patterns, tuple(LAYERS[::-1]))
    assert cache.sources == tuple(LayerSource(name.format(n), layer=n) for n in numbers[::-1])


def test_patterns_may_be_nested_lists() -> None:
    assert AttentionCache.from_attentions([[[[[1.0, 0.0], [0.5, 0.5]]]]]).shapes == ((1, 1, 2, 2),)


def test_dtype_index_and_tokens_are_those_of_the_cache(dtype: str) -> None:
    words = ("the", "cat", "sat", "down")
    cache = AttentionCache.from_attentions(LAYERS, dtype=dtype, index="eager", tokens=words)
    assert (cache.dtypes, cache.index, cache.tokens) == ((dtype,) * 3, "eager", words)


def test_a_subclass_gets_an_instance_of_itself() -> None:
    class Mine(AttentionCache):
        pass

    assert type(Mine.from_attentions(LAYERS)) is Mine
    assert type(Mine.from_transformer_lens({("pattern", 0): LAYERS[0]})) is Mine


# The steps of a generation.


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_steps_become_the_causal_pattern_of_prompt_and_answer(dtype: str) -> None:
    layers = whole_text() if dtype == "float64" else whole_text(dtype)
    steps = steps_of([layer.astype(np.float64) for layer in layers] if dtype == "float64" else layers)
    assert_same(AttentionCache.from_attentions(steps).patterns, tuple(layers))


def test_a_prompt_that_goes_on_from_kept_keys_stays_aligned_with_the_last_key() -> None:
    full = make("causal", (1, 2, 9, 9))
    last_rows = full[:, :, 4:]  # five queries, of nine keys
    steps = steps_of([last_rows], prompt=2)
    assert steps[0][0].shape == (1, 2, 2, 6)
    assert_same(AttentionCache.from_attentions(steps)[0], last_rows)


def test_cross_attention_steps_are_stacked_over_the_keys_of_the_encoder() -> None:
    full = make("soft", (1, 2, 4, 6))
    steps = tuple((full[:, :, row : row + 1],) for row in range(4))
    assert_same(AttentionCache.from_attentions(steps)[0], full)
    long = make("soft", (1, 2, 9, 6))
    assert_same(AttentionCache.from_attentions([[long[:, :, row : row + 1]] for row in range(9)])[0], long)


def test_the_unused_slots_of_a_static_cache_are_left_out() -> None:
    layers = whole_text()
    slots = [np.pad(layer, ((0, 0), (0, 0), (0, 0), (0, 5))) for layer in layers]
    steps = [tuple(slot[:, :, rows] for slot in slots) for rows in (slice(0, 4), slice(4, 5), slice(5, 6), slice(6, 7))]
    assert_same(AttentionCache.from_attentions(steps).patterns, tuple(layers))


def test_the_steps_may_change_afterwards() -> None:
    steps = steps_of([layer.copy() for layer in whole_text()])
    cache = AttentionCache.from_attentions(steps)
    for step in steps:
        for pattern in step:
            pattern[:] = 7
    assert_same(cache.patterns, tuple(whole_text()))


# What cannot be one pattern per layer.


def changed(step: int, layer: int, pattern: Any) -> list[list[Any]]:
    """The steps of a generation with another pattern at one place."""
    steps = [list(step) for step in steps_of(whole_text())]
    steps[step][layer] = pattern
    return steps


ROW = make("soft", (BATCH, HEADS, 1, 6))


@pytest.mark.parametrize(
    ("attentions", "error", "words"),
    [
        ((), ValueError, r"attentions is empty: .*fused attention such as SDPA; use attncache.capture.*='eager'"),
        (((), ()), ValueError, "attentions is empty"),
        (None, ValueError, r"attentions is None: .*output_attentions=True"),
        (SimpleNamespace(attentions=None), ValueError, "attentions is None"),
        (SimpleNamespace(attentions=()), ValueError, "attentions is empty"),
        (SimpleNamespace(cross_attentions=LAYERS), ValueError, "must be one field.*pass its cross_attentions"),
        (
            SimpleNamespace(attentions=steps_of(whole_text()), beam_indices=np.zeros((1, 3), int)),
            ValueError,
            "got a beam search",
        ),
        ((None, None), ValueError, r"attentions\[0\] must be a pattern, got None"),
        (((None, None), (None, None)), ValueError, r"attentions\[0\]\[0\] must be a pattern, got None"),
        (
            LAYERS[0],
            ValueError,
            r'axes must be given for an array of shape \[2, 3, 4, 4\].*axes="layer head query key"',
        ),
        (np.stack(LAYERS)[None], ValueError, r"axes must be given for an array of shape \[1, 3, 2, 3, 4, 4\]|axes"),
        ([LAYERS[0][0, 0]], ValueError, r"attentions\[0\]: a layer must be .* got shape \[4, 4\]; axes= names"),
        ([LAYERS[0], LAYERS[1][:1]], ValueError, r"attentions\[1\] must have as many batch items.*windows.*push"),
        ([LAYERS[0][None]], ValueError, r"attentions\[0\] must be.*shape \[1, 2, 3, 4, 4\].*no axis of all keys"),
        ([SimpleNamespace(attentions=LAYERS)] * 2, ValueError, "must be of one text, got several outputs.*map_runs"),
        ([LAYERS[0].astype(int)], TypeError, r"attentions\[0\]: pattern must hold float16.*got int64"),
        ("attentions", TypeError, "attentions must be patterns, one per layer.*got str"),
        (3, TypeError, "got int"),
        ({}, ValueError, "got an empty mapping"),
        ({-1: LAYERS[0]}, ValueError, "must number its layers from 0, got -1"),
        ({0: None, 1: None}, ValueError, r"attentions\[0\] must be a pattern, got None"),
        ({"a": LAYERS[0], "b": LAYERS[0]}, ValueError, "differ in one number, the layer's, to patterns, got 'a', 'b'"),
        ({"a1b1": LAYERS[0], "a2b2": LAYERS[0]}, ValueError, "got 'a1b1', 'a2b2'"),
        ({"hook_q0": LAYERS[0], "hook_k": LAYERS[0]}, ValueError, "got 'hook_q0', .*from_transformer_lens"),
        ({0: LAYERS[0], "layer_1": LAYERS[0]}, TypeError, "got the key 'layer_1'"),
        ({True: LAYERS[0]}, TypeError, "got the key True"),
        (changed(2, 1, ROW[:1]), ValueError, r"attentions\[2\]\[1\] must have the batch.*\[2, 3\], got \[1, 3\].*beam"),
        (changed(2, 1, ROW[:, :1]), ValueError, r"attentions\[2\]\[1\] must have the batch.*got \[2, 1\]"),
        (changed(2, 1, ROW[..., :4]), ValueError, r"attentions\[2\]\[1\] must have 6 keys.*in a window.*got 4"),
        (changed(1, 0, ROW), ValueError, r"attentions\[1\]\[0\] must have 5 keys.*got 6"),
        ([LAYERS, LAYERS], ValueError, "whole patterns over 4, 4 tokens .*these look like several texts.*map_runs"),
        (changed(2, 0, ROW.astype(np.float16)), ValueError, r"attentions\[2\]\[0\] must have the dtype.*got float16"),
        (changed(2, 0, None), ValueError, r"attentions\[2\]\[0\] must be a pattern, got None"),
        ((*steps_of(whole_text()), (ROW,)), ValueError, r"attentions\[4\] must have as many layers.*2, got 1"),
        ((*steps_of(whole_text()), ROW), TypeError, r"attentions\[4\] must be a tuple of layers.*got ndarray"),
    ],
)
def test_what_is_not_one_pattern_per_layer_is_refused_with_the_reason(attentions: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        AttentionCache.from_attentions(attentions)


def test_the_slots_of_a_sliding_window_are_refused() -> None:
    full = make("causal", (1, 1, 6, 6))
    steps = [(np.pad(full[:, :, :2, :2], ((0, 0), (0, 0), (0, 0), (0, 2))),)]
    steps += [(np.pad(full[:, :, row : row + 1, : row + 1], ((0, 0),) * 3 + ((0, 3 - row),)),) for row in (2, 3)]
    steps += [(full[:, :, row : row + 1, row - 3 : row + 1],) for row in (4, 5)]
    with pytest.raises(ValueError, match=r"must have a key for each of the 6 queries, got 4.*sliding-window"):
        AttentionCache.from_attentions(steps)


def test_tokens_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens must be one string for each key of layer 0, seq_k=4, got 1"):
        AttentionCache.from_attentions(LAYERS, tokens=["the"])
    with pytest.raises(ValueError, match="tokens must be one string"):
        AttentionCache.from_transformer_lens({("pattern", 0): LAYERS[0]}, tokens=["the"])


# TransformerLens.


# Torch, where it is installed.


@pytest.mark.filterwarnings("default")
def test_a_beam_search_and_a_fused_attention_are_refused() -> None:
    torch = pytest.importorskip("torch", reason="needs torch and transformers")
    pytest.importorskip("transformers", reason="needs torch and transformers")
    from tests.support.capturing import llama

    model, text = llama(attn_implementation="eager"), torch.arange(3, 3 + PROMPT)[None]
    options = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_attentions": True}
    with pytest.raises(ValueError, match="got a beam search"):
        AttentionCache.from_attentions(model.generate(text, **options, num_beams=3))
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="attentions is empty"):
        AttentionCache.from_attentions(model.generate(text, **options))
    with torch.no_grad(), pytest.raises(ValueError, match="attentions is empty"):
        AttentionCache.from_attentions(model(text, output_attentions=True))


def test_tensors_that_require_grad_or_lie_on_another_device_are_copied() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")

    class Elsewhere(torch.Tensor):  # type: ignore[misc, name-defined]
        device = torch.device("mps")

        def cpu(self) -> Any:
            return self.as_subclass(torch.Tensor)

    layers = [torch.from_numpy(layer.copy()).requires_grad_().as_subclass(Elsewhere) for layer in LAYERS]
    assert layers[0].requires_grad
    steps = [[layer[:, :, :3, :3] for layer in layers], [layer[:, :, 3:] for layer in layers]]
    hooks = {("pattern", number): layer for number, layer in enumerate(layers)}
    with pytest.raises(ValueError, match="on device mps"):
        AttentionCache().push(layers[0])
    for cache in (
        AttentionCache.from_attentions(layers),
        AttentionCache.from_attentions(steps),
        AttentionCache.from_attentions(torch.from_numpy(np.stack(LAYERS)).as_subclass(Elsewhere)),
        AttentionCache.from_transformer_lens(hooks),
    ):
        assert_same(cache.patterns, tuple(LAYERS))


def test_steps_of_torch_bfloat16_keep_their_bits() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    (full,) = whole_text("bfloat16")[:1]
    bits = torch.from_numpy(full.view(np.int16)).view(torch.bfloat16)
    cache = AttentionCache.from_attentions([[bits[:, :, :4, :4]], [bits[:, :, 4:]]])
    assert cache.dtypes == ("bfloat16",)
    assert_same(cache[0].view(ml_dtypes.bfloat16), full)
