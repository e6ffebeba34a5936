"""The weights of an attention call from its queries, keys and mask, and whether they are what the function computed.

A capture believes no attention function: what it is about to store is computed again for some rows, and must give the
weights that the function returned, or with the values its output, within what rounding allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attncache.adapters.capture.calls import Call, Weights
from attncache.adapters.capture.masks import HIDES, Sight, seen_rows
from attncache.array_input import StoredDType

if TYPE_CHECKING:
    import torch

_BLOCK = 64 << 20  # bytes of float32 that one step works on
_ALL_ROWS = 1 << 18  # weights of a call of which every row is compared
_SAMPLED_ROWS = 16
_UNIT = 2.0**-23  # of float32


class Rows(NamedTuple):
    """The weights of some rows and some heads.

    Attributes:
        heads: which query heads.
        weights: float32 [batch, head, row, key]; zeros where a row sees no key.
        sees: bool, broadcast to [batch, head, row]: whether a row sees a key.
        error: float32 [batch, head, row]: how far, relative to itself, rounding in the model may move a weight.
    """

    heads: slice
    weights: torch.Tensor
    sees: torch.Tensor
    error: torch.Tensor


class Difference(NamedTuple):
    """Where a function did not compute what its queries and keys give.

    Attributes:
        got, allowed: the difference that most exceeds what rounding allows, and what it allows there.
        what: "weights" or "output".
    """

    got: float
    allowed: float
    what: str

    def __str__(self) -> str:
        verb = "differs" if self.what == "output" else "differ"
        return f"{self.what} {verb} by {self.got:.2g} where rounding allows {self.allowed:.2g}"


def rows_of(call: Call, sight: Sight | None, rows: torch.Tensor, n_keys: int, *, sinks: bool) -> Iterator[Rows]:
    """The weights of some rows of a call, for a few heads at a time.

    Args:
        call: the call.
        sight: what the queries see where the call brings no mask for each query; None if its mask says it.
        rows: numbers of queries, int64.
        n_keys: how many of the keys are in use.
        sinks: whether the sinks take part.
    """
    import torch  # noqa: PLC0415 (loaded already: it made the tensors)

    n_batch, n_heads = call.query.shape[:2]
    n_key_heads = call.key.shape[1]
    group = n_heads // n_key_heads
    added = _added(call, sight, rows, n_keys)
    per_head = 4 * n_batch * n_keys * (call.key.shape[3] + call.value.shape[3] + 3 * group * len(rows))
    step = max(1, _BLOCK // max(per_head, 1))
    unit = max(_unit_of(tensor) for tensor in (call.query, call.key, call.value, call.output, call.weights))
    for first in range(0, n_key_heads, step):
        last = min(first + step, n_key_heads)
        heads = slice(first * group, last * group)
        query = call.query[:, heads][:, :, rows].float()
        key = call.key[:, first:last, :n_keys].float()
        scores = (query.reshape(n_batch, last - first, group * len(rows), query.shape[3]) @ key.mT).view(
            *query.shape[:3], n_keys
        )
        scores *= call.scale
        if call.softcap is not None:
            scores = call.softcap * torch.tanh(scores / call.softcap)
        longest = key.norm(dim=3).amax(dim=2, keepdim=True).repeat_interleave(group, 1) if n_keys else key.sum()
        products = query.norm(dim=3) * longest * abs(call.scale)
        sizes = scores.abs()
        sees = torch.ones(1, 1, 1, dtype=torch.bool, device=scores.device)
        if added is not None:
            of_heads = added[:, heads] if added.shape[1] > 1 else added
            sees = (of_heads > -torch.inf).any(dim=3)
            sizes = sizes.masked_fill(of_heads == -torch.inf, 0)
            scores += of_heads
        error = sizes.sum(dim=3)
        if n_keys:  # rounded scores, then products and sums in float32
            error = unit * (8 + 4 * sizes.amax(dim=3)) + _UNIT * (4 * products + 8 * n_keys**0.5)
        if sinks and call.sinks is not None:
            sink = call.sinks[heads].float()[:, None, None].expand(n_batch, -1, len(rows), 1)
            weights = torch.cat([scores, sink], dim=3).softmax(dim=3)[..., :-1]
        else:
            weights = scores.softmax(dim=3)
        yield Rows(heads, weights.masked_fill(~sees[..., None], 0), sees, error)


def blocks_of_rows(
    call: Call, sight: Sight | None, n_keys: int, *, sinks: bool
) -> Iterator[tuple[slice | torch.Tensor, Rows]]:
    """The weights of all rows, block by block, each with the numbers of its rows."""
    import torch  # noqa: PLC0415

    step = max(1, _BLOCK // max(1, 12 * call.query.shape[0] * call.query.shape[1] * n_keys))
    for first in range(0, call.n_queries, step):
        rows = torch.arange(first, min(first + step, call.n_queries), device=call.query.device)
        for block in rows_of(call, sight, rows, n_keys, sinks=sinks):
            yield slice(first, first + len(rows)), block


def difference(call: Call, sight: Sight | None, n_keys: int, *, sinks: bool = True) -> Difference | None:
    """What most contradicts that the function computed softmax(scores) @ values; None if nothing does.

    Every row is compared where the call is small or its function is neither PyTorch's nor transformers' own, otherwise some.

    Args:
        call: a call without dropout that has weights or an output.
        sight, n_keys, sinks: as for ``rows_of``.
    """
    import torch  # noqa: PLC0415

    n_batch, n_heads, n_queries, _ = call.query.shape
    device = call.query.device
    worst: Difference | None = None
    blocks: Iterator[tuple[slice | torch.Tensor, Rows]]
    if n_batch * n_heads * n_queries * n_keys <= _ALL_ROWS or not call.is_trusted:
        blocks = blocks_of_rows(call, sight, n_keys, sinks=sinks)
    else:
        chosen = torch.linspace(0, n_queries - 1, min(_SAMPLED_ROWS, n_queries), dtype=torch.float64)
        rows = chosen.round().long().to(device)
        blocks = ((rows, block) for block in rows_of(call, sight, rows, n_keys, sinks=sinks))
    for rows_of_block, block in blocks:
        found = _of_block(call, rows_of_block, block, n_keys)
        if found is not None and (worst is None or found.got * worst.allowed > worst.got * found.allowed):
            worst = found
    return worst


def _of_block(call: Call, rows: slice | torch.Tensor, block: Rows, n_keys: int) -> Difference | None:
    """The difference of one block that exceeds most what is allowed; None if none does."""
    if call.weights is not None:
        what = "weights"
        theirs = call.weights[:, block.heads][:, :, rows, :n_keys].float()
        ours = sizes = block.weights
        beyond = call.weights[:, block.heads][:, :, rows, n_keys:] * block.sees[..., None]
        if beyond.numel() and bool(beyond.any()):
            return Difference(float(beyond.abs().max()), 0.0, what)
    else:
        assert call.output is not None
        what = "output"
        theirs = call.output[:, rows][:, :, block.heads].transpose(1, 2).float()
        value = _grouped(call.value[:, :, :n_keys], block.heads, call).float()
        ours, sizes = (_product(block.weights, each) for each in (value, value.abs()))
    allowed = sizes * block.error[..., None] + 2.0**-24
    got = (theirs - ours).abs()
    judged = block.sees[..., None] & ours.isfinite() & theirs.isfinite()
    excess = (got / allowed).masked_fill(~judged, 0)
    if excess.numel() == 0 or float(excess.max()) <= 1:
        return None
    at = excess.argmax()
    return Difference(float(got.flatten()[at]), float(allowed.flatten()[at]), what)


def _grouped(value: torch.Tensor, heads: slice, call: Call) -> torch.Tensor:
    """The values of the key heads that these query heads read: [batch, key head, key, item]."""
    group = call.query.shape[1] // call.value.shape[1]
    return value[:, heads.start // group : -(-heads.stop // group)]


def _product(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Weights [batch, head, row, key] times values [batch, key head, key, item]."""
    n_batch, n_heads, n_rows, n_keys = weights.shape
    product = weights.reshape(n_batch, value.shape[1], n_heads // value.shape[1] * n_rows, n_keys) @ value
    return product.view(n_batch, n_heads, n_rows, value.shape[3])


def _added(call: Call, sight: Sight | None, rows: torch.Tensor, n_keys: int) -> torch.Tensor | None:
    """What mask and bias add to the scores of some rows, float32 broadcast to [batch, head, row, key]; or None."""
    import torch  # noqa: PLC0415

    added = None
    if call.mask is not None and call.mask.ndim == 4:
        of_rows = call.mask if call.mask.shape[2] == 1 else call.mask[:, :, rows]
        of_rows = of_rows[..., :n_keys]
        if of_rows.dtype == torch.bool:
            added = torch.zeros(of_rows.shape, device=of_rows.device).masked_fill(~of_rows, -torch.inf)
        else:
            added = of_rows.float().masked_fill(of_rows <= HIDES, -torch.inf)
    elif sight is not None and not _shows_all(sight, call, n_keys):
        seen = seen_rows(sight, rows, call.n_queries, n_keys)
        added = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)[:, None]
    if call.bias is not None:
        bias = call.bias if call.bias.shape[2] == 1 else call.bias[:, :, rows]
        bias = bias[..., :n_keys].float()
        bias = bias.masked_fill(bias <= HIDES, -torch.inf)
        added = bias if added is None else added + bias
    return added


