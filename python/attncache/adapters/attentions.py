"""The patterns in what a Hugging Face model returns, or in any sequence or mapping of one pattern per layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from attncache.adapters.arranged import is_one_array, layers_of_array, layers_of_arrays
from attncache.adapters.generation import is_step, merged_steps
from attncache.adapters.named import FUSED, LayerPattern, named_array
from attncache.adapters.numbering import layer_numbers
from attncache.adapters.offsets import check_are_keys, of_offsets
from attncache.axes import Axes
from attncache.layer_source import LayerSource

_KINDS = "attentions must be patterns, one per layer, as a sequence or as a mapping of layer numbers or names"
_OTHER_FIELDS = ("encoder_attentions", "decoder_attentions", "cross_attentions")


def attention_layers(attentions: Any, axes: Axes | None = None) -> Iterator[LayerPattern]:
    """One pattern per layer, in the order of the layers.

    Args:
        attentions: as ``AttentionCache.from_attentions`` takes it.
        axes: the names of the axes of each array.

    Returns:
        Patterns [batch, head, query, key], each read when its turn comes; of a generation's steps, one merged pattern
        per layer. A layer has its number where not all layers have a pattern, or where a mapping names it.

    Raises:
        As ``AttentionCache.from_attentions``.
    """
    n_read = _n_read(attentions)
    attentions, output = _field_of(attentions), attentions
    if is_one_array(attentions):
        return map(LayerPattern, layers_of_array(attentions, axes))
    if hasattr(attentions, "keys") and hasattr(attentions, "__getitem__"):
        return _mapped_layers(attentions, axes)
    if isinstance(attentions, str | bytes) or not isinstance(attentions, Iterable):
        raise TypeError(f"{_KINDS}, got {type(attentions).__name__}")
    entries = list(attentions)
    if all(isinstance(entry, list | tuple) and not entry for entry in entries):  # a generation: one tuple per step
        raise ValueError(f"attentions is empty: the model ran with a fused attention such as SDPA; {FUSED}")
    if any(hasattr(entry, "attentions") for entry in entries):
        raise ValueError(
            "attentions must be of one text, got several outputs; make one cache for each, as attncache.map_runs does "
            "for caches in files"
        )
    if is_step(entries[0]):
        if axes is not None:
            raise ValueError("axes must be None for the steps of a generation, which are [batch, head, query, key]")
        return merged_steps(entries, n_read)
    return _listed_layers(entries, axes, output)


def _field_of(attentions: Any) -> Any:
    """The attentions of a model's output, or what was given if it is not such an output."""
    if getattr(attentions, "beam_indices", None) is not None or "Beam" in type(attentions).__name__:
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


def _n_read(output: Any) -> int | None:
    """How many tokens a decoder has read when ``generate`` ends: all but the last one, which it has only written."""
    shape: tuple[int, ...] = getattr(getattr(output, "sequences", None), "shape", ())
    is_decoder = getattr(output, "attentions", None) is not None
    return int(shape[1]) - 1 if is_decoder and len(shape) == 2 else None


def _listed_layers(entries: Sequence[Any], axes: Axes | None, output: Any) -> Iterator[LayerPattern]:
    """The entries that are there; if some are not, the others with their numbers."""
    numbers = [number for number, entry in enumerate(entries) if entry is not None]
    if not numbers:
        named_array("attentions[0]", None)  # which says why
    named = [(f"attentions[{number}]", entries[number]) for number in numbers]
    sources = [LayerSource(layer=number) for number in numbers] if len(numbers) < len(entries) else None
    return _layers(named, sources, axes, output)


def _mapped_layers(attentions: Any, axes: Axes | None) -> Iterator[LayerPattern]:
    """The patterns in the order of their layer numbers, which they carry."""
    keys = list(attentions.keys())
    if not keys:
        raise ValueError(f"{_KINDS}, got an empty mapping")
    numbered = sorted(zip(layer_numbers(keys), keys, strict=True), key=lambda pair: pair[0])
    entries = {(number, key): attentions[key] for number, key in numbered}
    there = [numbered_key for numbered_key, entry in entries.items() if entry is not None]
    if not there:
        named_array(f"attentions[{keys[0]!r}]", None)
    named = [(f"attentions[{key!r}]", entries[number, key]) for number, key in there]
    modules = [(key if isinstance(key, str) else "", number) for number, key in there]
    return _layers(named, [LayerSource(module, layer=number) for module, number in modules], axes, attentions)


def _layers(
    named: Sequence[tuple[str, Any]], sources: Sequence[LayerSource] | None, axes: Axes | None, output: Any
) -> Iterator[LayerPattern]:
    """One layer for each array, or, if axes names layers, each layer with one batch item of each array."""
    if axes is not None:
        patterns = layers_of_arrays(named, axes)
        if sources is None or "layer" in axes:
            return map(LayerPattern, patterns)
        return map(LayerPattern, patterns, sources)
    check_are_keys(named, output)
    patterns = of_offsets(named, output) or (named_array(name, pattern) for name, pattern in named)
    return map(LayerPattern, patterns) if sources is None else map(LayerPattern, patterns, sources)
