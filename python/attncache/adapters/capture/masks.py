"""Reads an attention mask back into causal, window and hidden keys, and proves that these give the mask again.

Masks at 32 thousand tokens hold a billion items, so everything here works through them in blocks of query rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from attncache.adapters.capture.calls import Call

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 22  # items of a mask looked at together: a few megabytes
HIDES = -1e4  # additive masks hide with this or less: exp of it is zero in every dtype
_RULE = (
    "its mask must be causal or bidirectional, optionally with a sliding window, and hide whole keys (padding), "
    "alike in all heads, for queries and keys to carry it; got {got}"
)


@dataclass(frozen=True)
class Sight:
    """Which keys the queries of a layer see.

    Attributes:
        causal: whether a query sees no key after it; the last query is aligned with the last key.
        window: None; or if causal, how many keys a query sees at most, itself included; if not, the largest distance.
        n_keys: how many keys the sequence has so far; what a static cache holds behind them is unused.
        key_mask: bool tensor of shape [batch, n_keys] in CPU memory, True where a key may be seen; None if all may.
    """

    causal: bool
    window: int | None
    n_keys: int
    key_mask: torch.Tensor | None


class _Extent(NamedTuple):
    """What one look at a mask finds: the keys anybody sees [batch, key], and how far back and ahead anybody sees."""

    seen: torch.Tensor
    back: int
    ahead: int


def read_sight(call: Call, *, is_cross: bool = False) -> Sight:
    """What the queries of a layer's first call see.

    Args:
        call: the call.
        is_cross: whether its keys are of another sequence: then no query stands at any of them, and all are in use.

    Raises:
        ValueError: causal, window and hidden keys cannot say what the mask says.
    """
    if call.mask is None or call.mask.ndim == 2:
        sight = _sight_of_backend(call)
        return replace(sight, causal=False, window=None, n_keys=call.key.shape[2]) if is_cross else sight
    n_queries = call.query.shape[2]
    mask = _three_axes(call.mask, call)
    extent = _extent(mask)
    used = extent.seen.any(dim=0).nonzero()
    n_keys = mask.shape[2] if is_cross else max(n_queries, int(used[-1]) + 1 if len(used) else 0)
    back, ahead = extent.back + n_keys - n_queries, extent.ahead - (n_keys - n_queries)
    causal_windows = [window for window in (call.window, None, back + 1) if window is None or window > max(back, 0)]
    candidates: list[tuple[bool, int | None]] = [(False, None)]
    if not is_cross:
        causal = [(True, window) for window in causal_windows] if ahead <= 0 else []
        candidates = [*causal, (False, None), (False, max(back, ahead, 0))]
    for is_causal, window in candidates:
        sight = Sight(is_causal, window, n_keys, _unless_all(extent.seen[:, :n_keys]))
        if _gives(sight, mask):
            return sight
    raise ValueError(_RULE.format(got=f"another mask of shape {list(call.mask.shape)}"))


def continued(sight: Sight, call: Call) -> tuple[Sight, int]:
    """What a layer's queries see once those of another call are appended.

    Args:
        sight: the layer before; ``sight.n_keys`` says how many keys came before.
        call: the next call: its queries are new, and its keys end with theirs.

    Returns:
        The layer after, and the position of the first key that the call was given: 0 unless the cache of the model
        keeps only the window.

    Raises:
        ValueError: the mask of the call shows other keys than the layer's causal, window and hidden keys do.
    """
    import torch  # noqa: PLC0415 (loaded already: it made the model)

    n_queries, n_given = call.query.shape[2], call.key.shape[2]
    total = sight.n_keys + n_queries
    start = max(total - n_given, 0)
    before = (
        torch.ones(call.query.shape[0], sight.n_keys, dtype=torch.bool) if sight.key_mask is None else sight.key_mask
    )
    if call.mask is not None and call.mask.ndim == 4:
        mask = _three_axes(call.mask, call)
        new = _extent(mask).seen[:, sight.n_keys - start : total - start]
    elif call.mask is None and not call.applies_window:
        mask = torch.ones(1, 1, 1, dtype=torch.bool).expand(1, n_queries, n_given)
        new = torch.ones(1, n_queries, dtype=torch.bool)
    else:  # the backend itself is causal and narrows to the window; a mask [batch, key] hides keys
        mask = None
        given = before[:, :0] if call.mask is None else call.mask.bool().cpu()
        new = given[:, -n_queries:] if call.mask is not None else torch.ones(1, n_queries, dtype=torch.bool)
    key_mask = torch.cat([before, new.expand(len(before), -1)], dim=1)
    grown = replace(sight, n_keys=total, key_mask=_unless_all(key_mask))
    if mask is not None and not _gives(replace(grown, n_keys=total - start, key_mask=key_mask[:, start:]), mask):
        shown = "no mask" if call.mask is None else f"a mask of shape {list(call.mask.shape)}"
        raise ValueError(_RULE.format(got=f"{shown} at position {sight.n_keys} that shows other keys than before"))
    return grown, start


def _sight_of_backend(call: Call) -> Sight:
    """Without a mask per query, the attention function itself decides who sees whom, as transformers' backends do."""
    n_queries, n_keys = call.query.shape[2], call.key.shape[2]
    if call.causal and not call.applies_window and 1 < n_queries < n_keys:
        n_keys = n_queries  # SDPA aligns its causal mask to the left: an empty static cache
    window = call.window
    is_causal = call.causal or n_queries == 1  # nothing comes after a single query
    if window is not None and not is_causal:
        window = window - 1 if call.applies_window else None  # flash attention counts both sides with itself
    elif window is not None and not call.applies_window and window < n_keys:
        window = None  # SDPA and eager know no window but the mask's
    key_mask = None if call.mask is None else _unless_all(call.mask[:, -n_keys:].bool().cpu())
    return Sight(is_causal, window, n_keys, key_mask)