def _shows_all(sight: Sight, call: Call, n_keys: int) -> bool:
    """Whether every query sees every key, as the step of a generation does."""
    is_plain = sight.window is None and sight.key_mask is None and n_keys == sight.n_keys
    return is_plain and (call.n_queries == 1 or not sight.causal)


def _unit_of(tensor: torch.Tensor | None) -> float:
    """The rounding unit of a tensor's dtype, and of what a device multiplies it in."""
    import torch  # noqa: PLC0415

    if tensor is None:
        return 0.0
    unit: float = torch.finfo(tensor.dtype).eps
    is_tf32 = tensor.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    return max(unit, _UNIT, 2.0**-10 if is_tf32 else 0.0)


def dense_weights(
    call: Call,
    sight: Sight | None,
    n_keys: int,
    heads: list[int],
    dtype: StoredDType,
    *,
    sinks: bool,
    as_returned: bool,
) -> npt.NDArray[Any]:
    """The weights of a whole call, [batch, head, query, key] of these heads; bfloat16 as uint16.

    Args:
        call: the call.
        sight, n_keys, sinks: as for ``rows_of``.
        heads: which heads, in this order.
        dtype: what the weights are rounded to.
        as_returned: whether to take the weights that the function returned, but for rows that see no key.
    """
    import torch  # noqa: PLC0415

    shape = (call.query.shape[0], len(heads), call.n_queries, n_keys)
    found = torch.zeros(shape, dtype=getattr(torch, dtype))
    for rows, block in blocks_of_rows(call, sight, n_keys, sinks=sinks):
        places = [(place, head) for place, head in enumerate(heads) if block.heads.start <= head < block.heads.stop]
        weights = block.weights
        if as_returned:
            assert call.weights is not None
            weights = call.weights[:, block.heads, rows, :n_keys].float()
            is_uniform = weights.amax(3) == weights.amin(3)  # what transformers gives where all keys are hidden
            weights = weights.masked_fill((is_uniform & ~block.sees)[..., None], 0)
        for place, head in places:
            found[:, place, rows] = weights[:, head - block.heads.start].to(found.dtype).cpu()
    return _as_numpy(found)


def heard_weights(call: Weights, heads: list[int], dtype: StoredDType) -> npt.NDArray[Any]:
    """The weights that were heard, [batch, head, query, key] of these heads, rounded to dtype; bfloat16 as uint16."""
    import torch  # noqa: PLC0415

    chosen = call.weights if heads == list(range(call.n_heads)) else call.weights[:, heads]
    found = chosen.to(getattr(torch, dtype)).cpu().contiguous()
    return _as_numpy(found.clone() if found.data_ptr() == call.weights.data_ptr() else found)


def _as_numpy(found: torch.Tensor) -> npt.NDArray[Any]:
    """Weights in CPU memory as a read-only array; bfloat16 as uint16."""
    import torch  # noqa: PLC0415

    is_bfloat16 = found.dtype == torch.bfloat16
    array: npt.NDArray[Any] = found.view(torch.int16).numpy().view(np.uint16) if is_bfloat16 else found.numpy()
    array.flags.writeable = False
    return array
