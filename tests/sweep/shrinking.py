"""Makes a configuration small by the names of its fields; building.py uses it for every model type.

Configurations are made anew from few arguments, so that what a class derives from its fields is derived again.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any, Literal

from tests.sweep.hints import ALWAYS, KEY_HEADS, SIZES

Level = Literal["small", "shallow"]

VOCABULARY = 160
FIRST_SPECIAL_ID = 100  # special tokens beyond it move here; texts are made of tokens below it
PATCHES = 4  # patches along each side of a picture

DEPTHS = re.compile(
    r"^(num_(hidden|encoder|decoder|attention)?_?layers|n_layers?|depth|layers|(encoder|decoder|speech_encoder|t2u_encoder|"
    r"t2u_decoder|encoder_n|decoder_n|text_encoder|l|r|x)_(num_)?(hidden_)?layers|num_blocks|"
    r"(perceiver_)?resampler_(depth|num_layers)|memory_attention_num_layers|aligner_num_add_layers)$"
)
STAGES = {"depths", "layer_depths", "num_block_repeats", "num_blocks_per_stage", "block_repeats", "stage_num_blocks"}
_INDICES = re.compile(r"^(?!encode_proj).*(index|indices|indexes|idxs|layer_ids|_layers|layers_indices|visual_index)$")
_TOKEN = re.compile(r"token.*_(id|ids|index|idx)$|^(bo|eo)[a-z]_token|^[a-z]+_(start|end)_id$")
_MOST_LAYERS = 8


def field_names(kind: type) -> set[str]:
    """The arguments of a class of configurations."""
    if dataclasses.is_dataclass(kind):
        return {field.name for field in dataclasses.fields(kind)}
    return set(inspect.signature(kind).parameters) - {"kwargs"}


def shrunk(config: Any, level: Level, ids: dict[int, int], hints: dict[str, Any]) -> Any:
    """A small configuration like another one.

    Args:
        config: a configuration of transformers.
        level: "small" makes all sizes small, "shallow" leaves widths and pictures as they are.
        ids: where special tokens moved, old to new; filled on the way, so that parts of a model agree.
        hints: arguments that win over every rule; those of a part lie in a dict under its name.
    """
    kind = type(config)
    try:
        plain = kind()
    except Exception:
        plain = None
    names = sorted(field_names(kind) & set(vars(config)) - {"id2label", "label2id", "dtype", "transformers_version"})
    given: dict[str, Any] = {}
    for name in names:
        value = vars(config)[name]
        if is_config(value):
            part = hints.get(name)
            part = dict(part) if isinstance(part, dict) else {}
            given[name] = shrunk(_exchanged(value, part), level, ids, part)
        elif plain is None or not _same(value, vars(plain).get(name)):
            given[name] = value
    depth = _depth(config, names)
    for name in names:
        value = vars(config)[name]
        small = _smaller(name, value, config, level=level, ids=ids, depth=depth)
        if small is not value:
            given[name] = small
    if vars(config).get("_out_indices") and not _same(config._out_indices, plain and vars(plain).get("_out_indices")):
        staged = STAGES & set(vars(config))
        given["out_indices"] = (
            config._out_indices if staged else _shorter("indices", config._out_indices, config, depth)
        )
    _fit_rope(given, config)
    given |= {name: value for name, value in hints.items() if not is_config(vars(config).get(name))}
    return kind(**given)


def _exchanged(config: Any, hints: dict[str, Any]) -> Any:
    """The configuration, or where a hint names another type of model for a part, that of this type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = hints.pop("model_type", None)
    return config if model_type is None else CONFIG_MAPPING[model_type]()


def is_config(value: Any) -> bool:
    """Whether a value is a configuration of transformers."""
    return hasattr(value, "to_dict") and hasattr(value, "model_type")


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _depth(config: Any, names: list[str]) -> int:
    """How many layers show every kind of layer that the configuration has."""
    depths = {value for name in names if DEPTHS.match(name) and type(value := vars(config)[name]) is int}
    depth = 2
    for name, value in vars(config).items():
        if not isinstance(value, list | tuple) or not all(isinstance(item, str | bool) for item in value):
            continue
        if len(value) in depths or name == "block_types":
            depth = max(depth, max(value.index(kind) for kind in set(value)) + 1)
    chosen = [
        len(value) + 1
        for name in names
        if _INDICES.search(name)
        and _are_indices(value := vars(config)[name])
        and not _counts(value)
        and max(value) >= depth
    ]
    return min(max([depth, *chosen]), _MOST_LAYERS, max(depths, default=depth))


