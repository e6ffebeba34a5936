"""Turns whatever holds a pattern, queries or keys into a NumPy array and the name of its dtype, without copying it."""

from __future__ import annotations

import sys
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attncache import _core

StoredDType: TypeAlias = Literal["float16", "bfloat16", "float32"]

_KINDS = "must hold float16, bfloat16, float32 or float64"
_DLPACK_CPU = 1
KDL_CUDA, KDL_CUDA_MANAGED = 2, 13  # device types of DLPack


class Argument(NamedTuple):
    """How errors name what was given: the argument, and its axes."""

    name: str
    axes: str


PATTERN = Argument("pattern", "[batch, head, query, key]")
_SEVERAL = "AttentionCache.from_attentions takes several layers at once"
_WAYS_OUT = {3: "; pass pattern[None] if the batch is missing", 5: f"; {_SEVERAL}"}


class ArrayInput(NamedTuple):
    """An array of four axes to store.

    Attributes:
        array: the weights in native byte order; bfloat16 as uint16, because NumPy itself has no such dtype.
        dtype: what the items of ``array`` are.
        is_writable: whether somebody may change the pushed memory later, the owner of what it is a view of included.
        is_converted: whether ``array`` is already a copy (of nested lists, or of another byte order).
    """

    array: npt.NDArray[Any]
    dtype: Literal["float16", "bfloat16", "float32", "float64"]
    is_writable: bool
    is_converted: bool = False

    @property
    def own_dtype(self) -> StoredDType:
        """What it is stored as if nothing else is asked for."""
        return "float32" if self.dtype == "float64" else self.dtype

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

    def borrows(self, stored: StoredDType, copy: bool | None, argument: Argument = PATTERN) -> bool:
        """Whether to lie over the pushed memory: only if it can be done, and if nobody may change it or it is wished.

        Raises:
            ValueError: copy is False, and a copy is needed.
        """
        reason = self.reason_to_copy(stored)
        if copy is False and reason is not None:
            raise ValueError(f"copy=False cannot borrow this {argument.name}: {reason}")
        return reason is None and (copy is False or (copy is None and not self.is_writable))


def checked_copy(copy: Any) -> bool | None:
    """The argument ``copy``: None, True or False."""
    if copy is not None and not isinstance(copy, bool):
        raise TypeError(f"copy must be None, True or False, got {type(copy).__name__}")
    return copy


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


def read_array(values: Any, argument: Argument = PATTERN) -> ArrayInput:
    """The values as an array of four axes, sharing their memory wherever that is possible; an ArrayInput is one already.

    Raises:
        TypeError: values is not an array of floats. ValueError: it has other than four axes, does not lie in CPU memory,
            or is the attentions of several layers.
    """
    if isinstance(values, ArrayInput):
        return values
    if values is None or isinstance(values, list | tuple):
        _check_is_one_array(values, argument)
    given = (
        _from_tensor(values, argument)
        if is_torch_tensor(values)
        else _from_array(_as_array(values, argument), argument)
    )
    if not isinstance(values, np.ndarray) and not hasattr(values, "__array__") and hasattr(values, "__dlpack__"):
        given = given._replace(is_writable=True)  # older DLPack versions cannot say that memory is read-only
    if isinstance(values, list | tuple):
        given = given._replace(is_converted=True)
    if given.array.ndim != 4:
        way_out = _WAYS_OUT.get(given.array.ndim, "") if argument is PATTERN else ""
        raise ValueError(
            f"{argument.name} must have the 4 axes {argument.axes}, got shape {given.array.shape}{way_out}"
        )
    _check_sizes(given.array.shape, argument)
    return given


def _check_is_one_array(values: Any, argument: Argument) -> None:
    """Refuse what a model returned in place of a pattern: None, or one array for each of its layers."""
    if values is None:
        what = (
            "the model returned no weights, as with a fused attention such as SDPA; use attncache.capture, or load it"
        )
        reason = f": {what} with attn_implementation='eager'" if argument is PATTERN else ""
        raise TypeError(f"{argument.name} must be an array {argument.axes}, got None{reason}")
    if argument is PATTERN and any(item is None or len(getattr(item, "shape", ())) > 3 for item in values):
        raise ValueError(
            f"pattern must be one array {argument.axes}, got a {type(values).__name__} of {len(values)}; {_SEVERAL}"
        )


