"""Finds the layers in a cache of TransformerLens, or in any mapping that uses its names: patterns, queries and keys.

The names are ``blocks.N.attn.hook_X`` or tuples (X, N), with X one of

- pattern: [batch, head, query, key], after softmax;
- rot_q and rot_k: queries and keys after rotary embedding, [batch, position, head, d_head];
- q and k: the same before it, which is what the scores are made of where a model has no rotary embedding.

The batch axis may be missing, as after ``remove_batch_dim``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attncache.adapters.named import LayerPattern, named_array
from attncache.axes import Axes, checked_axes
from attncache.layer_source import LayerSource

_HOOK = re.compile(r"blocks\.(0|[1-9][0-9]*)\.attn\.hook_(pattern|rot_q|rot_k|q|k)")
_SHORT = {"pattern": "pattern", "attn": "pattern", "rot_q": "rot_q", "rot_k": "rot_k", "q": "q", "k": "k"}
_WANTED = "blocks.N.attn.hook_pattern, or hook_rot_q and hook_rot_k, or hook_q and hook_k"


@dataclass(frozen=True)
class LayerProjections:
    """The queries and keys of one layer, as ``push_qk`` takes them.

    Attributes:
        name: what to call them in an error.
        source: the place in the model that they come from.
        query: [batch, head, seq_q, head_dim].
        key: [batch, kv_head, seq_k, head_dim].
        window: as for ``push_qk``.
    """

    name: str
    source: LayerSource
    query: Any
    key: Any
    window: int | None


def hooked_layers(
    activation_cache: Any, axes: Axes | None = None, window: int | Sequence[int | None] | None = None
) -> list[LayerPattern | LayerProjections]:
    """The pattern of every layer, or its queries and keys where the pattern was not recorded.

    Args:
        activation_cache: anything with ``keys()`` and item access, named as above.
        axes: the names of the axes of each pattern.
        window: that of all layers, or one for each.

    Returns:
        One entry per layer, in the order of their numbers, which they carry.

    Raises:
        As ``AttentionCache.from_transformer_lens``.
    """
    if not hasattr(activation_cache, "keys") or not hasattr(activation_cache, "__getitem__"):
        raise TypeError(
            f"activation_cache must be a mapping of hook names, with keys(), got {type(activation_cache).__name__}"
        )
    found = _found_hooks(activation_cache.keys())
    if not found:
        keys = [str(key) for key in activation_cache.keys()]  # noqa: SIM118 (it need not iterate over its keys)
        raise ValueError(f"activation_cache must hold {_WANTED}, got {', '.join(keys[:5]) or 'nothing'}")
    if axes is not None and "layer" in checked_axes(axes):
        raise ValueError(f"axes must not name layer, of which activation_cache has one in each entry, got {axes!r}")
    windows = list(window) if isinstance(window, Sequence) else [window] * len(found)
    if len(windows) != len(found):
        raise ValueError(f"window must be one for all layers or one for each of {len(found)}, got {len(windows)}")
    layers = zip(sorted(found), windows, strict=True)
    return [_layer(activation_cache, layer, found[layer], axes, of_layer) for layer, of_layer in layers]


def _found_hooks(keys: Iterable[Any]) -> dict[int, dict[str, Any]]:
    """The key of each hook that we want, by layer and short name."""
    found: dict[int, dict[str, Any]] = {}
    for key in keys:
        if isinstance(key, str) and (match := _HOOK.fullmatch(key)):
            found.setdefault(int(match[1]), {})[match[2]] = key
        elif isinstance(key, tuple) and (short := _short_name(key)):
            found.setdefault(key[1], {})[short] = key
    return found


def _short_name(key: tuple[Any, ...]) -> str | None:
    """The short name of a hook that we want from (name, layer) or (name, layer, "attn"), or None."""
    if len(key) == 2 or (len(key) == 3 and key[2] in ("attn", "a", None)):
        return _SHORT.get(key[0]) if isinstance(key[1], int) else None
    return None


def _layer(
    activation_cache: Any, layer: int, hooks: dict[str, Any], axes: Axes | None, window: int | None
) -> LayerPattern | LayerProjections:
    """One layer from its hooks."""
    source = LayerSource(f"blocks.{layer}.attn", layer=layer)
    if "pattern" in hooks:
        pattern = activation_cache[hooks["pattern"]]
        return LayerPattern(named_array(f"blocks.{layer}.attn.hook_pattern", pattern, axes), source)
    kind = "rot_" if "rot_q" in hooks or "rot_k" in hooks else ""
    for hook in (f"{kind}q", f"{kind}k"):
        if hook not in hooks:
            raise ValueError(
                f"activation_cache must hold the pattern of each layer or both its queries and keys, got no "
                f"blocks.{layer}.attn.hook_{hook}"
            )
    name = f"blocks.{layer}.attn.hook_{kind}q and hook_{kind}k"
    if not kind:
        _check_positions_are_in_the_projections(activation_cache, name)
    query, key = (_heads_first(name, activation_cache[hooks[f"{kind}{part}"]]) for part in "qk")
    return LayerProjections(name, source, query, key, window)


def _check_positions_are_in_the_projections(activation_cache: Any, name: str) -> None:
    """Scores are q @ k only if nothing about positions comes in later; a real cache knows its model."""
    config = getattr(getattr(activation_cache, "model", None), "cfg", None)
    scheme = getattr(config, "positional_embedding_type", None)
    if scheme == "rotary":
        raise ValueError(
            f"{name} must be after rotary embedding, got those before it; record hook_rot_q and hook_rot_k"
        )
    if scheme in ("alibi", "relative_positional_bias"):
        raise ValueError(f"{name} must give the scores by themselves, got a model with {scheme}; record hook_pattern")


def _heads_first(name: str, projection: Any) -> Any:
    """[batch, position, head, d_head], or without batch, as a view [batch, head, position, d_head]."""
    projection = _with_batch(projection)
    if projection is None or projection.ndim != 4:
        got = "None" if projection is None else f"shape {tuple(projection.shape)}"
        raise ValueError(f"{name} must be [batch, position, head, d_head], got {got}")
    return projection.swapaxes(1, 2)


def _with_batch(array: Any) -> Any:
    """The array with a batch axis of 1 in front if it has but three axes."""
    array = array if array is None or hasattr(array, "ndim") else np.asarray(array)
    return array if array is None or array.ndim != 3 else array[None]