def _are_indices(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(type(item) is int for item in value)


def _smaller(name: str, value: Any, config: Any, *, level: Level, ids: dict[int, int], depth: int) -> Any:
    """What a field becomes; the same object where it stays."""
    if _TOKEN.search(name):
        return _moved(value, ids)
    if name == "image_size" and _are_indices(value):
        return type(value)(_smaller(name, side, config, level=level, ids=ids, depth=depth) for side in value)
    if isinstance(value, list | tuple):
        return _shorter(name, value, config, depth)
    if name == "head_dim" and value is None and level == "small" and "head_dim" in vars(config):
        return SIZES["head_dim"]
    if type(value) is not int:
        return value
    if name.endswith("vocab_size") or name == "vocab_size_per_layer_input":
        return min(value, VOCABULARY)
    if DEPTHS.match(name):
        return min(value, depth)
    of_heads = KEY_HEADS.get(name)
    if of_heads and value == vars(config).get(of_heads):
        return _smaller(of_heads, value, config, level=level, ids=ids, depth=depth)
    stages = vars(config).get("num_heads" if name == "embed_dim" else "embed_dim_per_stage")
    if name in {"embed_dim", "hidden_size"} and isinstance(stages, list | tuple):
        return value
    if level == "small" and name in {"image_size", "img_size", "input_size"}:
        patch = getattr(config, "patch_size", None)
        return min(value, PATCHES * patch if type(patch) is int and patch > 4 else 64)
    if name in SIZES and (level == "small" or name in ALWAYS):
        return min(value, SIZES[name])
    return value


def _moved(value: Any, ids: dict[int, int]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, ids) for item in value)
    if type(value) is int and value >= FIRST_SPECIAL_ID:
        return ids.setdefault(value, FIRST_SPECIAL_ID + len(ids))
    return value


def _shorter(name: str, value: Any, config: Any, depth: int) -> Any:
    """Lists with an item for each layer are cut, lists of chosen layers choose among the first."""
    depths = [value for field, value in vars(config).items() if DEPTHS.match(field)]
    if name in STAGES:
        return type(value)(min(item, 2) for item in value)
    if STAGES & set(vars(config)):
        return value
    if len(value) in depths and len(value) > depth and (not _are_positions(value) or _counts(value)):
        return value[:depth]
    if _INDICES.search(name) and _are_indices(value) and depths and max(value) >= depth:
        kept = value[: depth - 1]
        return type(value)(range(depth - len(kept), depth))
    return value


def _counts(value: Any) -> bool:
    """Whether a list names every layer."""
    return list(value) == list(range(len(value)))


def _are_positions(value: Any) -> bool:
    return _are_indices(value) and list(value) == sorted(set(value)) and len(value) > 1 and value[-1] >= len(value) - 1


def _fit_rope(given: dict[str, Any], config: Any) -> None:
    """Rotary sections and factors fit the head dimension."""
    parameters = given.get("rope_parameters", vars(config).get("rope_parameters"))
    if not isinstance(parameters, dict):
        return
    values = vars(config)
    width = (values.get("hidden_size") or 64) // (values.get("num_attention_heads") or 1)
    before = values.get("head_dim") or width
    after = given.get("head_dim") or (16 if "hidden_size" in given else before)
    if "qk_rope_head_dim" in given:
        after = given["qk_rope_head_dim"]
    fitted = _fitted(parameters, before, after)
    if fitted != parameters:
        given["rope_parameters"] = fitted


def _fitted(parameters: dict[str, Any], before: int, after: int) -> dict[str, Any]:
    fitted: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, dict):
            fitted[name] = _fitted(value, before, after)
        elif name.endswith("section") and isinstance(value, list | tuple) and sum(value):
            total = int(after * parameters.get("partial_rotary_factor", 1)) // 2
            parts = [max(1, part * total // sum(value)) for part in value]
            parts[0] += total - sum(parts)
            fitted[name] = type(value)(parts)
        elif name in {"short_factor", "long_factor"}:
            fitted[name] = value[: int(after * parameters.get("partial_rotary_factor", 1)) // 2]
        else:
            fitted[name] = value
    return fitted
