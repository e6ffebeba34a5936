"""Turns whatever holds a pattern into a NumPy array and the name of its dtype, without copying it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

StoredDType: TypeAlias = Literal["float16", "bfloat16", "float32"]

_KINDS = "pattern must hold float16, bfloat16, float32 or float64"
_DLPACK_CPU = 1


class Source(NamedTuple):
    """A pattern to push.

    Attributes:
        array: the weights in native byte order; bfloat16 as uint16, because NumPy itself has no such dtype.
        dtype: what the items of ``array`` are.
        is_writable: whether somebody may change the pushed memory later.
        is_converted: whether ``array`` is already a copy (of nested lists, or of another byte order).
    """

    array: npt.NDArray[Any]
    dtype: Literal["float16", "bfloat16", "float32", "float64"]
    is_writable: bool
    is_converted: bool = False

    def reason_to_copy(self, stored: StoredDType) -> str | None:
        """Why a layer of that dtype cannot lie over the pushed memory as it is, or None if it can."""
        if self.dtype != stored:
            return f"its dtype {self.dtype} is stored as {stored}"
        if self.is_converted:
            return "it is not an array in this machine's byte order"
        if not (self.array.flags.c_contiguous and self.array.flags.aligned):
            return (
                f"its memory is not C-contiguous and aligned (shape {self.array.shape}, strides {self.array.strides})"
            )
        return None


def stored_dtype(dtype: Any) -> StoredDType | None:
    """The dtype argument of a cache as its name: None, "float16", "bfloat16", "float32", or a NumPy dtype of these."""
    if dtype is None:
        return None
    name = dtype if isinstance(dtype, str) else _dtype_name(dtype)
    if name in ("float16", "bfloat16", "float32"):
        return name  # type: ignore[return-value]
    raise ValueError(f"dtype must be None, 'float16', 'bfloat16' or 'float32', got {dtype!r}")


def _dtype_name(dtype: Any) -> str:
    if type(dtype).__module__.partition(".")[0] == "torch":
        return str(dtype).removeprefix("torch.")
    try:
        return str(np.dtype(dtype).name)
    except TypeError:
        raise TypeError(f"dtype must be None, a name or a NumPy dtype, got {dtype!r}") from None


def read_source(pattern: Any) -> Source:
    """The pattern as an array of four axes, sharing its memory wherever that is possible; a Source is one already.

    Raises:
        TypeError: pattern is not an array of floats. ValueError: it has other than four axes, requires grad, or does
            not lie in CPU memory.
    """
    if isinstance(pattern, Source):
        return pattern
    source = _from_tensor(pattern) if _is_torch_tensor(pattern) else _from_array(_as_array(pattern))
    if not isinstance(pattern, np.ndarray) and not hasattr(pattern, "__array__") and hasattr(pattern, "__dlpack__"):
        source = source._replace(is_writable=True)  # older DLPack versions cannot say that memory is read-only
    if isinstance(pattern, list | tuple):
        source = source._replace(is_converted=True)
    if source.array.ndim != 4:
        raise ValueError(f"pattern must have the 4 axes [batch, head, query, key], got shape {source.array.shape}")
    if source.array.shape[3] >= 2**32 or source.array.shape[2] >= 2**32:
        raise ValueError(f"pattern must have fewer than 2**32 queries and keys, got shape {source.array.shape}")
    return source


def _is_torch_tensor(pattern: Any) -> bool:
    return any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in type(pattern).__mro__)


def _from_tensor(tensor: Any) -> Source:
    if tensor.device.type != "cpu":
        raise ValueError(f"pattern must lie in CPU memory, got a tensor on device {tensor.device}; pass pattern.cpu()")
    if tensor.requires_grad:
        raise ValueError("pattern must not require grad; pass pattern.detach()")
    if str(tensor.dtype) == "torch.bfloat16":
        import torch  # noqa: PLC0415 (loaded already: it made the tensor)

        return Source(tensor.view(torch.int16).numpy().view(np.uint16), "bfloat16", True)
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{_KINDS}, got {tensor.dtype}")
    return _from_array(tensor.numpy())


def _as_array(pattern: Any) -> npt.NDArray[Any]:
    if isinstance(pattern, np.ndarray):
        return pattern
    if hasattr(pattern, "__dlpack__"):
        device, index = pattern.__dlpack_device__()
        if device != _DLPACK_CPU:
            raise ValueError(
                f"pattern must lie in CPU memory, got an array on DLPack device ({int(device)}, {index}); "
                "move it to the CPU first"
            )
        if not hasattr(pattern, "__array__"):
            return np.from_dlpack(pattern)
    try:
        return np.asarray(pattern)
    except (TypeError, ValueError) as error:
        raise TypeError(f"pattern must be an array [batch, head, query, key], got {type(pattern).__name__}") from error


def _from_array(array: npt.NDArray[Any]) -> Source:
    is_writable = array.flags.writeable
    if array.dtype.name == "bfloat16":  # of ml_dtypes
        return Source(array.view(np.uint16), "bfloat16", is_writable)
    if array.dtype.name not in ("float16", "float32", "float64"):
        raise TypeError(f"{_KINDS}, got {array.dtype}")
    is_converted = not array.dtype.isnative
    if is_converted:
        array = array.astype(array.dtype.newbyteorder("="))
    return Source(np.asarray(array), array.dtype.name, is_writable, is_converted)  # type: ignore[arg-type]
