"""The patterns in what a Hugging Face model returns, or in any sequence or mapping of one pattern per layer."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from attncache.sources import Source
from attncache.ways_in.generation import is_step, merged_steps
from attncache.ways_in.named import FUSED, named_source

_KINDS = "attentions must be patterns, one per layer, as a sequence or as a mapping of layer numbers"
_OTHER_FIELDS = ("encoder_attentions", "decoder_attentions", "cross_attentions")


def attention_layers(attentions: Any) -> Iterator[Source]:
    """One pattern per layer, in the order of the layers.

    Args:
        attentions: as ``AttentionCache.from_attentions`` takes it.

    Returns:
        Patterns [batch, head, query, key], each read when its turn comes; of a generation's steps, one merged pattern
        per layer.

    Raises:
        As ``AttentionCache.from_attentions``.
    """
    attentions = _field_of(attentions)
    if isinstance(attentions, Mapping):
        return _mapped_layers(attentions)
    if isinstance(attentions, str | bytes) or not isinstance(attentions, Iterable):
        raise TypeError(f"{_KINDS}, got {type(attentions).__name__}")
    entries = list(attentions)
    if all(isinstance(entry, list | tuple) and not entry for entry in entries):  # a generation: one tuple per step
        raise ValueError(f"attentions is empty: the model ran with a fused attention such as SDPA; {FUSED}")
    if is_step(entries[0]):
        return merged_steps(entries)
    return (named_source(f"attentions[{layer}]", pattern) for layer, pattern in enumerate(entries))


def _field_of(attentions: Any) -> Any:
    """The attentions of a model's output, or what was given if it is not such an output."""
    if getattr(attentions, "beam_indices", None) is not None:
        raise ValueError(
            "attentions must be of one sequence per batch item, got a beam search, whose beams change places between "
            "steps; run the model once over the text it chose"
        )
    if hasattr(attentions, "attentions"):
        attentions = attentions.attentions
    else:
        fields = [name for name in _OTHER_FIELDS if getattr(attentions, name, None) is not None]
        if fields:
            raise ValueError(f"attentions must be one field of the output, got all of it; pass its {', '.join(fields)}")
    if attentions is None:
        raise ValueError(
            "attentions is None: the model was not asked for them; load it with attn_implementation='eager' and pass "
            "output_attentions=True, or use attncache.capture"
        )
    return attentions


def _mapped_layers(attentions: Mapping[Any, Any]) -> Iterator[Source]:
    """The patterns in the order of their layer numbers, none missing."""
    numbered = {_layer_number(key): pattern for key, pattern in attentions.items()}
    if not numbered:
        raise ValueError(f"{_KINDS}, got an empty mapping")
    missing = next((layer for layer in range(len(numbered)) if layer not in numbered), None)
    if missing is not None:
        raise ValueError(
            f"attentions must number its layers 0, 1, 2, .. without a gap, got no layer {missing} among "
            f"{sorted(numbered)}; to take some layers only, pass them as a list"
        )
    return (named_source(f"attentions[{layer}]", numbered[layer]) for layer in sorted(numbered))


def _layer_number(key: Any) -> int:
    if isinstance(key, bool) or not hasattr(key, "__index__"):
        raise TypeError(
            f"attentions must map layer numbers to patterns, got the key {key!r}; the cache of TransformerLens comes "
            "in through from_transformer_lens"
        )
    return operator.index(key)
