"""Follows the attention calls of one model, layer by layer, and decides what each adds to which layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attncache.capturing.calls import Call, read_call
from attncache.capturing.masks import Sight, continued, read_sight
from attncache.capturing.selection import selected
from attncache.capturing.stores import LayerStore, Piece
from attncache.factored import key_heads_for
from attncache.progress import Progress
from attncache.selections import Selector

if TYPE_CHECKING:
    import torch

_REMEMBERED = 64  # keys kept per layer to notice that the model's cache was reordered: sequences that agree in so many
# keys of a layer and differ before them have the same last 64 tokens, and in deeper layers not even then


@dataclass
class _Layer:
    """One layer so far: its number in the cache, what its queries see, and its last keys [batch, key head, key, dim]."""

    number: int
    sight: Sight
    last_keys: torch.Tensor


class Recorder:
    """Listens to attention calls and hands those of the chosen layers and heads of one model to a store.

    Args:
        modules: the model's attention modules with their paths, in the order of the layers.
        layers, heads: which of them to keep.
        store: where they go.
        progress: told of each layer.

    Raises:
        IndexError, TypeError: layers does not select from these modules.
    """

    def __init__(
        self,
        modules: dict[torch.nn.Module, str],
        layers: Selector,
        heads: Selector,
        store: LayerStore,
        progress: Progress,
    ) -> None:
        from torch.utils.weak import WeakIdKeyDictionary  # noqa: PLC0415

        wanted = set(selected(layers, len(modules), "layers"))
        self.names = {
            module: f"layer {number} ({path or type(module).__name__})"
            for number, (module, path) in enumerate(modules.items())
            if number in wanted
        }
        self._all_wanted = layers is not None
        self._heads = heads
        self._store = store
        self._progress = progress
        progress.begin("capturing", len(self.names))
        self._layers: dict[torch.nn.Module, _Layer] = {}
        self._heard: set[torch.nn.Module] = set()
        self._sights: Any = WeakIdKeyDictionary()  # a mask is read once, though every layer brings it

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any], implementation: str | None) -> None:
        """Record an attention call if it is one of the chosen layers'.

        Raises:
            ValueError: the call cannot be one with what its layer holds, or not be expressed at all.
        """
        import torch  # noqa: PLC0415 (loaded already: it made the model)

        module = args[0] if args else kwargs["module"]
        if module not in self.names:
            return
        self._heard.add(module)
        with torch.no_grad():
            try:
                self._record(module, read_call(args, kwargs, implementation))
            except ValueError as error:
                raise ValueError(f"{self.names[module]} cannot be captured: {error}") from error

    def after_forward(self, module: torch.nn.Module, *_: Any) -> None:
        """A forward hook of every chosen module.

        Raises:
            ValueError: the module computed its attention without the interface.
        """
        if module not in self._heard:
            raise ValueError(
                f"{self.names[module]} cannot be captured: it computed its attention without transformers' attention "
                'interface; choose another backend, such as model.set_attn_implementation("sdpa")'
            )
        self._heard.discard(module)

    def finish(self) -> None:
        """Make every layer whole.

        Raises:
            ValueError: some layers ran, but not all of those asked for by number.
        """
        missing = [name for module, name in self.names.items() if module not in self._layers]
        if self._all_wanted and self._layers and missing:
            raise ValueError(f"layers must name layers that the model runs, got none of {', '.join(missing)}")
        self._progress.begin("joining", len(self._layers))
        self._store.finish(self._progress.advance)

    def _record(self, module: torch.nn.Module, call: Call) -> None:
        layer = self._layers.get(module)
        if layer is None:
            self._check_order(module)
            sight, first_key = self._read_sight(call), 0
        else:
            self._check_continues(layer, call)
            sight, first_key = continued(layer.sight, call)
        key = call.key[:, :, : sight.n_keys - first_key]
        piece = self._piece(call, key, sight, first_key)
        if layer is None:
            self._store.begin(piece)
        else:
            self._store.append(layer.number, piece)
        number = len(self._layers) if layer is None else layer.number
        self._layers[module] = _Layer(number, sight, key[:, :, -_REMEMBERED:].clone())
        self._progress.advance()

    def _check_order(self, module: torch.nn.Module) -> None:
        """Layers of the cache are numbered as they arrive, so they must arrive in the order of the model."""
        later = [known for known in self._layers if list(self.names).index(known) > list(self.names).index(module)]
        if later:
            raise ValueError(
                f"it runs after {self.names[later[-1]]}; give capture the part of the model whose layers run in order"
            )

    def _read_sight(self, call: Call) -> Sight:
        if call.mask is None:
            return read_sight(call)
        known = self._sights.setdefault(call.mask, {})
        version = 0 if call.mask.is_inference() else call.mask._version  # inference mode does not count changes
        key = (version, call.query.shape[2], call.key.shape[2], call.window, call.causal)
        if key not in known:
            known[key] = read_sight(call)
        found: Sight = known[key]
        return found

    def _check_continues(self, layer: _Layer, call: Call) -> None:
        """The call's keys must be those of the layer, or their end, and then its queries' own.

        Raises:
            ValueError: they are not.
        """
        import torch  # noqa: PLC0415

        n_before, n_new, n_given = layer.sight.n_keys, call.query.shape[2], call.key.shape[2]
        if call.query.shape[0] != layer.last_keys.shape[0]:
            raise ValueError(
                f"a layer must keep its batch size, got {call.query.shape[0]} after {layer.last_keys.shape[0]}"
            )
        n_old = min(n_given, n_before + n_new) - n_new
        if n_old <= 0 or not layer.sight.causal or (n_old < n_before and layer.sight.window is None):
            raise ValueError(
                f"one capture holds one run over a text, got {n_new} more queries over {n_given} keys that do not "
                f"continue the {n_before} before: open another capture for another text; generate with use_cache=True; "
                "a layer that a model runs several times in one forward cannot be captured"
            )
        n_known = min(n_old, layer.last_keys.shape[2])
        now = call.key[:, :, n_old - n_known : n_old]
        before = layer.last_keys[:, :, layer.last_keys.shape[2] - n_known :]
        if not torch.equal(now.nan_to_num(), before.nan_to_num()):
            raise ValueError(
                f"one capture holds one run over a text, got other keys before position {n_before} than there were: "
                "beam search reorders them (use num_beams=1), and another text needs another capture"
            )

    def _piece(self, call: Call, key: torch.Tensor, sight: Sight, first_key: int) -> Piece:
        """The chosen heads of a call, in CPU memory."""
        query, sinks = call.query, call.sinks
        n_heads, n_key_heads = query.shape[1], key.shape[1]
        if self._heads is not None:
            heads = selected(self._heads, n_heads, "heads")
            query = query[:, heads]
            key = key[:, key_heads_for(heads, n_heads, n_key_heads)]
            sinks = None if sinks is None else sinks[heads]
        return Piece(
            query=_on_cpu(query),
            key=_on_cpu(key),
            sight=sight,
            first_key=first_key,
            scale=call.scale,
            softcap=call.softcap,
            sinks=None if sinks is None else sinks.float().cpu().numpy().astype(np.float32),
        )


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in CPU memory, float64 narrowed."""
    return (tensor.float() if str(tensor.dtype) == "torch.float64" else tensor).cpu()
