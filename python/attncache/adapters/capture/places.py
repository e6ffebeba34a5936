"""Where attention is in one model: which of its modules computes it, how many heads it has, and what its layer is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attncache.adapters.capture.calls import Call, Weights
from attncache.adapters.capture.heads import heads_of
from attncache.adapters.capture.modules import attention_by_name, interface_modules, source_of, sources_of
from attncache.adapters.capture.running import Running, running_modules
from attncache.adapters.capture.seams.listening import Heard
from attncache.layer_source import LayerSource

if TYPE_CHECKING:
    import torch

_CROSS_ARGUMENTS = ("key_value_states", "encoder_hidden_states", "cross_attention_states")
_OF_OTHERS = (*_CROSS_ARGUMENTS, "context", "memory", "xa", "encoder_out", "encoder_output", "cond", "kv")


def cross_arguments(kwargs: Mapping[str, Any]) -> bool:
    """Whether a module of transformers was given another sequence to attend to."""
    return any(kwargs.get(name) is not None for name in _CROSS_ARGUMENTS)


class Places:
    """The modules of a model, and what is known of their attention.

    Args:
        model: the model.
        n_heads: how many heads its modules have; None to believe what they say.

    Attributes:
        paths: every module, with its path.
        interface: those that use transformers' attention interface, in the order of the model's layers.
        looks: those that look like attention and do not use it.
    """

    def __init__(self, model: torch.nn.Module, n_heads: int | None = None) -> None:
        self._model = model
        self._n_heads = n_heads
        self.paths = {module: path for path, module in model.named_modules()}
        self.interface = interface_modules(model)
        self.looks = attention_by_name(self.paths, self.interface)
        self._sources = sources_of(model, self.interface, self.looks)
        self._sizes: list[int] = []  # the first axis of each tensor that the model was given

    def running(self) -> list[Running]:
        """The modules of the model that run now, from the innermost outwards, with what they were given: not to be kept."""
        return list(running_modules(self.paths))

    def read_inputs(self, values: Sequence[Any]) -> None:
        """Note how many items the model is given."""
        found: list[Any] = list(values)
        for each in found:  # which grows by what lists and dicts of them hold
            found += each.values() if isinstance(each, Mapping) else each if isinstance(each, tuple | list) else ()
        shaped = (each for each in found if getattr(each, "ndim", 0) > 0 and not getattr(each, "is_nested", False))
        self._sizes = [int(each.shape[0]) for each in shaped]

    def n_heads(self, leading: tuple[int, ...], running: Sequence[Running]) -> int | None:
        """How many heads the axes before query and key hold, where two of them do not say it already.

        Args:
            leading: the sizes of these axes.
            running: the modules of the model that run, from the innermost outwards.

        Raises:
            ValueError: one axis holds more than batch items, and nothing says how many heads.
        """
        import torch  # noqa: PLC0415 (loaded already: it made the model)

        if self._n_heads is not None or len(leading) == 2:
            return self._n_heads
        if leading == (1,):
            return 1
        told = (heads_of(inner.module) for inner in _attention(running))
        own = next((number for number in told if number is not None), None)
        if len(leading) != 1 or (running and isinstance(running[0].module, torch.nn.MultiheadAttention)):
            return own
        if own is not None and leading[0] % own:
            raise ValueError(
                f"the first of its three axes, {leading[0]}, must hold a whole number of batch items of {own} heads, as the module "
                "says it has; n_heads= must say how many it holds, 1 where there are none"
            )
        may_be_items = leading[0] in self._sizes[:1]
        if (may_be_items and (own or 1) > 1) or (own is None and self._items_in(leading[0]) is not None):
            raise ValueError(
                f"the first of its three axes, {leading[0]}, holds batch items and {'perhaps ' * may_be_items}heads or windows, "
                "and the module does not say how many heads: n_heads= must say it, 1 where there are none"
            )
        return own

    def has_heads_first(self, module: torch.nn.Module, leading: tuple[int, ...]) -> bool:
        """Whether two axes are [head, batch]: as many as the module has heads, and as the model was given items."""
        own = self._n_heads or heads_of(module)
        return len(leading) == 2 and own == leading[0] != leading[1] and leading[1] in self._sizes[:1]

    def source_of(
        self, module: torch.nn.Module, call: Call | Weights, attention: Heard, running: Sequence[Running]
    ) -> LayerSource:
        """What the layer of a call is called."""
        if module not in self._sources:
            others = {**self.interface, **self.looks, **{m: self.paths[m] for m in self._sources}}
            self._sources[module] = source_of(self._model, module, self.paths, others)
        source = replace(self._sources[module], seam=attention.seam, windows=self._items_in(call.n_batch))
        is_across = attention.seam != "interface" and self._is_across(call, running)
        return replace(source, kind="cross") if is_across else source

    def _items_in(self, n_batch: int) -> int | None:
        """How many parts of one input item lie in so many batch items; None if each is an item itself, or nothing is known."""
        if n_batch in self._sizes:
            return None
        return next((n_batch // size for size in self._sizes if size and n_batch % size == 0), None)

    @staticmethod
    def _is_across(call: Call | Weights, running: Sequence[Running]) -> bool:
        """Whether there are less keys than queries, or the modules that run were given another sequence, as long as the keys."""
        import torch  # noqa: PLC0415 (loaded already: it made the model)

        if call.n_given < call.n_queries:
            return True
        for inner in _attention(running):
            if isinstance(inner.module, torch.nn.MultiheadAttention):
                return not _are_same(inner.argument("query"), inner.argument("key"))
            others = [inner.argument(name) for name in _OF_OTHERS]
            if call.n_given != call.n_queries:
                others += inner.args[1:2]
            for other in others:
                is_sequence = isinstance(other, torch.Tensor) and _is_read(other.shape, call)
                if is_sequence and not _are_same(other, inner.first):
                    return True
        return False


def _attention(running: Sequence[Running]) -> Sequence[Running]:
    """The innermost module that runs; if it has no weights, it helps the one that calls it, which follows."""
    is_helper = bool(running) and not any(True for _ in running[0].module.parameters())
    return running[: 2 if is_helper else 1]


def _is_read(shape: Sequence[int], call: Call | Weights) -> bool:
    """Whether a tensor [batch, .., position, item] or [position, batch, item] has as many positions as the call has keys."""
    if len(shape) == 3 and shape[0] == call.n_given and call.n_batch % max(shape[1], 1) == 0:
        return True
    return len(shape) > 2 and shape[-2] == call.n_given and call.n_batch % max(shape[0], 1) == 0


def _are_same(one: Any, other: Any) -> bool:
    """Whether two tensors are one, or hold the same."""
    import torch  # noqa: PLC0415 (loaded already: it made the model)

    is_alike = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.shape == other.shape
    return one is other or (is_alike and torch.equal(one, other))
