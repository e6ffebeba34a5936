"""A part of a cache as a cache of its own: ``AttentionCache.part`` of layers, heads, batch items and positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from attncache import _core
from attncache.cache import AttentionCache
from attncache.factored_parts import factored_part
from attncache.layer_source import LayerSource, group_of
from attncache.selections import Selector
from attncache.taking import Chosen, indices, taken
from attncache.tokens import Shape, Tokens

KINDS = ("self", "cross", "encoder", "decoder", "vision", "audio", "text")


class Selection(NamedTuple):
    """The selectors of a part, but for its layers."""

    heads: Selector
    batch: Selector
    positions: Selector


def part_of(
    cache: AttentionCache,
    *,
    layers: Selector,
    heads: Selector,
    batch: Selector,
    positions: Selector,
    kind: str | None,
) -> AttentionCache:
    """``AttentionCache.part``."""
    whole = _snapshot(cache)
    of_kind = list(range(whole.n_layers)) if kind is None else _layers_of_kind(whole.sources, kind)
    numbers = [of_kind[at] for at in indices(layers, len(of_kind), "layers", "n_layers")]
    selection = Selection(heads, batch, positions)
    chosen = [_chosen(whole, number, selection) for number in numbers]
    part = AttentionCache(cache._dtype, index=cache.index)
    for number, axes in zip(numbers, chosen, strict=True):
        _add(part, whole, number, axes)
    part._metadata = whole._metadata
    part._tokens = _tokens_of_part(whole._tokens, whole.shapes, numbers, chosen, selection, axis=3)
    part._query_tokens = _tokens_of_part(whole._query_tokens, whole.shapes, numbers, chosen, selection, axis=2)
    return part


def _snapshot(cache: AttentionCache) -> AttentionCache:
    """The same layers in a cache that no other thread changes."""
    same = AttentionCache(index="off")
    for layer, source in cache._sourced:
        same._append(layer, source)
    same._tokens, same._query_tokens, same._metadata = cache._tokens, cache._query_tokens, cache._metadata
    return same


def _layers_of_kind(sources: Sequence[LayerSource | None], kind: str) -> list[int]:
    """The layers of an attention kind, or of self-attention in a stack."""
    if not isinstance(kind, str):
        raise TypeError(f"kind must be None or a string, got {type(kind).__name__}")
    words = [() if source is None else (source.kind, group_of(source)) for source in sources]
    found = [layer for layer, names in enumerate(words) if kind in names]
    if found:
        return found
    there = [repr(each) for each in KINDS if any(each in names for names in words)]
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    have = f"must be that of a layer, {' or '.join(there)}" if there else "must be None: no layer's is known (sources)"
    raise ValueError(f"kind {have}, got {kind!r}")


def _chosen(whole: AttentionCache, layer: int, selection: Selection) -> Chosen:
    """What of a layer is in the part.

    Raises:
        IndexError, TypeError: a selector does not fit the layer. ValueError: the layer has no such part.
    """
    batch_size, n_heads, seq_q, seq_k = whole.shapes[layer]
    batch = indices(selection.batch, batch_size, "batch", "batch_size")
    heads = indices(selection.heads, n_heads, "heads", "n_heads")
    if selection.positions is None:
        chosen = Chosen(batch, heads, range(seq_q), range(seq_k))
    else:
        source = whole.sources[layer]
        if source is not None and source.kind == "cross":
            raise ValueError(
                f"positions must be None for cross-attention, whose queries and keys are of two texts, "
                f"but {_name(layer, source)} is; part(kind='self') leaves it out"
            )
        keys = indices(selection.positions, seq_k, "positions", "seq_k")
        chosen = Chosen(batch, heads, _queries_at(keys, seq_k - seq_q, seq_q), keys)
    if whole.devices[layer] != "cpu" and not chosen.is_all(whole.shapes[layer]):
        raise ValueError(
            f"heads, batch and positions must be None for layers on a device, but {_name(layer, whole.sources[layer])} "
            f"lies on {whole.devices[layer]}; cache.cpu() gives a copy of the cache whose parts have them"
        )
    return chosen


def _name(layer: int, source: LayerSource | None) -> str:
    """A layer as errors name it."""
    return f"layer {layer} ({source.module})" if source is not None and source.module else f"layer {layer}"


def _queries_at(keys: Sequence[int], offset: int, seq_q: int) -> Sequence[int]:
    """The queries that stand at these keys: query i at key i + offset."""
    if isinstance(keys, range) and keys.step == 1:
        return range(min(max(keys.start - offset, 0), seq_q), min(max(keys.stop - offset, 0), seq_q))
    return [key - offset for key in keys if 0 <= key - offset < seq_q]


def _add(part: AttentionCache, whole: AttentionCache, layer: int, chosen: Chosen) -> None:
    """Append the part of a layer, with where it comes from."""
    source, stored = whole.sources[layer], whole._layer(layer)
    if chosen.is_all(stored.shape):
        part._take(stored, source)
        return
    if stored.kind == "dense":
        pattern = taken(stored.memory[0], *chosen)
        shares = pattern.flags.c_contiguous and pattern.flags.aligned
        taken_part = _core.Layer.dense(pattern, stored.dtype, stored.dtype, shares, part.index == "eager")
    else:
        taken_part = factored_part(stored, layer, chosen)
    part._take(taken_part, source and _of_heads(source, chosen.heads, stored.shape[1]))


def _of_heads(source: LayerSource, heads: Sequence[int], n_heads: int) -> LayerSource:
    """Where some heads of a layer come from."""
    if list(heads) == list(range(n_heads)):
        return source
    numbers = range(n_heads) if source.heads is None else source.heads
    return replace(source, heads=tuple(numbers[head] for head in heads))


def _tokens_of_part(
    tokens: Tokens | None,
    shapes: Sequence[Shape],
    numbers: Sequence[int],
    chosen: Sequence[Chosen],
    selection: Selection,
    *,
    axis: int,
) -> Tokens | None:
    """The tokens of the part; None where those of the cache are not the ones of its layers.

    Args:
        tokens: of the cache.
        shapes: of its layers.
        numbers, chosen: which layers are in the part, and what of each.
        selection: what of all layers.
        axis: whose tokens they are: 3 for keys, 2 for queries.
    """
    if tokens is None or not chosen:
        return tokens
    is_nested = bool(tokens) and not isinstance(tokens[0], str)
    texts: list[Any] = list(tokens) if is_nested else [tokens]
    n_tokens = len(texts[0])
    fits = {shapes[number][axis] for number in numbers} == {n_tokens}
    if not fits and (selection.positions is not None or n_tokens in {shape[axis] for shape in shapes}):
        return None
    if is_nested and selection.batch is not None:
        if {shapes[number][0] for number in numbers} != {len(texts)}:
            return None
        texts = [texts[item] for item in chosen[0].batch]
    if selection.positions is not None:
        texts = [tuple(text[position] for position in chosen[0][axis]) for text in texts]
    return tuple(texts) if is_nested else texts[0]
