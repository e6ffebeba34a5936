"""Merges the steps of a generation: the rows of each new token are put beneath those of the prompt.

A model that keeps its keys and values attends, step by step, from the prompt and then from one new token at a time.
For layer l, step 0 is [batch, head, S, S] and step i is [batch, head, 1, S + i]; together they are the causal pattern
of the whole text, [batch, head, S + n, S + n], with zeros to the right of each row. A layer that forgets keys gives the
last ones alone, which are put where they are in the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from attncache.adapters.named import FUSED, LayerPattern, named_array
from attncache.adapters.placing import Array, are_nested, grows, is_causal, placed, sizes_of, stacked
from attncache.array_input import ArrayInput
from attncache.layer_source import LayerSource

_ADVICE = "run the model once over the whole text instead"
_TEXTS = (
    "attentions must be the steps of one generation if it is a sequence of sequences, got {}: these look like several "
    "texts; make one cache for each, as attncache.map_runs does for caches in files"
)


def is_step(entry: Any) -> bool:
    """Whether this is what all layers gave in one step, and not a pattern (which may be nested lists of numbers)."""
    if not isinstance(entry, list | tuple):
        return False
    return not entry or any(item is None or hasattr(item, "shape") for item in entry)


def merged_steps(steps: Sequence[Any], n_read: int | None = None) -> Iterator[LayerPattern]:
    """One pattern per layer over prompt and answer, merged when its turn comes.

    Args:
        steps: one sequence per step, of one pattern per layer, None for a layer without attention. Each step has the
            rows of new tokens, over all keys of the text so far (the slots of a static cache that are not yet used are
            left out) or the last of them; or over the keys of an encoder, which stay the same; or each step has all
            rows again, of a model that keeps no keys.
        n_read: how many tokens the model has read in the end, kept ones included; None where that is not known.

    Returns:
        Patterns [batch, head, all queries, all keys] in the dtype of the steps; where a layer has none, the others
        carry their numbers.

    Raises:
        TypeError: a step is not a sequence, or holds something else than patterns.
        ValueError: steps differ in layers, batch, heads or dtype; they are of several texts; or their keys do none of
            the above, or do not show where in the text they are.
    """
    _check_layers(steps)
    numbers = [layer for layer in range(len(steps[0])) if any(step[layer] is not None for step in steps)]
    if not numbers:
        raise ValueError(
            f"attentions[0][0] must be a pattern, got None, and so are all others: the model computed them in a fused "
            f"kernel such as SDPA, or has no attention; {FUSED}"
        )
    sizes = [sizes_of([step[layer] for step in steps]) for layer in numbers]
    ends = _text_ends(sizes, n_read)
    is_whole = len(numbers) == len(steps[0])
    for layer in numbers:
        source = None if is_whole else LayerSource(layer=layer)
        yield LayerPattern(_merged_layer([step[layer] for step in steps], layer, ends), source)


def _check_layers(steps: Sequence[Any]) -> None:
    """As many layers in every step."""
    for number, step in enumerate(steps):
        if not isinstance(step, list | tuple):
            kind = type(step).__name__
            raise TypeError(f"attentions[{number}] must be a tuple of layers, as attentions[0] is, got {kind}")
        if len(step) != len(steps[0]):
            raise ValueError(
                f"attentions[{number}] must have as many layers as attentions[0], {len(steps[0])}, got {len(step)}; the "
                "stages of an image model come in one by one"
            )


def _text_ends(sizes: Sequence[Sequence[tuple[int, int]]], n_read: int | None) -> list[int] | None:
    """How many keys the text has after each step, from a layer that keeps them all, or from what was read in all.

    Raises:
        ValueError: there is one step, whose layers differ in how much of the text they see.
    """
    for layer in sizes:
        if len(layer) > 1 and grows(layer):
            return [n_keys for _, n_keys in layer]
    rows = [n_rows for n_rows, _ in sizes[0]]
    if n_read is not None and n_read >= sum(rows):
        return list(accumulate(rows, initial=n_read - sum(rows)))[1:]
    last = {layer[-1] for layer in sizes}
    if len(sizes[0]) == 1 and len(last) > 1 and any(n_keys > n_rows for n_rows, n_keys in last):
        raise ValueError(
            f"attentions must show where its keys are in the text, got layers of {sorted(n for _, n in last)} keys in "
            "one step; pass the output of generate itself, whose sequences show it"
        )
    return None


def _merged_layer(patterns: Sequence[Any], layer: int, ends: Sequence[int] | None) -> ArrayInput:
    """The steps of one layer as one pattern."""
    names = [f"attentions[{step}][{layer}]" for step in range(len(patterns))]
    given = [named_array(name, pattern) for name, pattern in zip(names, patterns, strict=True)]
    _check_alike(names, given)
    pieces = [each.array for each in given]
    sizes = sizes_of(pieces)
    if len(pieces) == 1 and (ends is None or ends[0] == sizes[0][1]):
        return given[0]
    if len(pieces) > 1 and all(n_rows == n_keys for n_rows, n_keys in sizes):
        return _last_of_whole(given)
    merged = stacked(pieces) if len(pieces) > 1 and grows(sizes) else _merged(names, pieces, ends)
    return ArrayInput(merged, given[0].dtype, is_writable=False)


def _merged(names: Sequence[str], pieces: Sequence[Array], ends: Sequence[int] | None) -> Array:
    """Steps whose keys are not simply all of the text so far."""
    sizes = sizes_of(pieces)
    if ends is None and sizes[0][0] == sizes[0][1] and is_causal(pieces[0]):  # begun with the text
        ends = list(accumulate(n_rows for n_rows, _ in sizes))
    in_text = None if ends is None else placed(pieces, ends)
    if in_text is not None:
        return in_text
    if len({n_keys for _, n_keys in sizes}) > 1:
        raise ValueError(_wrong_keys(names, sizes, ends))
    merged = stacked(pieces)  # of an encoder, or of the slots of a static cache
    if ends is not None or not is_causal(merged):
        return merged
    seq_q, seq_k = merged.shape[2:]
    if seq_q > seq_k:
        raise ValueError(
            f"{names[0]} must have a key for each of the {seq_q} queries, got {seq_k}: a sliding-window cache forgets "
            f"keys, and its steps do not show which; pass the output of generate itself, or {_ADVICE}"
        )
    return np.ascontiguousarray(merged[..., :seq_q])


def _check_alike(names: Sequence[str], given: Sequence[ArrayInput]) -> None:
    """Same batch, heads and dtype in every step."""
    first = given[0]
    for name, each in zip(names, given, strict=True):
        expected, got = first.array.shape[:2], each.array.shape[:2]
        if got != expected:
            raise ValueError(
                f"{name} must have the batch and heads of the first step, {list(expected)}, got {list(got)}; the "
                "steps of a beam search that changes its beams cannot be merged, and several texts or the stages of an "
                f"image model are no steps: {_ADVICE}"
            )
        if each.dtype != first.dtype:
            raise ValueError(f"{name} must have the dtype of the first step, {first.dtype}, got {each.dtype}")


def _last_of_whole(given: Sequence[ArrayInput]) -> ArrayInput:
    """The last of steps that hold all rows each time, if it holds those before it."""
    if not are_nested([each.array for each in given], given[0].dtype):
        lengths = ", ".join(str(each.array.shape[2]) for each in given[:4])
        streams = "; of two streams of each layer (XLNet), pass [layer[0] for layer in attentions]"
        raise ValueError(
            _TEXTS.format(f"whole patterns over {lengths} tokens that do not continue each other")
            + (streams if len({each.array.shape for each in given}) == 1 else "")
        )
    return given[-1]


def _wrong_keys(names: Sequence[str], sizes: Sequence[tuple[int, int]], ends: Sequence[int] | None) -> str:
    """Why steps of changing numbers of keys cannot be placed."""
    if ends is None:
        return (
            f"{names[0]} must begin with the text, or be of a model that keeps all keys, got {sizes[0][0]} queries of "
            f"{sizes[0][1]} keys: where the keys are does not show; pass the output of generate itself, or {_ADVICE}"
        )
    wrong = next((i for i, ((_, n_keys), end) in enumerate(zip(sizes, ends, strict=True)) if n_keys != end), 0)
    return (
        f"{names[wrong]} must have {ends[wrong]} keys, one more for each new query, or the last of them in a window that "
        f"stays the same, got {sizes[wrong][1]}: {_ADVICE}"
    )
