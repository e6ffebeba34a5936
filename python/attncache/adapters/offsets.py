"""Attentions whose last axis is no key: Longformer's offsets become keys, others are refused; used by from_attentions.

Longformer and the encoder of LED give [batch, head, query, g + 2 h + 1]: the weights of g global tokens, and then of the
keys from h before the query to h after it. The rows of the global tokens themselves are zeros there; the output has
them as ``global_attentions``, [batch, head, key, g].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from attncache.adapters.named import in_memory, named_array
from attncache.array_input import ArrayInput

_WINDOWS = ("Swin", "Donut", "MaskFormerSwin", "Hiera", "ClapAudio")  # how the classes of such outputs begin
_PUSH = "push takes them as they are, each window as a batch item"


def check_are_keys(named: Sequence[tuple[str, Any]], output: Any) -> None:
    """Refuse attentions within windows or blocks, whose positions are none of the text or the image.

    Args:
        named: what errors call each layer's array, and the array.
        output: what was given, whose class may tell.

    Raises:
        ValueError: the class is of a model with windows, layers differ in batch items, or an array has five axes or more.
    """
    kind = type(output).__name__
    if kind.startswith(_WINDOWS):
        raise ValueError(f"attentions must have queries and keys, got the windows of an image in a {kind}; {_PUSH}")
    shapes = [(name, tuple(getattr(array, "shape", ()))) for name, array in named]
    for name, shape in shapes:
        if len(shape) > 4:
            raise ValueError(
                f"{name} must be [batch, head, query, key], got shape {list(shape)}: attention within blocks or over "
                "sampled points, as of LongT5, Reformer, Hiera or Deformable DETR, has no axis of all keys; if all are "
                "there, axes= names them"
            )
        if len(shape) == len(shapes[0][1]) == 4 and shape[0] != shapes[0][1][0]:
            raise ValueError(
                f"{name} must have as many batch items as {shapes[0][0]}, {shapes[0][1][0]}, got {shape[0]}: these look "
                f"like the windows of an image (Swin), whose positions are places in a window; {_PUSH}"
            )


def of_offsets(named: Sequence[tuple[str, Any]], output: Any) -> Iterator[ArrayInput] | None:
    """The patterns over true keys, if the arrays are weights of offsets; None if they are not.

    Args:
        named: what errors call each layer's array, and the array.
        output: what was given; its ``global_attentions`` are needed where there are global tokens.

    Raises:
        ValueError: there are global tokens and it is not known which, or their own weights are missing.
    """
    if not all(len(getattr(array, "shape", ())) == 4 for _, array in named):
        return None
    if hasattr(output, "global_attentions"):
        of_global = output.global_attentions or [None] * len(named)
    elif (n_global := _n_global(named_array(*named[0]).array)) is None:
        return None
    elif n_global:
        raise ValueError(
            f"attentions must come with the weights of its {n_global} global tokens, which are in global_attentions; "
            "pass the output itself"
        )
    else:
        of_global = [None] * len(named)
    return (
        _over_keys(name, named_array(name, array), rows) for (name, array), rows in zip(named, of_global, strict=True)
    )


def _n_global(weights: npt.NDArray[Any]) -> int | None:
    """How many global tokens come before the offsets; None if the last axis does not look like offsets.

    Offsets show in their corners, if there are more queries than an offset reaches: the first query has no keys before it
    and the last none after (global tokens and padding have no weights here), where queries between them have some.
    """
    n_columns = int(weights.shape[3])
    if 0 in weights.shape or weights[0, 0, -1, -1]:  # the last query sees the last key: cheap, and nearly always so
        return None
    has_weight = weights[0, 0] != 0
    used = np.flatnonzero(has_weight.any(axis=1))
    if not len(used):
        return None
    first, last = int(used[0]), int(used[-1])
    for reach in range((n_columns - 1) // 2, 0, -1):
        local = has_weight[:, n_columns - 1 - 2 * reach :]
        if (
            not local[first, :reach].any()
            and not local[last, reach + 1 :].any()
            and local[used, reach].all()
            and local[:, 0].any()
            and local[:, -1].any()
        ):
            return n_columns - 1 - 2 * reach
    return None


def _over_keys(name: str, source: ArrayInput, of_global: Any) -> ArrayInput:
    """One layer over true keys."""
    n_global = 0 if of_global is None else int(of_global.shape[3])
    local = source.array[..., n_global:]
    batch_size, n_heads, n_rows, n_offsets = local.shape
    reach = n_offsets // 2
    wide = np.zeros((batch_size, n_heads, n_rows, n_rows + 2 * reach), local.dtype)
    *outer, row, item = wide.strides
    as_strided(wide, local.shape, (*outer, row + item, item))[...] = local  # [.., query, offset] is key query + offset
    pattern = wide[..., reach : reach + n_rows]
    if n_global:
        rows = named_array(name, in_memory(of_global)).array
        for item_number in range(batch_size):
            _add_global(name, pattern[item_number], source.array[item_number, ..., :n_global], rows[item_number])
    return ArrayInput(pattern, source.dtype, is_writable=True)


def _add_global(name: str, pattern: Any, columns: Any, rows: Any) -> None:
    """Put the columns and rows of the global tokens of one batch item into its pattern, [head, query, key]."""
    n_global = columns.shape[2]
    tokens = np.flatnonzero(~(pattern.any(axis=(0, 2)) | columns.any(axis=(0, 2))))
    if len(tokens) != n_global:
        raise ValueError(
            f"{name} must show which tokens are global, got {n_global} of them and {len(tokens)} rows of zeros, some of "
            "padding; run the model on one text at a time, without padding"
        )
    pattern[:, :, tokens] = columns
    pattern[:, tokens] = rows.transpose(0, 2, 1)
