"""Makes layers of arrays on a CUDA device: what ``push`` and ``push_qk`` take there, checked."""

from __future__ import annotations

import math
from typing import Any

from attncache import _core
from attncache.array_input import PATTERN, Argument, StoredDType, checked_copy, is_on_device
from attncache.cuda.arrays import DeviceArray, device_array
from attncache.cuda.library import devices
from attncache.factored import KEY, QUERY
from attncache.scoring import Options, checked_scoring


def layer_of_pattern(dtype: StoredDType | None, pattern: Any, copy: bool | None) -> _core.Layer:
    """The layer that ``AttentionCache.push`` makes of an array on a device."""
    rows = _rows(pattern, PATTERN, dtype, copy)  # says it if no device can be used
    return devices().dense(rows)


def layer_of_factors(
    dtype: StoredDType | None, query: Any, key: Any, options: Options, *, copy: bool | None
) -> _core.Layer:
    """The layer that ``AttentionCache.push_qk`` makes of arrays on a device."""
    for one, other, argument in ((query, key, KEY), (key, query, QUERY)):
        if is_on_device(one) and not is_on_device(other):
            raise ValueError(f"query and key must lie on one device, but {argument.name} lies in CPU memory")
    copy = checked_copy(copy)
    queries, keys = (_rows(each, argument, dtype, copy) for each, argument in ((query, QUERY), (key, KEY)))
    scoring = checked_scoring(queries.shape, keys.shape, options)
    if queries.device != keys.device:
        raise ValueError(f"query and key must lie on one device, got cuda:{queries.device} and cuda:{keys.device}")
    if queries.dtype != keys.dtype:
        raise ValueError(f"query and key must have one dtype on a device, got {queries.dtype} and {keys.dtype}")
    return devices().factored(queries, keys, scoring.for_core(), scoring.lse)


def _rows(values: Any, argument: Argument, dtype: StoredDType | None, copy: bool | None) -> DeviceArray:
    """A pattern, queries or keys on a device.

    Raises:
        As ``device_array``; TypeError also if the items are no floats, ValueError if copy is True, they are not of the
            dtype of the cache or one that is stored, the array has other than four axes, or its last axis is not contiguous.
    """
    name = argument.name
    if copy:
        raise ValueError(
            f"copy must be None or False for an array on a device, got True: its layer lies over the {name} itself; "
            "pass a clone to keep it from others"
        )
    found = device_array(values, name)
    if found.dtype == "float64":
        raise ValueError(f"{name} must hold float16, bfloat16 or float32, got float64; convert it on its device first")
    if found.dtype not in ("float16", "bfloat16", "float32"):
        raise TypeError(f"{name} must hold float16, bfloat16 or float32, got {found.dtype}")
    if len(found.shape) != 4:
        raise ValueError(f"{name} must have the 4 axes {argument.axes}, got shape {found.shape}")
    item, steps = found.item_bytes, found.strides
    if math.prod(found.shape) * item >= 2**63:
        raise ValueError(f"{name} must be of a size that memory can have, got shape {found.shape}")
    where = f"strides {steps} in bytes"
    if 0 not in found.shape and found.shape[3] > 1 and steps[3] != item:
        raise ValueError(f"{name} must be contiguous along its last axis, got {where}; pass {name}.contiguous()")
    used = [step for length, step in zip(found.shape, steps, strict=True) if length > 1]
    if 0 not in found.shape and any(number % item for number in (found.address, *used)):
        raise ValueError(f"{name} must be aligned to its items, got address {found.address:#x} and {where}")
    if dtype is not None and found.dtype != dtype:
        raise ValueError(
            f"{name} must hold {dtype} as the cache says, got {found.dtype}; convert it on its device first"
        )
    return found
