"""The attention modules of a model: which use transformers' interface, which look like attention, where each stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from inspect import unwrap
from types import CodeType
from typing import TYPE_CHECKING, Any

from attncache.layer_source import Kind, LayerSource, Stack

if TYPE_CHECKING:
    import torch

_INTERFACE = {"ALL_ATTENTION_FUNCTIONS", "get_interface"}
_CROSS = re.compile(r"cross|enc_?dec|encoder_attn|encoder_attention", re.IGNORECASE)
_MODALITIES: tuple[tuple[Stack, re.Pattern[str]], ...] = (
    ("vision", re.compile(r"vision|visual|image|pixel|(^|_)vit($|_)|video", re.IGNORECASE)),
    ("audio", re.compile(r"audio|speech|sound|acoustic", re.IGNORECASE)),
)
_TEXT = re.compile(r"text|language|llm|decoder|(^|_)lm($|_)|^model$|^transformer$", re.IGNORECASE)
_LOOKS_LIKE_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
_NO_SOFTMAX = re.compile(
    r"linear|delta|mamba|ssm|recurr|rwkv|conv|lightning|retention|gated|gla|norm|drop|hyena|fourier|deformable",
    re.IGNORECASE,
)


def interface_modules(model: torch.nn.Module) -> dict[torch.nn.Module, str]:
    """The modules of a model that use the attention interface, in the order of its layers, each with its path."""
    paths = {module: path for path, module in model.named_modules()}
    kinds = {kind for kind in set(map(type, paths)) if _uses_interface(kind)}
    found = {module: path for module, path in paths.items() if type(module) in kinds}
    numbers = [getattr(module, "layer_idx", None) for module in found]
    if all(isinstance(number, int) for number in numbers) and len(set(numbers)) == len(numbers):
        return dict(sorted(found.items(), key=lambda item: item[0].layer_idx))
    return found


def _uses_interface(kind: type) -> bool:
    """Whether a method of the class asks for an attention function; seen in its code, before anything runs."""
    methods = (value for base in kind.__mro__ for value in vars(base).values() if callable(value))
    codes = (getattr(unwrap(method), "__code__", None) for method in methods)
    return any(isinstance(code, CodeType) and set(code.co_names) >= _INTERFACE for code in codes)


def sources_of(
    model: torch.nn.Module, modules: Mapping[torch.nn.Module, str], others: Mapping[torch.nn.Module, str]
) -> dict[torch.nn.Module, LayerSource]:
    """Where each attention module stands in the model.

    Args:
        model: the model.
        modules: those of its modules that use the interface, with their paths.
        others: those that look like attention, which show what stacks there are too.
    """
    stacks = _stacks(model, {**modules, **others})
    kinds: dict[torch.nn.Module, Kind] = {module: _kind(module, path) for module, path in modules.items()}
    numbers: dict[torch.nn.Module, int] = {}
    for stack, kind in {(stacks[module], kinds[module]) for module in modules}:
        numbers |= _numbers({m: path for m, path in modules.items() if (stacks[m], kinds[m]) == (stack, kind)})
    return {
        module: LayerSource(path or type(module).__name__, numbers[module], None, kinds[module], stacks[module])
        for module, path in modules.items()
    }


def source_of(
    model: torch.nn.Module,
    module: torch.nn.Module,
    paths: Mapping[torch.nn.Module, str],
    others: Mapping[torch.nn.Module, str],
) -> LayerSource:
    """Where a module stands that was found to compute attention.

    Args:
        model, module: the model, and which of its modules.
        paths: every module of the model, with its path.
        others: those that compute attention, or look like it, which show what stacks there are.
    """
    path = paths[module]
    pattern = re.sub(r"\d+", "#", path)
    group = {m: p for m, p in paths.items() if type(m) is type(module) and re.sub(r"\d+", "#", p) == pattern}
    stack = _stacks(model, {**others, module: path})[module]
    return LayerSource(path or type(module).__name__, _numbers(group)[module], None, _kind(module, path), stack)


def _kind(module: torch.nn.Module, path: str) -> Kind:
    told = getattr(module, "is_cross_attention", None)
    if isinstance(told, bool):
        return "cross" if told else "self"
    own = ".".join(path.split(".")[-3:])  # a name further up says where the stack is
    return "cross" if _CROSS.search(own) or _CROSS.search(type(module).__name__) else "self"


def _numbers(group: Mapping[torch.nn.Module, str]) -> dict[torch.nn.Module, int]:
    """The number of each module of one stack: as the module says, or its path, or else in their order."""
    told = [getattr(module, "layer_idx", None) for module in group]
    in_path = [re.search(r"(?:^|\.)(\d+)(?:\.|$)", path) for path in group.values()]
    ways: list[list[Any]] = [told, [int(found[1]) if found else None for found in in_path]]
    for numbers in ways:
        if all(type(number) is int and number >= 0 for number in numbers) and len(set(numbers)) == len(numbers):
            return dict(zip(group, numbers, strict=True))
    return {module: number for number, module in enumerate(group)}


def _stacks(model: torch.nn.Module, modules: Mapping[torch.nn.Module, str]) -> dict[torch.nn.Module, Stack | None]:
    """Which of several stacks each module belongs to, by the words in its path; None in a model with one."""
    found: dict[torch.nn.Module, Stack | None] = {module: _modality(path) for module, path in modules.items()}
    has_modalities = any(stack is not None for stack in found.values())
    others = {module: path.split(".") for module, path in modules.items() if found[module] is None}
    has_both = all(any(word in parts for parts in others.values()) for word in ("encoder", "decoder"))
    is_encoder_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    for module, parts in others.items():
        if has_both or is_encoder_decoder:
            found[module] = "decoder" if "decoder" in parts else "encoder" if "encoder" in parts else None
        if found[module] is None and has_modalities and any(_TEXT.search(part) for part in parts):
            found[module] = "text"
    return found if len(set(found.values())) > 1 else dict.fromkeys(modules)


def _modality(path: str) -> Stack | None:
    for stack, words in _MODALITIES:
        if any(words.search(part) for part in path.split(".")):
            return stack
    return None


def attention_by_name(
    paths: Mapping[torch.nn.Module, str], known: Mapping[torch.nn.Module, str]
) -> dict[torch.nn.Module, str]:
    """Modules that look like softmax attention, or hide whether they are, each with its path.

    They are called attention, have at least two layers of weights of their own (or are PyTorch's MultiheadAttention), and
    neither hold such a module nor belong to one, known ones included; or they are scripted, and their code has a softmax.
    """
    import torch  # noqa: PLC0415 (loaded already: it made the model)

    kept = set(known.values())
    found: dict[str, torch.nn.Module] = {}
    scripted: list[str] = []
    for module, path in paths.items():
        if isinstance(module, torch.jit.ScriptModule):
            if not any(_holds(other, path) for other in scripted):  # of the others PyTorch calls no hook
                scripted.append(path)
                if re.search("softmax|scaled_dot_product", _code_of(module)):
                    found[path] = module
            continue
        name = f"{path.rpartition('.')[2]} {type(module).__name__}"
        if module in known or not _LOOKS_LIKE_ATTENTION.search(name) or _NO_SOFTMAX.search(name):
            continue
        if any(related(path, other) for other in kept):
            continue
        n_projections = sum(1 for child in module.modules() if child is not module and _is_projection(child))
        if n_projections >= 2 or isinstance(module, torch.nn.MultiheadAttention):
            found[path] = module
    return {module: path for path, module in found.items() if not any(_holds(path, other) for other in found)}


def _code_of(module: Any) -> str:
    """The code of a scripted module and all that it calls; "" if it has none."""
    try:
        return str(module.inlined_graph)
    except (AttributeError, RuntimeError):  # a module without a forward
        return ""


def related(one: str, other: str) -> bool:
    """Whether one of two paths holds the other, or they are the same."""
    return one == other or _holds(one, other) or _holds(other, one)


def _holds(outer: str, inner: str) -> bool:
    return inner != outer and (outer == "" or inner.startswith(outer + "."))


def _is_projection(module: torch.nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and getattr(weight, "ndim", 0) == 2 and not type(module).__name__.startswith("Embedding")
