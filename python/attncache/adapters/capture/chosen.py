"""Which layers of a model the argument ``layers`` of a capture chooses: by number, or by the names of modules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from attncache.adapters.capture.modules import related
from attncache.selections import Selector
from attncache.taking import indices

if TYPE_CHECKING:
    import torch

Layers: TypeAlias = Selector | str | Sequence[str]


class ChosenLayers:
    """Decides of each module that computes attention whether it was chosen.

    Numbers count the modules that use transformers' attention interface, where a model has some; in other models they count
    modules from 0 on, in the order in which they first compute attention. A name chooses the module of this path and all
    that it holds; ``*`` stands for any part of a path.

    Args:
        layers: None, a selector, a name or several.
        paths: every module of the model, with its path.
        known: those that use the interface, in the order of their numbers.

    Raises:
        IndexError, TypeError, ValueError: layers does not select from these.
    """

    def __init__(
        self, layers: Layers, paths: Mapping[torch.nn.Module, str], known: Collection[torch.nn.Module]
    ) -> None:
        self._paths = paths
        self.is_all = layers is None
        self.is_none = np.size(cast("Any", layers)) == 0
        self._numbers = {module: number for number, module in enumerate(known)}
        self._counts = not known
        self._names = _names(layers)
        self._missing: dict[int | str, str] = {}  # what was chosen and did not run yet, as messages call it
        self._takes: Callable[[int], bool] = lambda _: True
        if self._names:
            for name in self._names:
                _check_name(name, paths)
                self._missing[name] = name
        elif known:
            numbers = list(indices(cast("Selector", layers), len(known), "layers", "n_layers"))
            self._takes = set(numbers).__contains__
            modules = list(known)
            self._missing = {number: self.name(modules[number]) for number in numbers}
        elif layers is not None:
            self._takes, numbers = _counted(layers)
            self._missing = {number: f"layer {number}" for number in numbers}

    def wants(self, module: torch.nn.Module) -> bool:
        """Whether a module was chosen; called when it computes attention, which numbers it."""
        if self._counts:
            self._numbers.setdefault(module, len(self._numbers))
        if self._names:
            path = self._paths[module]
            matching = [name for name in self._names if _matches(name, path)]
            for name in matching:
                self._missing.pop(name, None)
            return bool(matching)
        number = self._numbers.get(module)
        if number is None:
            return self.is_all
        if self._takes(number):
            self._missing.pop(number, None)
            return True
        return False

    def chosen(self, modules: Collection[torch.nn.Module]) -> list[torch.nn.Module]:
        """Those of these modules that were chosen, asked before anything runs."""
        if self._names:
            return [m for m in modules if any(_matches(name, self._paths[m]) for name in self._names)]
        return [module for module in modules if self._takes(self._numbers.get(module, -1))]

    def missing(self, heard: Collection[str]) -> list[str]:
        """What was chosen and computed no attention; ``heard`` has the paths of the modules that did."""
        found = {module for module in self._numbers if any(related(self._paths[module], path) for path in heard)}
        there = {number for module, number in self._numbers.items() if module in found}
        return [name for number, name in self._missing.items() if number not in there]

    def name(self, module: torch.nn.Module) -> str:
        """What messages call a module."""
        path, number = self._paths[module] or type(module).__name__, self._numbers.get(module)
        return path if number is None else f"layer {number} ({path})"


def _names(layers: Any) -> tuple[str, ...]:
    """The names that layers is made of; empty if it is made of numbers."""
    if isinstance(layers, str):
        return (layers,)
    if isinstance(layers, Sequence) and any(isinstance(name, str) for name in layers):
        for name in layers:
            if not isinstance(name, str):
                raise TypeError(f"layers must be numbers or names of modules, got both: {name!r} beside names")
        return tuple(layers)
    return ()


def _check_name(name: str, paths: Mapping[torch.nn.Module, str]) -> None:
    if not any(_matches(name, path) for path in paths.values()):
        deepest = max(paths.values(), key=lambda path: path.count("."))
        raise ValueError(f"layers must name modules of the model, got {name!r}, which is none; one is {deepest!r}")


def _matches(name: str, path: str) -> bool:
    """Whether a name is that of a path or of one that holds it."""
    parts = path.split(".")
    return any(fnmatchcase(".".join(parts[: n + 1]), name) for n in range(len(parts)))


def _counted(layers: Any) -> tuple[Callable[[int], bool], list[int]]:
    """A choice among layers whose number is not known yet: which it takes, and the numbers that it names."""
    if isinstance(layers, slice):
        given = (layers.start or 0, sys.maxsize if layers.stop is None else layers.stop, layers.step or 1)
        if min(given) >= 0:
            return range(*given).__contains__, []
    else:
        numbers = list(indices(layers, sys.maxsize, "layers", "n_layers"))
        if max(numbers, default=0) < sys.maxsize // 2:  # those below 0 come from the end
            return set(numbers).__contains__, numbers
    raise ValueError(
        f"layers must count from 0, or name modules, in a model whose number of layers shows only when it runs, got "
        f"{layers!r}; a name is the path of a module, where * stands for any part, such as '*.11.attn'"
    )