def _three_axes(mask: torch.Tensor, call: Call) -> torch.Tensor:
    """The mask of any head as [batch or 1, query, key], a view."""
    if mask.ndim != 4 or not (mask.dtype.is_floating_point or str(mask.dtype) == "torch.bool"):
        raise ValueError(_RULE.format(got=f"{mask.dtype} of shape {list(mask.shape)}"))
    if mask.shape[1] > 1 and not bool((mask == mask[:, :1]).all()):
        raise ValueError(_RULE.format(got=f"a mask of shape {list(mask.shape)} that differs from head to head"))
    return mask[:, 0, :, : call.key.shape[2]].expand(-1, call.query.shape[2], -1)


def _blocks(mask: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Blocks of query rows as (first query, bool [batch or 1, query, key]: True where the key is seen).

    Raises:
        ValueError: an additive mask holds something between showing and hiding.
    """
    n_batch, n_queries, n_keys = mask.shape
    step = max(1, _BLOCK // max(1, n_batch * n_keys))
    for first in range(0, n_queries, step):
        block = mask[:, first : first + step]
        if block.dtype.is_floating_point:
            values, block = block, block == 0
            if not bool((block | (values <= HIDES)).all()):
                raise ValueError(_RULE.format(got="a mask that adds other numbers to the scores than 0 and -inf"))
        yield first, block


def _extent(mask: torch.Tensor) -> _Extent:
    import torch  # noqa: PLC0415

    n_batch, n_queries, n_keys = mask.shape
    seen = torch.zeros(n_batch, n_keys, dtype=torch.bool, device=mask.device)
    back = ahead = -(n_queries + n_keys)
    for first, block in _blocks(mask):
        seen |= block.any(dim=1)
        bits = block.to(torch.uint8)
        queries = torch.arange(first, first + block.shape[1], device=mask.device)
        nearest, farthest = bits.argmax(dim=2), n_keys - 1 - bits.flip(2).argmax(dim=2)
        sees = block.any(dim=2)
        if bool(sees.any()):
            back = max(back, int((queries - nearest)[sees].max()))
            ahead = max(ahead, int((farthest - queries)[sees].max()))
    return _Extent(seen.cpu(), back, ahead)


def _gives(sight: Sight, mask: torch.Tensor) -> bool:
    """Whether causal, window and hidden keys are exactly this mask [batch or 1, query, key]."""
    import torch  # noqa: PLC0415

    n_queries, n_given = mask.shape[1:]
    for first, block in _blocks(mask):
        rows = torch.arange(first, first + block.shape[1], device=mask.device)
        if not bool((block == seen_rows(sight, rows, n_queries, n_given)).all()):
            return False
    return True


def seen_rows(sight: Sight, rows: torch.Tensor, n_queries: int, n_keys: int) -> torch.Tensor:
    """Which keys some queries see, bool [batch or 1, row, key].

    Args:
        sight: what the queries see; the last of them stands at its last key.
        rows: numbers of queries, int64.
        n_queries: how many there are.
        n_keys: how many keys to answer for; those behind the sequence are hidden.
    """
    import torch  # noqa: PLC0415

    shown = torch.ones(1, n_keys, dtype=torch.bool)
    shown[:, sight.n_keys :] = False
    if sight.key_mask is not None:
        shown = shown.repeat(len(sight.key_mask), 1)
        shown[:, : sight.n_keys] = sight.key_mask[:, :n_keys]
    ahead = torch.arange(n_keys, device=rows.device) - (rows + sight.n_keys - n_queries)[:, None]
    allowed = ahead <= 0 if sight.causal else torch.ones_like(ahead, dtype=torch.bool)
    if sight.window is not None:
        allowed &= ahead > -sight.window if sight.causal else ahead.abs() <= sight.window
    return allowed & shown.to(rows.device)[:, None]


def used_keys(call: Call) -> int:
    """How many keys a call with a mask for each query uses; what a static cache holds behind them is unused."""
    n_queries, n_given = call.query.shape[2], call.key.shape[2]
    if call.mask is None or call.mask.ndim != 4:
        return int(n_given)
    mask = call.mask[..., :n_given]
    seen = (mask if str(mask.dtype) == "torch.bool" else mask > HIDES).flatten(0, 2).any(dim=0).nonzero()
    return max(int(n_queries), int(seen[-1]) + 1 if len(seen) else 0)


def _unless_all(key_mask: torch.Tensor) -> torch.Tensor | None:
    """The mask, or None where it hides nothing."""
    return None if bool(key_mask.all()) else key_mask
