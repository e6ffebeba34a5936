"""The steps of ``generate`` as one pattern: where the keys are that a cache of a model kept or forgot.

Covered: sliding windows of every length, begun with the text or going on from kept keys, in caches that grow and in
those of a fixed number of slots; steps that hold all rows again; keys of an encoder; several texts taken for steps; what
cannot be known and is refused. The expected pattern is the whole one that the steps were cut from, by equality; tiny
models of transformers against one forward over the same text, within 2^-18.
Sizes: two heads, texts of up to 14 tokens.
Not covered: steps that only grow, and wrong kinds (tests/test_adapters.py).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, LayerSource
from tests.support.patterns import DTYPES, Array, assert_same, make

TEXT = 11


def windowed(window: int, length: int = TEXT, dtype: str = "float32") -> Array:
    """A causal pattern whose queries see the last ``window`` keys."""
    pattern = make("causal", (1, 2, length, length), dtype, window)
    return pattern * np.tri(length, dtype=pattern.dtype) * np.tri(length, k=window - 1, dtype=pattern.dtype).T


def starts_of(n_past: int, prompt: int, length: int = TEXT) -> list[tuple[int, int]]:
    """The rows of each step: the prompt, then one by one."""
    first = n_past + prompt
    return [(n_past, first), *((row, row + 1) for row in range(first, length))]


def slid(pattern: Array, window: int, rows: tuple[int, int], *, is_first: bool) -> Array:
    """What a layer gives whose cache keeps window - 1 keys, besides those of the step; a first step has all of its own."""
    begin, end = rows
    kept = 0 if is_first and begin == 0 else max(0, begin - (window - 1))
    return pattern[:, :, begin:end, kept:end]


def steps_of(pattern: Array, window: int, n_past: int, prompt: int) -> list[Array]:
    rows = starts_of(n_past, prompt, pattern.shape[2])
    return [slid(pattern, window, step, is_first=number == 0) for number, step in enumerate(rows)]


def output_of(*layers: list[Array], n_read: int = TEXT) -> Any:
    """An output of generate, which has read all tokens but the last of its sequences."""
    return SimpleNamespace(attentions=tuple(zip(*layers, strict=True)), sequences=np.zeros((1, n_read + 1), int))


@pytest.mark.parametrize("window", range(2, TEXT + 2))
@pytest.mark.parametrize("prompt", [1, 2, 5, TEXT - 1])
def test_a_sliding_window_begun_with_the_text_has_its_keys_where_they_are(window: int, prompt: int) -> None:
    pattern = windowed(window)
    steps = [[part] for part in steps_of(pattern, window, 0, prompt)]
    assert_same(AttentionCache.from_attentions(steps)[0], pattern)


@pytest.mark.parametrize("window", range(2, TEXT + 1))
@pytest.mark.parametrize(("n_past", "prompt"), [(1, 1), (3, 1), (8, 1), (3, 2), (3, 5), (9, 2), (10, 1)])
def test_a_window_that_goes_on_from_kept_keys_is_placed_by_the_sequences(window: int, n_past: int, prompt: int) -> None:
    pattern = windowed(window)
    steps = steps_of(pattern, window, n_past, prompt)
    assert_same(AttentionCache.from_attentions(output_of(steps))[0], pattern[:, :, n_past:])


@pytest.mark.parametrize("window", [2, 4, 8])
@pytest.mark.parametrize(("n_past", "prompt"), [(3, 1), (6, 1), (6, 2)])
def test_a_window_beside_a_layer_that_keeps_all_keys_is_placed_by_it(window: int, n_past: int, prompt: int) -> None:
    patterns = windowed(window), windowed(TEXT)
    steps = zip(
        *(steps_of(each, at, n_past, prompt) for each, at in zip(patterns, (window, TEXT), strict=True)), strict=True
    )
    cache = AttentionCache.from_attentions(list(steps))
    assert_same(cache.patterns, tuple(each[:, :, n_past:] for each in patterns))


@pytest.mark.parametrize("slots", [4, 7, 10])
@pytest.mark.parametrize("prompt", [1, 3, 6, 9])
def test_the_slots_of_a_sliding_window_are_used_up_and_then_move(slots: int, prompt: int) -> None:
    pattern = windowed(slots)

    def part(begin: int, end: int) -> Array:
        if end <= slots:
            return np.pad(pattern[:, :, begin:end, :end], ((0, 0), (0, 0), (0, 0), (0, slots - end)))
        return slid(pattern, slots, (begin, end), is_first=begin == 0)

    steps = [part(*rows) for rows in starts_of(0, prompt)]
    assert_same(AttentionCache.from_attentions(output_of(steps))[0], pattern)


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_steps_that_hold_all_rows_again_are_the_last_of_them(dtype: str) -> None:
    pattern = windowed(4).astype("float64") if dtype == "float64" else windowed(4, dtype=dtype)
    steps = [[pattern[:, :, :length, :length]] for length in range(5, TEXT + 1)]
    assert_same(AttentionCache.from_attentions(steps, dtype=None)[0], pattern.astype(DTYPES.get(dtype, np.float32)))


@pytest.mark.parametrize("lengths", [(5, 8), (8, 5), (6, 6)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_texts_are_not_taken_for_steps(lengths: tuple[int, int], dtype: str) -> None:
    texts = [[make("causal", (1, 2, length, length), dtype, length)] for length in lengths]
    with pytest.raises(ValueError, match=r"these look like several texts; make one cache for each, .*map_runs"):
        AttentionCache.from_attentions(texts)


def test_two_streams_of_each_layer_are_not_taken_for_steps() -> None:
    layers = [(windowed(3), windowed(4)), (windowed(5), windowed(6))]
    with pytest.raises(ValueError, match=r"of two streams of each layer \(XLNet\), pass \[layer\[0\] for layer in"):
        AttentionCache.from_attentions(layers)


@pytest.mark.parametrize("prompt", [1, 3])
def test_the_keys_of_an_encoder_may_be_as_many_as_the_first_queries(prompt: int) -> None:
    pattern = make("soft", (1, 2, 7, 3))
    steps = [[pattern[:, :, :prompt]], *([pattern[:, :, row : row + 1]] for row in range(prompt, 7))]
    assert_same(AttentionCache.from_attentions(steps)[0], pattern)


def test_cross_attention_among_layers_that_grow_keeps_the_keys_of_its_encoder() -> None:
    own, cross = windowed(TEXT), make("soft", (1, 2, TEXT, 20))
    steps = [[own[:, :, begin:end, :end], cross[:, :, begin:end]] for begin, end in starts_of(0, 4)]
    assert_same(AttentionCache.from_attentions(steps).patterns, (own, cross))


def test_layers_without_attention_are_left_out_of_all_steps() -> None:
    pattern = windowed(TEXT)
    steps = [(None, pattern[:, :, begin:end, :end]) for begin, end in starts_of(0, 4)]
    cache = AttentionCache.from_attentions(steps)
    assert_same(cache.patterns, (pattern,))
    assert cache.sources == (LayerSource(layer=1),)
    with pytest.raises(ValueError, match=r"attentions\[1\]\[1\] must be a pattern, got None"):
        AttentionCache.from_attentions([*steps[:1], (None, None), *steps[2:]])


def test_steps_that_do_not_show_where_their_keys_are_are_refused() -> None:
    pattern = windowed(4)
    parts = steps_of(pattern, 4, 5, 3)
    with pytest.raises(ValueError, match="where the keys are does not show; pass the output of generate itself"):
        AttentionCache.from_attentions([[part] for part in parts])
    one_step = [[pattern[:, :, -1:, -4:], windowed(TEXT)[:, :, -1:]]]
    with pytest.raises(ValueError, match=r"layers of \[4, 11\] keys in one step; pass the output of generate"):
        AttentionCache.from_attentions(one_step)
    output = SimpleNamespace(attentions=one_step, sequences=np.zeros((1, TEXT + 1), int))
    assert_same(AttentionCache.from_attentions(output)[0], pattern[:, :, -1:])


def test_windows_of_changing_lengths_are_refused() -> None:
    pattern = windowed(TEXT)
    parts = [pattern[:, :, :4, :4], pattern[:, :, 4:5, 1:5], pattern[:, :, 5:6, 3:6]]
    with pytest.raises(ValueError, match=r"attentions\[1\]\[0\] must have 5 keys.*a window that stays the same, got 4"):
        AttentionCache.from_attentions([[part] for part in parts])


def test_the_steps_of_a_generation_take_no_axes() -> None:
    with pytest.raises(ValueError, match="axes must be None for the steps of a generation"):
        AttentionCache.from_attentions([[windowed(3)], [windowed(3)]], axes="batch head query key")


# Tiny models.


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("way", ["dynamic", "static", "prefix", "no cache"])
@pytest.mark.parametrize("prompt", [5, 12])
def test_a_generation_with_sliding_windows_is_one_run_over_its_text(way: str, prompt: int) -> None:
    torch = pytest.importorskip("torch", reason="needs torch and transformers")
    pytest.importorskip("transformers", reason="needs torch and transformers")
    from tests.support.capturing import gemma3

    model = gemma3(8)
    text = torch.arange(3, 3 + prompt)[None]
    options: dict[str, Any] = {"cache_implementation": way} if way in ("dynamic", "static") else {}
    if way == "no cache":
        options["use_cache"] = False
    n_past = prompt - 1 if way == "prefix" else 0
    with torch.no_grad():
        if n_past:
            options["past_key_values"] = model(text[:, :n_past], use_cache=True).past_key_values
        output = model.generate(
            text, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_attentions=True, **options
        )
        whole = model(output.sequences[:, :-1], output_attentions=True).attentions
    cache = AttentionCache.from_attentions(output)
    assert cache.shapes == ((1, 4, prompt + 5 - n_past, prompt + 5),) * 2
    for pattern, expected in zip(cache, whole, strict=True):
        np.testing.assert_allclose(pattern, expected.numpy()[:, :, n_past:], rtol=0, atol=2**-18)
