"""Merges the steps of a generation: the rows of each new token are put beneath those of the prompt.

A model that keeps its keys and values attends, step by step, from the prompt and then from one new token at a time.
For layer l, step 0 is [batch, head, S, S] and step i is [batch, head, 1, S + i]; together they are the causal pattern
of the whole text, [batch, head, S + n, S + n], with zeros to the right of each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from attncache.sources import Source
from attncache.ways_in.named import named_source

Array = npt.NDArray[Any]

_ADVICE = "run the model once over the whole text instead"


def is_step(entry: Any) -> bool:
    """Whether this is what all layers gave in one step, and not a pattern (which may be nested lists of numbers)."""
    if not isinstance(entry, list | tuple):
        return False
    return not entry or any(item is None or hasattr(item, "shape") for item in entry)


def merged_steps(steps: Sequence[Any]) -> Iterator[Source]:
    """One pattern per layer over prompt and answer, merged when its turn comes.

    Args:
        steps: one sequence per step, of one pattern per layer. From step to step the keys either grow by one for each
            new query (self-attention), or stay the same and are more than the queries of the first step: the keys of
            an encoder (cross-attention), or the slots of a static cache, of which the unused ones are left out.

    Returns:
        Patterns [batch, head, all queries, all keys] in the dtype of the steps.

    Raises:
        TypeError: a step is not a sequence, or holds something else than patterns.
        ValueError: steps differ in layers, batch, heads or dtype, or their keys do neither of the above.
    """
    for number, step in enumerate(steps):
        if not isinstance(step, list | tuple):
            kind = type(step).__name__
            raise TypeError(f"attentions[{number}] must be a tuple of layers, as attentions[0] is, got {kind}")
        if len(step) != len(steps[0]):
            raise ValueError(
                f"attentions[{number}] must have as many layers as attentions[0], {len(steps[0])}, got {len(step)}"
            )
    return (_merged_layer([step[layer] for step in steps], layer) for layer in range(len(steps[0])))


def _merged_layer(patterns: Sequence[Any], layer: int) -> Source:
    """The steps of one layer as one pattern."""
    names = [f"attentions[{step}][{layer}]" for step in range(len(patterns))]
    sources = [named_source(name, pattern) for name, pattern in zip(names, patterns, strict=True)]
    if len(sources) == 1:
        return sources[0]
    _check_alike(names, sources)
    parts = [source.array for source in sources]
    has_fixed_keys = parts[0].shape[3] > parts[0].shape[2] and all(part.shape[3] == parts[0].shape[3] for part in parts)
    if not has_fixed_keys:
        _check_growth(names, parts)
    merged = _stacked(parts)
    if has_fixed_keys and _is_causal(merged):
        merged = _used_slots(names[0], merged)
    return Source(merged, sources[0].dtype, is_writable=False)


def _check_alike(names: Sequence[str], sources: Sequence[Source]) -> None:
    """Same batch, heads and dtype in every step."""
    first = sources[0]
    for name, source in zip(names, sources, strict=True):
        expected, got = first.array.shape[:2], source.array.shape[:2]
        if got != expected:
            raise ValueError(
                f"{name} must have the batch and heads of the first step, {list(expected)}, got {list(got)}; the "
                f"steps of a beam search that changes its beams cannot be merged: {_ADVICE}"
            )
        if source.dtype != first.dtype:
            raise ValueError(f"{name} must have the dtype of the first step, {first.dtype}, got {source.dtype}")


def _check_growth(names: Sequence[str], parts: Sequence[Array]) -> None:
    """Every step sees the keys before it and one more for each of its own queries."""
    seq_k = parts[0].shape[3]
    for name, part in zip(names[1:], parts[1:], strict=True):
        seq_k += part.shape[2]
        if part.shape[3] != seq_k:
            raise ValueError(
                f"{name} must have {seq_k} keys, one more for each new query, got {part.shape[3]}; the steps of a "
                f"sliding-window cache, which forgets keys, cannot be merged: {_ADVICE}"
            )


def _stacked(parts: Sequence[Array]) -> Array:
    """All rows beneath each other, with zeros to the right (bfloat16 as uint16, whose 0 is 0.0)."""
    batch_size, n_heads = parts[0].shape[:2]
    merged = np.zeros((batch_size, n_heads, sum(part.shape[2] for part in parts), parts[-1].shape[3]), parts[0].dtype)
    row = 0
    for part in parts:
        _, _, seq_q, seq_k = part.shape
        merged[:, :, row : row + seq_q, :seq_k] = part
        row += seq_q
    return merged


def _is_causal(pattern: Array) -> bool:
    """Whether query i attends to none of the keys after i."""
    return not any(pattern[:, :, row, row + 1 :].any() for row in range(pattern.shape[2]))


def _used_slots(name: str, pattern: Array) -> Array:
    """The pattern of a static cache without the slots that no query has reached."""
    _, _, seq_q, seq_k = pattern.shape
    if seq_q > seq_k:
        raise ValueError(
            f"{name} must have a key for each of the {seq_q} queries, got {seq_k}; the steps of a sliding-window "
            f"cache, which forgets keys, cannot be merged: {_ADVICE}"
        )
    return np.ascontiguousarray(pattern[..., :seq_q])
