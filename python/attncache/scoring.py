"""How weights come from queries and keys: checks the options of ``push_qk`` and makes them plain numbers and arrays."""

from __future__ import annotations

import math
import operator
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attncache.array_input import check_unmasked, is_on_device, is_torch_tensor

Ranges: TypeAlias = list[list[tuple[int, int]]]
CoreScoring: TypeAlias = tuple[float, float, bool, int, Ranges, list[float]]

_DENSE = "push the dense pattern instead"


class Options(NamedTuple):
    """How weights come from queries and keys: the keyword arguments of ``AttentionCache.push_qk``, not yet checked."""

    scale: float | None = None
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    key_mask: Any = None
    lse: Any = None
    sinks: Any = None


class Scoring(NamedTuple):
    """The same options, checked, as the core takes them.

    Attributes:
        softcap, window: 0 stands for none.
        hidden: the hidden keys of each batch item as ascending (begin, end); empty if none is hidden.
    """

    scale: float
    softcap: float
    causal: bool
    window: int
    hidden: Ranges
    sinks: npt.NDArray[np.float32] | None
    lse: npt.NDArray[np.float32] | None

    def for_core(self) -> CoreScoring:
        """What ``_core.Layer.factored`` takes."""
        sinks = [] if self.sinks is None else self.sinks.tolist()
        return self.scale, self.softcap, self.causal, self.window, self.hidden, sinks


def checked_scoring(query: tuple[int, ...], key: tuple[int, ...], options: Options) -> Scoring:
    """The options of queries and keys of those shapes.

    Raises:
        TypeError, ValueError: as ``AttentionCache.push_qk``.
    """
    batch_size, n_heads, seq_q, head_dim = query
    check_shapes(query, key)
    scale = _scale(options.scale, head_dim)
    if not isinstance(options.causal, bool | np.bool_):
        raise TypeError(f"causal must be True or False, got {type(options.causal).__name__}")
    window, softcap = _window(options.window), _softcap(options.softcap)
    hidden = hidden_ranges(options.key_mask, (batch_size, key[2]))
    lse = _floats(options.lse, "lse", "[batch, head, query]", (batch_size, n_heads, seq_q))
    sinks = _floats(options.sinks, "sinks", "[head]", (n_heads,))
    if lse is not None and sinks is not None:
        raise ValueError("lse and sinks must not both be given: lse is the logarithm of the sum that counts the sinks")
    return Scoring(scale, softcap, bool(options.causal), window, hidden, sinks, lse)


