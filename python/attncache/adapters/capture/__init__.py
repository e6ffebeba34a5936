"""``attncache.capture``: the attention of a Hugging Face model into a cache, while the model runs as it always does.

interface.py is the only part that touches transformers. calls.py reads what an attention function received and returned,
masks.py what its queries see, weights.py whether that is what it computed. modules.py names a model's layers, recorder.py
decides which of them a call belongs to, growth.py how it goes on with it, and stores.py keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy.typing as npt

from attncache.adapters.capture.interface import listening
from attncache.adapters.capture.modules import attention_modules
from attncache.adapters.capture.recorder import Recorder
from attncache.adapters.capture.stores import DenseLayers, FactoredLayers
from attncache.array_input import StoredDType, stored_dtype
from attncache.cache import AttentionCache
from attncache.progress import Meter, Progress, checked_progress
from attncache.selections import Selector

if TYPE_CHECKING:
    import torch


class Capture(AbstractContextManager["AttentionCache"]):
    """A capture that begins with its ``with`` statement and ends with it."""

    def __init__(self, context: AbstractContextManager[AttentionCache]) -> None:
        self._context = context

    def __enter__(self) -> AttentionCache:
        return self._context.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._context.__exit__(kind, error, traceback)  # which lets every exception pass

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"a capture has no attribute {name!r} before it begins: with attncache.capture(model) as cache: model(..)"
        )


def capture(
    model: torch.nn.Module,
    store: Literal["pattern", "qk"] = "pattern",
    layers: Selector = None,
    heads: Selector = None,
    dtype: npt.DTypeLike | StoredDType | None = "float16",
    *,
    progress: Progress = False,
    into: str | PathLike[str] | None = None,
) -> Capture:
    """Capture the attention of a Hugging Face model while it runs.

    The model keeps its attention backend, and computes the same bits as without a capture (compiled code runs
    uncompiled meanwhile). Captures may be nested, and several models captured at once. A capture hears its own thread
    alone: forwards of the same model in other threads are neither recorded nor disturbed.

    One capture holds one run over a batch of texts: a forward, or a ``generate`` whose steps append to the layers, so
    that the cache holds one causal pattern over prompt and answer once the context is left (the rows of later steps
    join dense layers only then). A second text needs a second capture.

    What is stored is compared with what the attention function returned or put out, on every row of small calls and of
    functions that are not transformers' own, on 16 rows of others. A query that sees no key, as the padding at the left
    of a batch, has a row of zeros. Dropout is not part of a pattern.

    Args:
        model: a model of transformers, or the part of one whose attention is wanted, such as ``model.get_encoder()``.
            Encoder-decoders and multimodal models are captured whole; ``cache.sources`` tells their layers apart.
        store: "pattern" computes dense layers as the model runs, one at a time, under any mask; "qk" keeps queries and
            keys after rotary embedding, far fewer bytes for long texts, and the cache computes weights when asked. Its
            masks must be causal, windows and hidden keys.
        layers: which layers, a selector over the model's attention layers in their order; they keep that order.
        heads: which query heads of each layer, a selector; they keep the order of the selector.
        dtype: what the layers are stored as, as for AttentionCache; None keeps the model's own.
        progress: True for a bar on stderr over the layers, once they take longer than a second, or a callable that is told
            (done, total) after each layer, of every forward anew; None and False for neither.
        into: None, or a directory for ``AttentionCache.create``, without layers yet: each layer goes there as it comes,
            so that memory holds one at a time. The steps of a ``generate`` join their layers at the end, until when
            memory holds what they add.

    Returns:
        A context manager. It gives an AttentionCache with one layer for each chosen layer that has run, in that order:
        patterns [batch, head, query, key], or queries and keys. Its ``sources`` name their modules. With ``into`` it is
        the directory's cache; close it when done.

    Raises:
        TypeError: model is not a module, or an argument of the wrong kind. ImportError: torch or transformers is
            missing or too old. IndexError: a layer or head is out of range.
        OSError: the directory cannot be written, or another writer has it open.
        ValueError: no attention of the model can be captured, or into holds layers or other files. From the model's
            forward: its function did not compute the softmax of its queries, keys and mask and returned no weights; they
            cannot be carried by queries and keys; the call continues no run so far; or beam search reordered the batch.
            At the end: chosen layers did not run, or attention ran that cannot be heard. After any exception the model
            is as it was, and the cache holds what came before, its steps not joined.

    Warns:
        CaptureWarning: nothing ran, or not every layer, or there was dropout.

    Example::

        with attncache.capture(model) as cache:
            model(**tokenizer("They sat on the bank", return_tensors="pt"))
        cache.top_k(5, positions=-1)
    """
    return Capture(_captured(model, store, (layers, heads), dtype, progress=progress, into=into))


@contextmanager
def _captured(
    model: torch.nn.Module,
    store: Literal["pattern", "qk"],
    chosen: tuple[Selector, Selector],
    dtype: npt.DTypeLike | StoredDType | None,
    *,
    progress: Progress,
    into: str | PathLike[str] | None,
) -> Iterator[AttentionCache]:
    """``capture``, with the chosen layers and heads as one value."""
    _check_arguments(model, store, progress)
    stored = stored_dtype(dtype)
    modules = attention_modules(model)
    _check_modules(model, modules)
    shown = Meter(progress)
    with ExitStack() as after_failure:
        cache = AttentionCache(stored) if into is None else _empty_directory(into, stored, after_failure)
        layers_of_cache = DenseLayers(cache, stored) if store == "pattern" else FactoredLayers(cache, into is not None)
        recorder = Recorder(model, modules, *chosen, layers_of_cache, meter=shown)
        try:
            with _hooked(model, recorder), listening(recorder):
                yield cache
            recorder.finish()
        finally:
            shown.close()
        after_failure.pop_all()


def _empty_directory(into: str | PathLike[str], dtype: StoredDType | None, after_failure: ExitStack) -> AttentionCache:
    """A cache on disk without layers, to be closed if the capture fails.

    Raises:
        OSError: the directory cannot be written, or another writer has it open. ValueError: it holds layers or other files.
    """
    cache = AttentionCache.create(into, dtype)
    after_failure.callback(cache.close)
    if not cache.is_empty:
        raise ValueError(f"into must be a directory without layers, got {into} with {cache.n_layers}")
    return cache


@contextmanager
def _hooked(model: torch.nn.Module, recorder: Recorder) -> Iterator[None]:
    """The recorder sees every forward of its modules until the context ends."""
    with ExitStack() as hooks:

        def keep(handle: Any) -> None:
            hooks.callback(handle.remove)

        keep(model.register_forward_pre_hook(recorder.before_model))
        for module in recorder.names:
            keep(module.register_forward_pre_hook(recorder.before_forward, with_kwargs=True))
            keep(module.register_forward_hook(recorder.after_forward))
        for module in recorder.unheard:
            keep(module.register_forward_hook(recorder.after_unheard))
        keep(model.register_forward_hook(recorder.after_model, always_call=True))
        yield


def _check_arguments(model: Any, store: Any, progress: Any) -> None:
    """Refuse arguments and packages that cannot be used.

    Raises:
        TypeError, ValueError: one of these arguments is not what it must be. ImportError: a package is missing.
    """
    try:
        import torch  # noqa: PLC0415
        import transformers  # noqa: PLC0415
        from transformers.modeling_utils import AttentionInterface  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(f"capture needs torch and transformers ({error}): pip install torch transformers") from error
    if not (hasattr(AttentionInterface, "get_interface") and hasattr(torch.compiler, "set_stance")):
        versions = f"{transformers.__version__} and {torch.__version__}"
        raise ImportError(f"capture needs transformers 5.1 and torch 2.6, or newer, got {versions}")
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}{_what_to_pass(model)}")
    if store not in ("pattern", "qk"):
        raise ValueError(f"store must be 'pattern' or 'qk', got {store!r}")
    checked_progress(progress)


def _check_modules(model: torch.nn.Module, modules: dict[torch.nn.Module, str]) -> None:
    """Refuse models without layers to capture.

    Raises:
        ValueError: nothing in the model can be captured.
    """
    name = type(model).__name__
    if not modules:
        raise ValueError(
            f"{name} cannot be captured: none of its modules uses transformers' attention interface{_what_to_pass(model)}; "
            "run it with output_attentions=True, if it has that, and pass what it returns to "
            "AttentionCache.from_attentions"
        )


def _what_to_pass(given: Any) -> str:
    """The model inside what another library has wrapped around it, as the end of an error; "" if there is none."""
    import torch  # noqa: PLC0415

    for name in ("original_model", "_model", "model", "module"):
        inner = getattr(given, name, None)
        if isinstance(inner, torch.nn.Module) and attention_modules(inner):
            return f"; pass its .{name}, and run that"
    return ""