def _check_sizes(shape: tuple[int, ...], argument: Argument) -> None:
    """That lists of heads or batch items fit into memory, and positions into 32 bits; arrays without items may be huge."""
    if max(shape[2:]) >= 2**32:
        raise ValueError(f"{argument.name} must have fewer than 2**32 queries and keys, got shape {shape}")
    if max(shape[:2]) >= 2**24:
        raise ValueError(f"{argument.name} must have fewer than 2**24 batch items and heads, got shape {shape}")


def is_on_device(values: Any) -> bool:
    """Whether it is an array in the memory of a CUDA device, found out without reading it."""
    if isinstance(values, np.ndarray | ArrayInput | list):
        return False
    if isinstance(values, tuple):  # of attncache.cuda.on_stream, which is not imported to find out
        return type(values).__module__ == "attncache.cuda.streams"
    if is_torch_tensor(values) and values.device.type != "cuda":
        return False
    if hasattr(values, "__dlpack_device__"):
        return values.__dlpack_device__()[0] in (KDL_CUDA, KDL_CUDA_MANAGED)
    return hasattr(values, "__cuda_array_interface__")


def is_torch_tensor(values: Any) -> bool:
    """Whether it is one, found out without importing torch."""
    return any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in type(values).__mro__)


def _from_tensor(tensor: Any, argument: Argument) -> ArrayInput:
    name = argument.name
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} must lie in CPU memory, got a tensor on device {tensor.device}; pass {name}.cpu()")
    tensor = tensor.detach()  # a cache has no use for gradients
    if str(tensor.dtype) == "torch.bfloat16":
        import torch  # noqa: PLC0415 (loaded already: it made the tensor)

        return ArrayInput(tensor.view(torch.int16).numpy().view(np.uint16), "bfloat16", True)
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name} {_KINDS}, got {tensor.dtype}")
    return _from_array(tensor.numpy(), argument)


def _as_array(values: Any, argument: Argument) -> npt.NDArray[Any]:
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "__dlpack__"):
        device, index = values.__dlpack_device__()
        if device != _DLPACK_CPU:
            raise ValueError(
                f"{argument.name} must lie in CPU memory, got an array on DLPack device ({int(device)}, {index}); "
                "move it to the CPU first"
            )
        if not hasattr(values, "__array__"):
            return np.from_dlpack(values)
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{argument.name} must be an array {argument.axes}, got {type(values).__name__}") from error


def _from_array(given: npt.NDArray[Any], argument: Argument) -> ArrayInput:
    check_unmasked(given, argument.name)
    # An array of our own over the memory: code that runs while other arguments are read cannot change its shape or dtype.
    array = given.view(np.ndarray)
    is_writable = _may_be_written(given)
    if array.dtype.name == "bfloat16":  # of ml_dtypes
        return ArrayInput(array.view(np.uint16), "bfloat16", is_writable)
    if array.dtype.name not in ("float16", "float32", "float64"):
        raise TypeError(f"{argument.name} {_KINDS}, got {array.dtype}")
    is_converted = not array.dtype.isnative
    if is_converted:
        array = array.astype(array.dtype.newbyteorder("="))
    return ArrayInput(array, array.dtype.name, is_writable, is_converted)


def check_unmasked(values: Any, name: str) -> None:
    """Raise a ValueError for a numpy.ma array with masked items, whose mask would be lost."""
    masked_arrays = sys.modules.get("numpy.ma")  # if it is not loaded, there are none
    if masked_arrays is not None and isinstance(values, masked_arrays.MaskedArray) and np.any(values.mask):
        raise ValueError(
            f"{name} must have no masked items, got a numpy.ma array with {np.count_nonzero(values.mask)}: "
            f"a mask cannot be stored; pass {name}.filled(0)"
        )


def _may_be_written(memory: Any) -> bool:
    """Whether somebody may write the memory of an array, or of what it is a view of; so it is unless that is known."""
    while isinstance(memory, np.ndarray):
        if memory.flags.writeable or (memory.base is None and not memory.flags.owndata):
            return True
        if memory.base is None:
            return False
        memory = memory.base
    if isinstance(memory, memoryview):
        return not memory.readonly or _may_be_written(memory.obj)
    mapping = getattr(sys.modules.get("mmap"), "mmap", bytes)  # not loaded: it is none
    if isinstance(memory, mapping):
        with memoryview(memory) as view:
            return not view.readonly
    return not (isinstance(memory, bytes) or _core.is_own_memory(memory))