def key_heads_for(heads: list[int], n_heads: int, n_key_heads: int) -> list[int]:
    """The key heads that the chosen query heads need, as few as an even grouping allows.

    A factored layer gives every key head the same number of neighbouring query heads. Where the chosen heads fall into
    such groups, each key head is kept once; otherwise it is repeated, down to one for each query head.

    Args:
        heads: the chosen query heads, in their order.
        n_heads, n_key_heads: how many the model has; the first is a multiple of the second.

    Returns:
        Key heads, the n-th of which belongs to the n-th group of ``heads``.

    >>> key_heads_for([0, 1, 4, 5], 8, 2)
    [0, 1]
    >>> key_heads_for([0, 4, 5], 8, 2)
    [0, 1, 1]
    """
    owners = [head // (n_heads // n_key_heads) for head in heads]
    for group in range(len(owners), 1, -1):
        groups = [owners[start : start + group] for start in range(0, len(owners), group)]
        if len(owners) % group == 0 and all(len(set(members)) == 1 for members in groups):
            return [members[0] for members in groups]
    return owners


def check_shapes(query: tuple[int, ...], key: tuple[int, ...]) -> None:
    """One batch size and item size, and whole groups of heads for each key head."""
    if query[0] != key[0]:
        raise ValueError(f"query and key must have one batch size, got {query[0]} and {key[0]}")
    if query[3] != key[3] or query[3] == 0:
        raise ValueError(f"query and key must have the same number of items, at least 1, got {query[3]} and {key[3]}")
    if key[1] == 0 or query[1] == 0 or query[1] % key[1] != 0:
        is_swapped = key[2] > 0 and query[2] > 0 and query[2] % key[2] == 0
        way_out = "; they may be [batch, position, head, item]: pass query.swapaxes(1, 2) and key.swapaxes(1, 2)"
        raise ValueError(
            f"the heads of query must be a multiple of those of key, got {query[1]} and {key[1]}"
            + (way_out if is_swapped else "")
        )


def _number(value: Any, name: str) -> float:
    """A finite real number."""
    if not _is_real(value):
        raise TypeError(f"{name} must be a number or None, got {type(value).__name__}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number or None, got {type(value).__name__}") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(np.float32(number) if abs(number) < 3.4e38 else math.inf):
        raise ValueError(f"{name} must be finite, got {value}")
    return number


def _is_real(value: Any) -> bool:
    """Whether it is a number: no text that float() would read, no truth value, no array of one."""
    if isinstance(value, bool | str | bytes | bytearray) or getattr(value, "ndim", 0) != 0:
        return False
    dtype = str(getattr(value, "dtype", ""))  # of NumPy or of any other library
    is_number = hasattr(value, "__float__") or hasattr(value, "__index__")
    return is_number and not any(kind in dtype for kind in ("bool", "complex", "time"))


def _scale(scale: Any, head_dim: int) -> float:
    return head_dim**-0.5 if scale is None else _number(scale, "scale")


def _softcap(softcap: Any) -> float:
    """The cap; 0 stands for none."""
    if softcap is None:
        return 0.0
    cap = _number(softcap, "softcap")
    if not np.float32(cap) > 0:
        raise ValueError(f"softcap must be greater than 0, got {softcap}")
    return cap


def _window(window: Any) -> int:
    """The window; 0 stands for none."""
    if window is None:
        return 0
    try:
        if not _is_real(window):
            raise TypeError
        number = operator.index(window)
    except TypeError:
        raise TypeError(f"window must be an int or None, got {type(window).__name__}") from None
    if number < 1:
        raise ValueError(f"window must be at least 1, got {number}")
    return min(number, 2**40)


def _plain_array(values: Any, name: str) -> npt.NDArray[Any]:
    """What NumPy makes of it; a tensor may require grad, be bfloat16, or lie on another device."""
    check_unmasked(values, name)
    if is_torch_tensor(values):
        values = values.detach().cpu()
        values = values.float().numpy() if values.dtype.is_floating_point else values.numpy()
    elif is_on_device(values):
        from attncache.cuda.arrays import device_array  # noqa: PLC0415

        values = device_array(values, name).numpy()
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array, got {type(values).__name__}") from error


def hidden_ranges(key_mask: Any, shape: tuple[int, int]) -> Ranges:
    """The hidden keys of each batch item as ascending (begin, end); an empty list if no key of any item is hidden."""
    if key_mask is None:
        return []
    mask = _plain_array(key_mask, "key_mask")
    if mask.shape != shape:
        rule = f"key_mask must be [batch, key] = {list(shape)}, got shape {list(mask.shape)}"
        whole = f": a mask of its own for each query cannot be expressed; {_DENSE}" if mask.ndim > 2 else ""
        raise ValueError(rule + whole)
    if mask.dtype.kind not in "biu":
        raise TypeError(f"key_mask must hold bools, or 0 and 1, got {mask.dtype}: an additive mask cannot be expressed")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(f"key_mask must hold bools, or 0 and 1, got values from {mask.min()} to {mask.max()}")
    edges = np.diff(np.pad(mask == 0, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    ranges = [list(zip(*(np.flatnonzero(row == side).tolist() for side in (1, -1)), strict=True)) for row in edges]
    return ranges if any(ranges) else []


def _floats(
    values: Any, name: Literal["lse", "sinks"], axes: str, shape: tuple[int, ...]
) -> npt.NDArray[np.float32] | None:
    """A small float array of that shape as float32, or None."""
    if values is None:
        return None
    array = _plain_array(values, name)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} must hold floats, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{name} must be {axes} = {list(shape)}, got shape {list(array.shape)}")
    return np.ascontiguousarray(array, np.float32)
