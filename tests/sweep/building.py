"""Model types of the installed transformers, and a small model of each with random weights; judging.py runs them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.sweep.hints import CONFIGS
from tests.sweep.shrinking import Level, shrunk

MOST_PARAMETERS = 120e6
_GENERATING = ("MULTIMODAL_LM", "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ", "SEQ_TO_SEQ_CAUSAL_LM", "TEXT_TO_WAVEFORM")


class NotBuiltError(Exception):
    """No small model of a type could be made or run; says why."""


@dataclass(frozen=True)
class Built:
    """A small model, in float32 and evaluation mode, under eager attention."""

    model: Any
    level: str  # how far its configuration was made small


@functools.cache
def _mappings() -> dict[str, dict[str, Any]]:
    suffix = "_MAPPING_NAMES"
    return {name.removesuffix(suffix): value for name, value in vars(modeling_auto).items() if name.endswith(suffix)}


def model_types() -> list[str]:
    """Every model type of which transformers has a model."""
    return sorted(_mappings()["MODEL"])


def class_of(model_type: str) -> Any:
    """The class that runs most of a model: one that generates, if the type is made for it; else the bare model."""
    found = _mappings()
    names = [found.get(f"MODEL_FOR_{task}", {}).get(model_type) for task in _GENERATING]
    if model_type not in found["MODEL_FOR_MASKED_LM"]:
        names.append(found["MODEL_FOR_CAUSAL_LM"].get(model_type))
    names.append(found["MODEL"][model_type])
    name = next(name for name in names if name)
    for one in (name,) if isinstance(name, str) else name:
        kind = getattr(transformers, one, None)
        if kind is None:
            raise NotBuiltError(f"transformers does not export {one}")
        try:
            kind.main_input_name  # noqa: B018 (a placeholder for a missing package raises here)
        except ImportError as error:
            raise NotBuiltError(" ".join(str(error).split())[:200]) from error
        return kind
    raise NotBuiltError("no class")


def build(model_type: str, level: Level) -> Built:
    """A small model of a type."""
    kind = class_of(model_type)
    ids: dict[int, int] = {}
    try:
        config = shrunk(CONFIG_MAPPING[model_type](), level, ids, CONFIGS.get(model_type, {}))
        _check_size(kind, config)
        torch.manual_seed(0)
        model = kind._from_config(config, attn_implementation="eager", dtype=torch.float32)
    except Exception as error:
        raise NotBuiltError(f"{level}: {type(error).__name__}: {error}") from error
    model.eval()
    _enliven(model)
    return Built(model, level)


def _check_size(kind: Any, config: Any) -> None:
    """Refuse configurations of large models before memory is taken."""
    try:
        with torch.device("meta"):
            model = kind(config)
    except Exception:
        return  # not every class can be made without memory; the process has a bound of its own
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MOST_PARAMETERS:
        sizes = sorted(((p.numel(), name) for name, p in model.named_parameters()), reverse=True)
        raise ValueError(f"{count / 1e6:.0f} million parameters, {sizes[0][1]} {sizes[0][0] / 1e6:.0f}")


def _enliven(model: Any) -> None:
    """Give a model weights with which attention is far from uniform, and every learned bias and sink has an effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.Tensor) and weight.is_floating_point() and weight.dim() >= 2 and weight.numel():
                spread = 1.0 if isinstance(module, torch.nn.Embedding) else 1.2 * weight[0].numel() ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
        for name, parameter in model.named_parameters():
            unset = parameter.is_floating_point() and not bool(parameter.isfinite().all())
            if unset or any(word in name for word in ("sink", "bias_table", "relative_attention_bias")):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
