"""Follows the attention of one model, layer by layer, and decides what each call adds to which layer."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attncache.adapters.capture.calls import Call, Weights, with_batch_first
from attncache.adapters.capture.checked import checked_piece
from attncache.adapters.capture.chosen import ChosenLayers
from attncache.adapters.capture.growth import ONLY_WEIGHTS, Growth, Step, is_repeated, next_step, remembered
from attncache.adapters.capture.hooks import Hooked
from attncache.adapters.capture.masks import Sight, read_sight, used_keys
from attncache.adapters.capture.missed import Missed, became_patterns, listed
from attncache.adapters.capture.modules import related
from attncache.adapters.capture.places import cross_arguments
from attncache.adapters.capture.running import Running
from attncache.adapters.capture.seams.listening import Heard
from attncache.adapters.capture.stores import LayerStore
from attncache.layer_source import LayerSource
from attncache.notices import CaptureWarning, warn_user
from attncache.progress import Meter
from attncache.selections import Selector

if TYPE_CHECKING:
    import torch

_BEAM_SEARCH = (
    "the model's cache was reordered, as beam search does, so that an item of the batch is no longer one text: use "
    "num_beams=1, or capture one forward over the text that it chose"
)
BETWEEN = ("contextlib.py", "torch/nn/modules/module.py")  # files between the end of a capture and the user's line


class Recorder:
    """Listens to the attention of its thread and hands that of one model's chosen layers and heads to a store.

    Args:
        hooked: the model, whose hooks tell this recorder.
        layers: which of its layers to keep.
        heads: which heads.
        store: where they go.
        meter: told of each layer.
        check: whether what is stored is compared with what the model computed.

    Raises:
        IndexError, TypeError, ValueError: layers does not select from this model.
    """

    def __init__(
        self,
        hooked: Hooked,
        layers: ChosenLayers,
        heads: Selector,
        store: LayerStore,
        *,
        meter: Meter,
        check: bool = True,
    ) -> None:
        from torch.utils.weak import WeakIdKeyDictionary  # noqa: PLC0415

        _, self._places, self._hooks = hooked
        self._chosen = layers
        self._heads = heads
        self._store = store
        self._meter = meter
        self._check = check
        meter.begin("capturing", max(1, len(layers.chosen(hooked.places.interface or hooked.places.looks))))
        self._layers: dict[tuple[torch.nn.Module, int], Growth] = {}
        self._names: list[str] = []  # of the layers, in their order
        self._missed = Missed(type(hooked.model).__name__)
        self._heard_now: set[str] = set()  # paths of modules that run, and whose attention was heard
        self._caches: dict[torch.nn.Module, tuple[Any, int]] = {}  # of keys, and what each module's layer of it held
        self._across: set[torch.nn.Module] = set()  # modules that were given another sequence
        self._calls: Counter[torch.nn.Module] = Counter()  # in the forward that runs: the model's, or a module's own
        self._in_model = self._was_reordered = False
        self._sights: Any = WeakIdKeyDictionary()  # a mask is read once, though every layer brings it
        self._thread = threading.get_ident()

    # ---- what happens in the model

    def before_model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model is called: calls of a module are counted from here."""
        if threading.get_ident() == self._thread:
            self._calls, self._in_model = Counter(), True
            self._places.read_inputs((*args, *kwargs.values()))
        else:
            self._missed.is_elsewhere = True

    def after_model(self) -> None:
        """The model returns, or failed."""
        if threading.get_ident() == self._thread:
            self._in_model = False

    def before_forward(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module that computes attention is called: with which cache of keys, and whether it looks across."""
        if threading.get_ident() != self._thread:
            return
        if not self._in_model:
            self._calls[module] = 0
        caches = [value for value in (*args, *kwargs.values()) if hasattr(value, "get_seq_length")]
        if caches:
            cache = getattr(caches[0], "self_attention_cache", caches[0])
            self._caches[module] = cache, _length_of(cache, module)
        if cross_arguments(kwargs):
            self._across.add(module)

    def after_forward(self, module: torch.nn.Module) -> None:
        """A module that uses the attention interface, or looks like attention, returns.

        Raises:
            ValueError: it uses the interface, and computed attention that was heard nowhere.
        """
        if threading.get_ident() != self._thread:
            self._missed.is_elsewhere = True
            return
        path = self._places.paths[module]
        if module not in self._places.interface:
            self._missed.ran.add(path)
            return
        self._caches.pop(module, None)
        found = {other for other in self._heard_now if related(path, other)}
        if not found and self._chosen.chosen([module]):
            raise ValueError(
                f"{self._chosen.name(module)} cannot be captured: it computed its attention where it cannot be heard; choose "
                'another backend, such as model.set_attn_implementation("sdpa")'
            )
        self._heard_now -= found

    def reordered(self) -> None:
        self._was_reordered = self._was_reordered or bool(self._layers)

    def unheard(self, what: str) -> None:
        for inner in self._places.running()[:1]:
            self._missed.passed[self._places.paths[inner.module]] = what

    def heard(self, attention: Heard) -> None:
        """Record one attention.

        Raises:
            ValueError: the layer cannot be captured; the message names it.
        """
        import torch  # noqa: PLC0415 (loaded already: it made the model)

        running = self._places.running() if attention.module is None else []
        module = running[0].module if running else attention.module
        if module is None or module not in self._places.paths:
            return
        for paths in (self._missed.heard, self._heard_now):
            paths.add(self._places.paths[module])
        if not self._chosen.wants(module):
            return
        self._hooks.watch(module)
        with torch.no_grad(), _full_precision():
            try:
                n_heads = self._places.n_heads(attention.leading, running)
                call = attention.read(n_heads)
                if attention.seam != "interface" and self._places.has_heads_first(module, attention.leading):
                    call = with_batch_first(call)
                self._record(module, call, attention, running)
            except ValueError as error:
                raise ValueError(f"{self._chosen.name(module)} cannot be captured: {error}") from error

    # ---- what it adds

    def _record(
        self, module: torch.nn.Module, call: Call | Weights, attention: Heard, running: Sequence[Running]
    ) -> None:
        if self._was_reordered:
            raise ValueError(_BEAM_SEARCH)
        turn = self._calls[module]
        self._calls[module] += 1
        layer = self._layers.get((module, turn))
        source = self._places.source_of(module, call, attention, running)
        is_cross = layer.is_cross if layer is not None else module in self._across or source.kind == "cross"
        source = replace(source, call=turn, kind="cross" if is_cross else "self")
        if layer is None:
            step = self._first_step(module, call, source)
        elif not self._in_model and is_repeated(layer, call):  # a backward pass runs a checkpointed layer anew
            return
        else:
            step = next_step(layer, call)
        self._missed.has_dropout |= call.has_dropout
        piece = checked_piece(call, step, source, self._heads, check=self._check)
        if layer is None:
            self._store.begin(piece)
            self._names.append(self._chosen.name(module))
        else:
            self._store.append(layer.number, piece)
        number = len(self._layers) if layer is None else layer.number
        self._layers[module, turn] = Growth(
            number, step.n_keys, call.n_queries, step.sight, is_cross, isinstance(call, Call), *remembered(call, step)
        )
        self._meter.advance()

    def _first_step(self, module: torch.nn.Module, call: Call | Weights, source: LayerSource) -> Step:
        """What the first call of a layer sees, and where its keys begin."""
        if isinstance(call, Weights):
            return Step(call.n_given, 0, None, ONLY_WEIGHTS)
        why_not = None
        try:
            sight: Sight | None = self._read_sight(call, is_cross=source.kind == "cross")
        except ValueError as error:
            sight, why_not = None, str(error)
        if source.kind == "cross":
            return Step(call.n_given, 0, sight, why_not)
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
        mask = call.mask if call.mask_object is None else call.mask_object
        known = self._sights.setdefault(mask, {})
        version = 0 if mask.is_inference() else mask._version  # inference mode does not count changes
        key = (version, call.mask.shape, call.n_queries, call.n_given, call.window, call.causal, is_cross)
        if key not in known:
            try:
                known[key] = read_sight(call, is_cross=is_cross)
            except ValueError as error:
                known[key] = str(error)  # the error itself would keep the call
        found: Sight | str = known[key]
        if isinstance(found, Sight):
            return found
        raise ValueError(found)

    # ---- the end

    def finish(self) -> None:
        """Make every layer whole, and say what is missing.

        Raises:
            ValueError: some layers ran, but not all of those asked for; beam search reordered their texts; or attention ran,
                and none of it could be heard.
        """
        if self._was_reordered:
            raise ValueError(f"the capture is not of one text in each item of the batch: {_BEAM_SEARCH}")
        missing = self._chosen.missing(self._missed.heard)
        if not self._chosen.is_all and self._missed.heard and missing:
            raise ValueError(f"layers must name layers that the model runs, got none of {listed(missing)}")
        self._meter.begin("joining", len(self._layers))
        self._store.finish(self._meter.advance)
        if self._chosen.is_all and not self._layers:
            self._missed.check_any()
        told = [self._missed.unheard()] if self._chosen.is_all else []
        if not self._layers and not self._chosen.is_none:
            told.append(self._missed.nothing())
        elif missing:
            n_missing = f"{len(missing)} of {len(self._places.interface)}"
            told.append(f"{n_missing} attention layers did not run in this capture: {listed(missing)}")
        told += [*became_patterns(self._names, self._store.patterns), self._missed.dropout()]
        if words := ". ".join(filter(None, told)):
            warn_user(words, CaptureWarning, through=BETWEEN)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products are computed in the dtype of their tensors, also where the model runs under autocast."""
    import torch  # noqa: PLC0415 (loaded already: it made the model)

    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


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
