"""Hears the attention functions of transformers without changing a model, and reads what they receive and return.

Attention modules ask ``AttentionInterface.get_interface`` for their function at every forward. While anybody listens,
that method hands out the same function with a listener behind it; the configuration of the model, its masks and the
function itself stay what they are. Caches of keys tell when they are reordered, as beam search does. A transformers
without that method is heard where its functions call PyTorch's.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from attncache.adapters.capture.calls import Call
from attncache.adapters.capture.seams.listening import Heard, one_seam, tell

if TYPE_CHECKING:
    import torch

_NAMES = ("module", "query", "key", "value", "attention_mask")
_BEYOND_QUERIES_AND_KEYS = {
    "sinks": "its sinks depend on the input (sinks)",
    "indices": "it attends to a sparse choice of keys (indices)",
    "block_indices": "it attends to a sparse choice of blocks (block_indices)",
    "cu_seq_lens_q": "several sequences are packed into one (cu_seq_lens_q)",
    "cache": "its keys lie in a paged cache (cache)",
}


@contextmanager
def open_interface() -> Iterator[None]:
    """Have every attention function reported until the context ends; without transformers there is nothing to do."""
    with ExitStack() as undo:
        if "transformers" in sys.modules:
            from transformers import cache_utils  # noqa: PLC0415
            from transformers.modeling_utils import AttentionInterface  # noqa: PLC0415

            if hasattr(AttentionInterface, "get_interface"):
                _replace(AttentionInterface, "get_interface", _reporting, undo)
            for kind in (cache_utils.Cache, cache_utils.EncoderDecoderCache):
                if hasattr(kind, "reorder_cache"):
                    _replace(kind, "reorder_cache", _telling, undo)
        yield


def _replace(owner: type, name: str, wrapped: Callable[[Any], Any], undo: ExitStack) -> None:
    original = getattr(owner, name)
    was_its_own = name in vars(owner)
    undo.callback(setattr, owner, name, original) if was_its_own else undo.callback(delattr, owner, name)
    setattr(owner, name, wrapped(original))


def _reporting(get_interface: Callable[..., Any]) -> Callable[..., Any]:
    """``get_interface`` whose functions report their calls."""

    @functools.wraps(get_interface)
    def get_reporting_interface(self: Any, attn_implementation: str | None, default: Callable[..., Any]) -> Any:
        function = get_interface(self, attn_implementation, default)

        @functools.wraps(function)
        def attention(*args: Any, **kwargs: Any) -> Any:
            with one_seam():
                result = function(*args, **kwargs)
            given = dict(zip(_NAMES, args, strict=False)) | kwargs
            query = given["query"]

            def read(_: int | None) -> Call:
                return _read(given, attn_implementation or "eager", function, result)

            tell(lambda who: who.heard(Heard("interface", given["module"], tuple(query.shape[:-2]), read)))
            return result

        return attention

    return get_reporting_interface


def _telling(reorder_cache: Callable[..., Any]) -> Callable[..., Any]:
    """``reorder_cache`` that tells of its calls."""

    @functools.wraps(reorder_cache)
    def reorder_and_tell(self: Any, *args: Any, **kwargs: Any) -> Any:
        tell(lambda who: who.reordered())
        return reorder_cache(self, *args, **kwargs)

    return reorder_and_tell


def _read(given: dict[str, Any], implementation: str, function: Callable[..., Any], result: Any) -> Call:
    """The call of an attention function, from its arguments and what it returned."""
    import torch  # noqa: PLC0415 (loaded already: it made the model)

    module, query, key = given["module"], given["query"].detach(), given["key"].detach()
    reason = next((text for name, text in _BEYOND_QUERIES_AND_KEYS.items() if given.get(name) is not None), None)
    mask = given.get("attention_mask")
    if mask is not None and not isinstance(mask, torch.Tensor):
        reason = (
            f"attention_mask must be None or a tensor, got {type(mask).__name__}; choose another backend, such as "
            'model.set_attn_implementation("sdpa")'
        )
        mask = None
    output, weights = _returned(result, query, key)
    is_causal, scale, window = given.get("is_causal"), given.get("scaling"), given.get("sliding_window")
    sinks, bias = given.get("s_aux"), given.get("position_bias")
    return Call(
        query=query,
        key=key,
        value=given["value"].detach(),
        mask=mask,
        bias=None if bias is None else bias.detach(),
        causal=implementation != "eager"
        and bool(getattr(module, "is_causal", True) if is_causal is None else is_causal),
        window=window if isinstance(window, int) and window > 0 else None,
        applies_window="flash" in implementation,
        scale=float(query.shape[-1] ** -0.5 if scale is None else scale),
        softcap=given.get("softcap"),
        sinks=None if sinks is None else sinks.detach(),
        output=output,
        weights=weights,
        has_dropout=bool(module.training and (given.get("dropout") or 0) > 0),
        is_trusted=getattr(function, "__module__", "").partition(".")[0] == "transformers",
        reason=reason,
    )


def _returned(result: Any, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The output [batch, query, head, item] and the weights [batch, head, query, key], where they are that."""
    import torch  # noqa: PLC0415

    output, weights, *_ = (*result, None) if isinstance(result, tuple) else (result, None)
    batch, n_heads, n_queries, _ = query.shape
    if not isinstance(output, torch.Tensor) or output.shape[:-1] != (batch, n_queries, n_heads):
        output = None
    if (
        not isinstance(weights, torch.Tensor)
        or weights.ndim != 4
        or weights.shape[:3] != query.shape[:3]
        or weights.shape[3] < key.shape[2]
    ):
        weights = None
    return (
        None if output is None else output.detach(),
        None if weights is None else weights.detach()[..., : key.shape[2]],
    )
