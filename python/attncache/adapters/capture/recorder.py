"""Follows the attention calls of one model, layer by layer, and decides what each adds to which layer."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attncache.adapters.capture.calls import Call, read_call
from attncache.adapters.capture.checked import checked_piece
from attncache.adapters.capture.growth import Growth, Step, is_repeated, next_step, remembered
from attncache.adapters.capture.interface import Heard
from attncache.adapters.capture.masks import Sight, read_sight, used_keys
from attncache.adapters.capture.modules import sources_of, unheard_modules
from attncache.adapters.capture.stores import LayerStore
from attncache.layer_source import LayerSource
from attncache.notices import CaptureWarning
from attncache.progress import Meter
from attncache.selections import Selector
from attncache.taking import indices

if TYPE_CHECKING:
    import torch

_CROSS_ARGUMENTS = ("key_value_states", "encoder_hidden_states", "cross_attention_states")
_BEAM_SEARCH = (
    "the model's cache was reordered, as beam search does, so that an item of the batch is no longer one text: use "
    "num_beams=1, or capture one forward over the text that it chose"
)
_SHOWN = 5  # names in a warning


class Recorder:
    """Listens to attention calls of its thread and hands those of one model's chosen layers and heads to a store.

    Args:
        model: the model.
        modules: its attention modules with their paths, in the order of the layers.
        layers, heads: which of them to keep.
        store: where they go.
        meter: told of each layer.

    Raises:
        IndexError, TypeError: layers does not select from these modules.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        modules: dict[torch.nn.Module, str],
        layers: Selector,
        heads: Selector,
        store: LayerStore,
        *,
        meter: Meter,
    ) -> None:
        from torch.utils.weak import WeakIdKeyDictionary  # noqa: PLC0415

        wanted = set(indices(layers, len(modules), "layers", "n_layers"))
        self._model = model
        self.names = {
            module: f"layer {number} ({path or type(module).__name__})"
            for number, (module, path) in enumerate(modules.items())
            if number in wanted
        }
        self._sources = sources_of(model, modules)
        self.unheard = unheard_modules(model, modules)
        self._was_chosen = layers is not None
        self._heads = heads
        self._store = store
        self._meter = meter
        meter.begin("capturing", len(self.names))
        self._layers: dict[tuple[torch.nn.Module, int], Growth] = {}
        self._heard: set[torch.nn.Module] = set()  # in the forward that runs
        self._caches: dict[torch.nn.Module, tuple[Any, int]] = {}  # of keys, and what each module's layer of it held
        self._across: set[torch.nn.Module] = set()  # modules that were given another sequence
        self._calls: Counter[torch.nn.Module] = Counter()  # in the forward that runs: the model's, or a module's own
        self._ran: set[torch.nn.Module] = set()  # of those that cannot be heard
        self._in_model = self._ran_elsewhere = self._had_dropout = self._was_reordered = False
        self._sights: Any = WeakIdKeyDictionary()  # a mask is read once, though every layer brings it
        self._thread = threading.get_ident()

    # ---- what happens in the model

    def before_model(self, *_: Any) -> None:
        """A forward hook before the whole model: calls of a module are counted from here."""
        if threading.get_ident() == self._thread:
            self._calls, self._in_model = Counter(), True

    def after_model(self, *_: Any) -> None:
        """A forward hook after the whole model, also where it failed."""
        if threading.get_ident() == self._thread:
            self._in_model = False

    def before_forward(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward hook before every chosen module: which cache of keys it was given, and whether it looks across."""
        if threading.get_ident() != self._thread:
            return
        if not self._in_model:
            self._calls[module] = 0
        caches = [value for value in (*args, *kwargs.values()) if hasattr(value, "get_seq_length")]
        if caches:
            cache = getattr(caches[0], "self_attention_cache", caches[0])
            self._caches[module] = cache, _length_of(cache, module)
        if any(kwargs.get(name) is not None for name in _CROSS_ARGUMENTS):
            self._across.add(module)

    def after_forward(self, module: torch.nn.Module, *_: Any) -> None:
        """A forward hook of every chosen module.

        Raises:
            ValueError: the module computed its attention without the interface.
        """
        if threading.get_ident() != self._thread:
            self._ran_elsewhere = True
            return
        self._caches.pop(module, None)
        if module not in self._heard:
            raise ValueError(
                f"{self.names[module]} cannot be captured: it computed its attention without transformers' attention "
                'interface; choose another backend, such as model.set_attn_implementation("sdpa")'
            )
        self._heard.discard(module)

    def after_unheard(self, module: torch.nn.Module, *_: Any) -> None:
        """A forward hook of every module that looks like attention and cannot be heard."""
        if threading.get_ident() == self._thread:
            self._ran.add(module)

    def reordered(self) -> None:
        self._was_reordered = self._was_reordered or bool(self._layers)

    def heard(self, call: Heard) -> None:
        """Record one attention call.

        Raises:
            ValueError: the layer cannot be captured; the message names it.
        """
        import torch  # noqa: PLC0415 (loaded already: it made the model)

        module = call.args[0] if call.args else call.kwargs.get("module")
        if module not in self.names:
            return
        self._heard.add(module)
        with torch.no_grad():
            try:
                self._record(module, read_call(call))
            except ValueError as error:
                raise ValueError(f"{self.names[module]} cannot be captured: {error}") from error

    # ---- what it adds

    def _record(self, module: torch.nn.Module, call: Call) -> None:
        if self._was_reordered:
            raise ValueError(_BEAM_SEARCH)
        turn = self._calls[module]
        self._calls[module] += 1
        layer, source = self._layers.get((module, turn)), self._source_of(module, turn)
        if layer is None:
            step = self._first_step(module, call, source)
        elif not self._in_model and is_repeated(layer, call):  # a backward pass runs a checkpointed layer anew
            return
        else:
            step = next_step(layer, call)
        self._had_dropout = self._had_dropout or call.has_dropout
        piece = checked_piece(call, step, source, self._heads)
        if layer is None:
            self._store.begin(piece)
        else:
            self._store.append(layer.number, piece)
        number = len(self._layers) if layer is None else layer.number
        self._layers[module, turn] = Growth(
            number, step.n_keys, call.n_queries, step.sight, source.kind == "cross", *remembered(call, step)
        )
        self._meter.advance()

    def _source_of(self, module: torch.nn.Module, turn: int) -> LayerSource:
        source = replace(self._sources[module], call=turn)
        return replace(source, kind="cross") if module in self._across else source

    def _first_step(self, module: torch.nn.Module, call: Call, source: LayerSource) -> Step:
        """What the first call of a layer sees, and where its keys begin."""
        why_not = None
        try:
            sight: Sight | None = self._read_sight(call, is_cross=source.kind == "cross")
        except ValueError as error:
            sight, why_not = None, str(error)
        if source.kind == "cross":
            return Step(call.key.shape[2], 0, sight, why_not)
        n_used = used_keys(call) if sight is None else sight.n_keys
        total = self._n_keys_so_far(module, call, n_used)
        first_key = total - n_used
        if sight is not None and first_key:
            import torch  # noqa: PLC0415 (loaded already: it made the model)

            shown = torch.ones(1, n_used, dtype=torch.bool) if sight.key_mask is None else sight.key_mask
            forgotten = torch.zeros(len(shown), first_key, dtype=torch.bool)
            sight = replace(sight, n_keys=total, key_mask=torch.cat([forgotten, shown], dim=1))
        return Step(total, first_key, sight, why_not)

    def _n_keys_so_far(self, module: torch.nn.Module, call: Call, n_used: int) -> int:
        """How many keys the text has, also where the layer's cache keeps only the last ones."""
        if module not in self._caches or call.n_queries == n_used:
            return n_used
        cache, before = self._caches[module]
        own = _length_of(cache, module)
        if own and own == before:  # the module reads a cache, and adds its own keys only for itself
            return max(n_used, own + call.n_queries)
        return max([n_used, *(_length(layer) for layer in getattr(cache, "layers", ()))])

    def _read_sight(self, call: Call, *, is_cross: bool) -> Sight:
        if call.mask is None:
            return read_sight(call, is_cross=is_cross)
        known = self._sights.setdefault(call.mask, {})
        version = 0 if call.mask.is_inference() else call.mask._version  # inference mode does not count changes
        key = (version, call.query.shape[2], call.key.shape[2], call.window, call.causal, is_cross)
        if key not in known:
            try:
                known[key] = read_sight(call, is_cross=is_cross)
            except ValueError as error:
                known[key] = error
        if isinstance(known[key], ValueError):
            raise known[key]
        found: Sight = known[key]
        return found

    # ---- the end

    def finish(self) -> None:
        """Make every layer whole, and say what is missing.

        Raises:
            ValueError: some layers ran, but not all of those asked for by number; beam search reordered their texts; or
                attention ran that cannot be heard.
        """
        if self._was_reordered:
            raise ValueError(f"the capture is not of one text in each item of the batch: {_BEAM_SEARCH}")
        ran = {module for module, _ in self._layers}
        missing = [name for module, name in self.names.items() if module not in ran]
        if self._was_chosen and self._layers and missing:
            raise ValueError(f"layers must name layers that the model runs, got none of {_listed(missing)}")
        self._meter.begin("joining", len(self._layers))
        self._store.finish(self._meter.advance)
        unheard = [path for module, path in self.unheard.items() if module in self._ran and not self._was_chosen]
        why = f"{'does' if len(unheard) == 1 else 'do'} not use transformers' attention interface"
        layers = [path for path in unheard if any(part.isdecimal() for part in path.split("."))]
        if layers:
            raise ValueError(
                f"{type(self._model).__name__} was captured in part: {_listed(layers)} ran and {why}. Run the model with "
                "output_attentions=True under eager attention for them; to capture the others alone, choose them with "
                "layers=, or give capture their part of the model"
            )
        self._warn(missing, f"{_listed(unheard)} ran and {why}" if unheard else "")

    def _warn(self, missing: list[str], unheard: str) -> None:
        """Say in one warning all that the capture did not hear; ``unheard`` says it of modules beside the layers."""
        name = type(self._model).__name__
        what = [unheard] if unheard else []
        if not self.names:
            return
        if not self._layers and self._ran_elsewhere:
            what.append(f"the capture saw no attention of this {name}: it ran in another thread than the capture")
        elif not self._layers:
            what.append(
                f"the capture saw no attention of this {name}: was it another object than the one given that ran? A copy, "
                "a compiled or wrapped model, or a pipeline's own model must be given to capture itself"
            )
        elif missing:
            n_missing = f"{len(missing)} of {len(self.names)}"
            what.append(f"{n_missing} attention layers did not run in this capture: {_listed(missing)}")
        if self._had_dropout:
            what.append(
                "the model ran with dropout: the capture holds the weights before dropout, which could not be compared "
                "with what the model computed; model.eval() switches dropout off"
            )
        if what:
            warnings.warn(". ".join(what), CaptureWarning, stacklevel=7)


def _length_of(cache: Any, module: torch.nn.Module) -> int:
    """How many keys a module's own layer of a cache has seen; 0 if it has none."""
    number = getattr(module, "layer_idx", None)
    layers = getattr(cache, "layers", ())
    return _length(layers[number]) if isinstance(number, int) and 0 <= number < len(layers) else 0


def _length(layer: Any) -> int:
    """How many keys one layer of a cache has seen; 0 if it is not of attention."""
    try:
        return int(layer.get_seq_length())
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return 0


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
