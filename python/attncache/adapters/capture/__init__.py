"""``attncache.capture``: the attention of any PyTorch model into a cache, while the model runs as it always does.

seams/ hears attention, each as one value of calls.py. places.py says where in the model it was (running.py, modules.py,
heads.py), chosen.py whether it is wanted. masks.py reads what queries see, weights.py computes whether that is what the model
computed (checked.py). recorder.py decides which layer a call belongs to (hooks.py tells it of forwards, missed.py what was not
heard), growth.py how it goes on with it, and stores.py keeps it. opening.py holds the arguments, forwards.py captures run after run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Literal

import numpy.typing as npt

from attncache.adapters.capture.opening import Capture, Settings
from attncache.array_input import StoredDType, stored_dtype
from attncache.cache import AttentionCache
from attncache.progress import Meter, Progress
from attncache.selections import Selector

if TYPE_CHECKING:
    import torch

    from attncache.adapters.capture.chosen import Layers


def capture(
    model: torch.nn.Module,
    store: Literal["pattern", "qk"] = "pattern",
    layers: Layers = None,
    heads: Selector = None,
    dtype: npt.DTypeLike | StoredDType | None = "float16",
    *,
    n_heads: int | None = None,
    check: bool = True,
    progress: Progress = False,
    into: str | PathLike[str] | None = None,
) -> Capture[AttentionCache]:
    """Capture the attention of a PyTorch model while it runs.

    Attention is heard in three places: transformers' attention interface, ``scaled_dot_product_attention``, and a softmax whose
    result is a factor of a matrix product. The model keeps its attention backend, and computes the same bits as without a
    capture (compiled code runs uncompiled meanwhile, and ``torch.nn``'s attention layers leave their fused path, which
    rounds otherwise). Captures may be nested, and several models captured at once. A capture hears its own thread alone:
    forwards of the same model in other threads are neither recorded nor disturbed.

    One capture holds one run over a batch: a forward, or a ``generate`` whose steps append to the layers, so that the cache holds
    one causal pattern over prompt and answer once the context is left (the rows of later steps join dense layers only then).
    A second run needs a second capture, or ``attncache.capture_runs``.

    What is stored is compared with what the attention function returned or put out, on every row of small calls and of functions
    that are neither PyTorch's nor transformers' own, on 16 rows of others; the result of a softmax is itself what is stored. A
    query that sees no key, as the padding at the left of a batch, has a row of zeros where the mask is heard. Dropout is not
    part of a pattern.

    Args:
        model: the model, or the part of one whose attention is wanted, such as ``model.get_encoder()``. Encoder-decoders and
            multimodal models are captured whole; ``cache.sources`` tells their layers apart.
        store: "pattern" computes dense layers as the model runs, one at a time, under any mask; "qk" keeps queries and
            keys after rotary embedding, far fewer bytes for long texts, and the cache computes weights when asked. A layer
            whose weights these do not give (a mask other than causal, windows and hidden keys, a bias, a softmax alone)
            becomes a pattern, and a warning names it.
        layers: which layers. Names of modules, or one name, choose these modules and all that they hold; ``*`` stands for any
            part of a path ("blocks.*.attn"). A selector chooses by number: over the modules that use transformers'
            interface where a model has some, otherwise from 0 on in the order in which modules compute attention.
        heads: which query heads of each layer, a selector; they keep the order of the selector.
        dtype: what the layers are stored as, as for AttentionCache; None keeps the model's own.
        n_heads: how many heads there are in tensors [batch * heads, query, key]; None takes the module's own number.
        check: False stores what was heard without comparing it.
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
        TypeError: model is not a module, or an argument of the wrong kind. ImportError: torch is missing or too old.
        IndexError: a layer or head is out of range.
        OSError: the directory cannot be written, or another writer has it open.
        ValueError: layers names no module, or into holds layers or other files. From the model's forward: its function did not
            compute the softmax of its queries, keys and mask and returned no weights; a later call of a layer of queries and keys
            has weights that these do not give; n_heads is needed; the call continues no run so far; or beam search reordered the batch.
            At the end: chosen layers did not run, or attention ran and none of it was heard. After any exception the model
            is as it was, and the cache holds what came before, its steps not joined.

    Warns:
        CaptureWarning: nothing ran, or not every layer; attention ran that was not heard; layers are patterns where queries
            and keys were asked for; or there was dropout.

    Example::

        with attncache.capture(model) as cache:
            model(**tokenizer("They sat on the bank", return_tensors="pt"))
        cache.top_k(5, positions=-1)
    """
    settings = Settings(store, layers, heads, stored_dtype(dtype), n_heads, check)
    settings.check_with(model, progress)
    return Capture(_captured(model, settings, progress=progress, into=into))


@contextmanager
def _captured(
    model: torch.nn.Module, settings: Settings, *, progress: Progress, into: str | PathLike[str] | None
) -> Iterator[AttentionCache]:
    """``capture`` with checked arguments."""
    from attncache.adapters.capture.hooks import Hooked  # noqa: PLC0415 (loaded by the first capture)
    from attncache.adapters.capture.seams.listening import listening  # noqa: PLC0415 (loaded by the first capture)

    shown = Meter(progress)
    with ExitStack() as after_failure:
        dtype = settings.dtype
        cache = AttentionCache(dtype) if into is None else _empty_directory(into, dtype, after_failure)
        hooked = Hooked.of(model, settings.n_heads)
        recorder = hooked.hooks.watcher = settings.recorder(hooked, cache, shown, is_on_disk=into is not None)
        try:
            with hooked.hooks.attached(), listening(recorder):
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
