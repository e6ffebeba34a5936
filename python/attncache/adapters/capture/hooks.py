"""Tells a recorder of the forwards of a model and of those of its modules that compute attention, or look like it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from attncache.adapters.capture.handles import Handles
from attncache.adapters.capture.places import Places

if TYPE_CHECKING:
    import torch


class Watcher(Protocol):
    """Is told of forwards, in whatever thread they are."""

    def before_model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model is called."""

    def after_model(self) -> None:
        """The model returns, or failed."""

    def before_forward(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module that computes attention is called."""

    def after_forward(self, module: torch.nn.Module) -> None:
        """A module that uses the attention interface, or looks like attention, returns."""


class Hooks:
    """The hooks of one model, and who is told; they stay as they are while others are told.

    Attributes:
        watcher: who is told; None while nobody is.
    """

    def __init__(self, model: torch.nn.Module, places: Places) -> None:
        self.watcher: Watcher | None = None
        self._model = model
        self._places = places
        self._watched: set[torch.nn.Module] = set()
        self._handles = Handles()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Tell until the context ends."""
        with self._handles:
            self._handles.add("forward_pre_hook", self._model, self._before_model, with_kwargs=True)
            for module in self._places.interface:
                self.watch(module)
            for module in (*self._places.interface, *self._places.looks):
                self._handles.add("forward_hook", module, self._after_forward)
            self._handles.add("forward_hook", self._model, self._after_model, always_call=True)
            yield

    def watch(self, module: torch.nn.Module) -> None:
        """Tell before each call of a module that was found to compute attention, from its next one on."""
        if module not in self._watched:
            self._watched.add(module)
            self._handles.add("forward_pre_hook", module, self._before_forward, with_kwargs=True)

    def _before_model(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.watcher is not None:
            self.watcher.before_model(args, kwargs)

    def _after_model(self, *_: Any) -> None:
        if self.watcher is not None:
            self.watcher.after_model()

    def _before_forward(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.watcher is not None:
            self.watcher.before_forward(module, args, kwargs)

    def _after_forward(self, module: torch.nn.Module, *_: Any) -> None:
        if self.watcher is not None:
            self.watcher.after_forward(module)


class Hooked(NamedTuple):
    """A model, where its attention is, and what tells of its forwards."""

    model: torch.nn.Module
    places: Places
    hooks: Hooks

    @classmethod
    def of(cls, model: torch.nn.Module, n_heads: int | None) -> Hooked:
        """A model without hooks yet; ``n_heads`` as for ``capture``."""
        places = Places(model, n_heads)
        return cls(model, places, Hooks(model, places))
