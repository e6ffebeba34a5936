"""Captured generations: one causal pattern over prompt and answer, whatever cache a model keeps its keys in.

Sizes: 4 heads, 12 tokens, 2 texts. Tolerance: 1e-5 between two float32 computations of one weight.
Not covered: caches that grow, of every family (test_sweep.py); the steps of a generation handed in (test_generation.py).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from tests.support.capturing import IDS, assert_close, dense, gemma3, llama

pytest.importorskip("torch", reason="capture needs torch")
pytest.importorskip("transformers", reason="capture needs transformers")

import torch
import transformers
from transformers import DynamicCache

from attncache import AttentionCache, capture, progress
from tests.support.capturing import BATCH, CAUSAL, LENGTH, N_HEADS, N_LAYERS, SIZES, go_on, inputs, make

pytestmark = pytest.mark.usefixtures("without_gradients")


def generate(model: Any, padding: str, **options: Any) -> torch.Tensor:
    wanted = {"max_new_tokens": 8, "do_sample": False, "disable_compile": True, **options}
    tokens = model.generate(**inputs(padding), **wanted)
    assert isinstance(tokens, torch.Tensor)
    return tokens


@pytest.mark.parametrize("store", ["pattern", "qk"])
@pytest.mark.parametrize("name", CAUSAL)
def test_generation_with_a_static_cache_is_one_causal_pattern_over_prompt_and_answer(name: str, store: Any) -> None:
    """Against one forward over all tokens, whose rounding differs: weights to 1e-5, at scores of a few units."""
    model = make(name, attn_implementation="eager")
    plain = generate(model, "none", cache_implementation="static")
    with capture(model, store, dtype="float32") as cache:
        tokens = generate(model, "none", cache_implementation="static")
    assert torch.equal(plain, tokens)
    assert_close(cache, model(tokens[:, :-1], output_attentions=True).attentions)  # the last token is never read


def test_a_prompt_read_in_chunks_is_one_pattern() -> None:
    model = make("mistral: window")
    ids = inputs()["input_ids"]
    past = DynamicCache(config=model.config)
    with capture(model, dtype="float32") as cache:
        go_on(model, ids[:, :4], past)
        go_on(model, ids[:, 4:], past)
    with capture(model, dtype="float32") as whole:
        model(ids)
    for pattern, other in zip(dense(cache), dense(whole), strict=True):
        assert np.abs(pattern - other).max() <= 1e-5


@pytest.mark.parametrize("store", ["pattern", "qk"])
def test_a_capture_that_begins_in_the_middle_of_a_text_has_more_keys_than_queries(store: Any) -> None:
    model = make("llama: grouped heads")
    ids = inputs()["input_ids"]
    past = DynamicCache(config=model.config)
    go_on(model, ids[:, :7], past)
    with capture(model, store, dtype="float32") as cache:
        go_on(model, ids[:, 7:], past)
    with capture(model, dtype="float32") as whole:
        model(ids)
    for pattern, other in zip(dense(cache), dense(whole), strict=True):
        assert pattern.shape == (BATCH, N_HEADS, LENGTH - 7, LENGTH)
        assert np.abs(pattern - other[:, :, 7:]).max() <= 1e-5


@pytest.mark.parametrize("n_new", [2, 3, 8])
@pytest.mark.parametrize("layers", [None, 0])
def test_beam_search_of_any_length_is_refused_because_it_reorders_the_keys(layers: Any, n_new: int) -> None:
    model = make("llama: grouped heads")
    with pytest.raises(ValueError, match="was reordered, as beam search does"), capture(model, layers=layers):
        generate(model, "none", num_beams=3, max_new_tokens=n_new)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (lambda model, ids: model(ids), "got 12 more queries over 12 keys that do not continue the 12 before"),
        (lambda model, ids: model(ids[:1]), "a layer must keep its batch size, got 1 after 2"),
        (lambda model, ids: model.generate(ids, max_new_tokens=2), "that do not continue the 12 before"),
        (
            lambda model, ids: model.generate(
                ids + 1, max_new_tokens=20, cache_implementation="static", disable_compile=True
            ),
            "before position 12",
        ),
    ],
    ids=["the same text", "another batch", "generate", "a static cache"],
)
def test_a_second_text_needs_a_second_capture(second: Any, words: str) -> None:
    model = make("llama: grouped heads")
    with capture(model) as cache:
        model(**inputs())
        with pytest.raises(ValueError, match=rf"layer 0 \(model\.layers\.0\.self_attn\) cannot be captured: .*{words}"):
            second(model, inputs()["input_ids"])
    assert cache.shapes == ((BATCH, N_HEADS, LENGTH, LENGTH),) * N_LAYERS


def test_tokens_taken_back_are_refused() -> None:
    model = make("llama: grouped heads")
    ids = inputs()["input_ids"]
    past = DynamicCache(config=model.config)
    with capture(model):
        go_on(model, ids, past)
        past.crop(-2)
        with pytest.raises(ValueError, match="got 1 more queries over 11 keys that do not continue the 12 before"):
            go_on(model, ids[:, :1], past)


def test_generation_without_a_cache_says_to_use_one() -> None:
    model = make("llama: grouped heads")
    with pytest.raises(ValueError, match="generate with use_cache=True"), capture(model):
        generate(model, "none", use_cache=False)


@pytest.mark.parametrize("has_tqdm", [True, False], ids=["tqdm", "a line"])
def test_progress_counts_layers_on_stderr(
    has_tqdm: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    if not has_tqdm:
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    model = make("llama: grouped heads")
    with capture(model, progress=True):
        generate(model, "none")
    output, errors = capsys.readouterr()
    assert output == ""
    assert "capturing" in errors
    assert "joining" in errors
    assert "4/4" in errors if has_tqdm else "layer 4 of 4" in errors
    assert errors.endswith("\n")


def test_a_callable_is_told_of_each_layer(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, int]] = []
    model = make("llama: grouped heads")
    with capture(model, progress=lambda *at: told.append(at)) as cache:
        model(**inputs())
    assert told == [(layer + 1, N_LAYERS) for layer in range(N_LAYERS)]
    assert cache.n_layers == N_LAYERS
    assert capsys.readouterr().err == ""


def test_short_work_and_no_progress_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    model = make("llama: grouped heads")
    for shown in (True, False):
        with capture(model, progress=shown):
            model(**inputs())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("store", ["pattern", "qk"])
@pytest.mark.parametrize("n_first", [1, 3])
def test_a_window_that_moved_before_the_capture_began_keeps_its_place(store: Any, n_first: int) -> None:
    model = gemma3(6)
    past = DynamicCache(config=model.config)
    go_on(model, IDS[:, : LENGTH - n_first - 2], past)
    with capture(model, store, dtype="float32") as cache:
        go_on(model, IDS[:, LENGTH - n_first - 2 : LENGTH - 2], past)
        go_on(model, IDS[:, LENGTH - 2 : LENGTH - 1], past)
        go_on(model, IDS[:, LENGTH - 1 :], past)
    whole = model(IDS, output_attentions=True).attentions
    assert_close(cache, [weights[:, :, LENGTH - n_first - 2 :] for weights in whole])


@pytest.mark.parametrize("n_first", [1, 3])
def test_a_bidirectional_start_that_goes_on_is_kept_as_a_pattern(n_first: int) -> None:
    torch.manual_seed(0)
    options = {"use_cache": True, "attn_implementation": "eager"}
    model = transformers.BertGenerationDecoder(transformers.BertGenerationConfig(**SIZES, **options)).eval()
    past = DynamicCache(config=model.config)
    with capture(model, dtype="float32") as cache:
        pieces = [IDS[:, :n_first], *(IDS[:, at : at + 1] for at in range(n_first, 5))]
        steps = [go_on(model, piece, past, output_attentions=True).attentions for piece in pieces]
    assert_close(cache, list(AttentionCache.from_attentions(steps)))


class Rounding(DynamicCache):
    """Keeps keys and values with fewer bits than it was given, as a quantized cache does."""

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        key, value = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return (key, value) if key.shape[2] <= LENGTH else ((key * 16).round() / 16, (value * 16).round() / 16)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the argument has another name in newer transformers
def test_a_cache_that_rounds_its_keys_gives_patterns_and_no_factored_layers() -> None:
    model = llama()
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}

    def past() -> dict[str, Any]:
        return {"past_key_values": Rounding(config=model.config)}

    with capture(model, dtype="float32") as cache:
        ids = model.generate(IDS, **past(), **options)
    assert ids.shape == (1, LENGTH + 4)
    assert cache.shapes == ((1, 4, LENGTH + 3, LENGTH + 3),) * 2
    model.set_attn_implementation("eager")
    steps = model.generate(IDS, **past(), **options, return_dict_in_generate=True, output_attentions=True)
    assert_close(cache, list(AttentionCache.from_attentions(steps)))
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="cache changed keys that it had kept"), capture(model, "qk"):
        model.generate(IDS, **past(), **options)
