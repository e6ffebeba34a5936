"""The tensors in what ``torch.save`` wrote, read without torch; nothing in the file is run, and no name in it is looked up.

The file is a zip archive: a pickle that says which tensors there are, and the bytes of each storage. ``_value`` follows the few
opcodes of a pickle that make tuples, lists, dicts, numbers, strings and tensors, and refuses every other.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from attncache.adapters.generation import is_step, merged_steps
from attncache.files.arrays import ONLY, NamedArray, imported, read_only, undamaged
from attncache.files.bytes import Bytes, mapped, read

_STORAGES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool", "ComplexFloat")
_ITEMS = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64")
_DTYPES = {f"torch.{name}Storage": dtype for name, dtype in zip(_STORAGES, _ITEMS, strict=True)}
_TENSOR, _DICT = "torch._utils._rebuild_tensor_v2", "collections.OrderedDict"
_MARK = object()
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "MARK": lambda: _MARK,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_ARGUMENTS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_MOST_PICKLED = 100_000_000  # bytes
_RULE = "must hold tensors, numbers and strings in tuples, lists and dicts alone"


class _Name(NamedTuple):
    """A class or function that the pickle names."""

    name: str


class _Storage(NamedTuple):
    """A member of the archive: its name, the dtype of its items and how many there are."""

    member: str
    dtype: str
    n_items: int


class _Tensor(NamedTuple):
    """A tensor over a storage, as PyTorch describes it: its strides and where it begins count items."""

    storage: _Storage
    begin: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def torch_arrays(path: Path, *, is_mapped: bool) -> list[NamedArray]:
    """The tensors in a file: of a tuple by their numbers, of a mapping by their names, of a generation by their layers.

    Args:
        path: of the file.
        is_mapped: whether to map it; otherwise it is read now.

    Raises:
        OSError: it cannot be opened. ValueError: it holds something else, or is damaged.
    """
    with path.open("rb") as stream, undamaged("the file", _RULE), zipfile.ZipFile(stream) as archive:
        size = path.stat().st_size
        whole = mapped(stream.fileno(), size) if is_mapped else read(stream.fileno(), size)
        members = {info.filename: info for info in archive.infolist()}
        pickled = next(info for name, info in members.items() if name.endswith("data.pkl"))
        if pickled.file_size > _MOST_PICKLED:
            raise ValueError(f"a pickle of {pickled.file_size} bytes")
        folder = pickled.filename.removesuffix("data.pkl")
        is_big = f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") == b"big"
        said = archive.read(pickled)
        # A value takes a byte of the pickle at least, unless it is in a list that is there several times.
        found = _Archive(path, whole, members, f"{folder}data/", ">" if is_big else "<", len(said) + 1000)
        return found.arrays(_value(said), "")


def _value(pickled: bytes) -> Any:
    """What a pickle says, with ``_Tensor`` for its tensors.

    Raises:
        ValueError: it names something that is no tensor, or an opcode is none of those that follow.
    """
    import pickletools  # noqa: PLC0415 (takes time, and few files need it)

    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        items: list[Any] = []
        while (item := stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    argument: Any
    for opcode, argument, _ in pickletools.genops(pickled):
        name = opcode.name
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _ARGUMENTS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(since_mark() if name == "TUPLE" else [stack.pop() for _ in range(int(name[-1]))][::-1]))
        elif name in ("APPEND", "APPENDS"):
            items = since_mark() if name == "APPENDS" else [stack.pop()]
            _of_kind(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
            _set_items(_of_kind(stack[-1], dict), items)
        elif name == "GLOBAL":
            stack.append(_known(argument.replace(" ", ".")))
        elif name == "BINPERSID":
            stack.append(_storage(*stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_made(_of_kind(stack.pop(), _Name).name, arguments))
        elif name == "BUILD":  # the attributes of an OrderedDict, which a model gives its weights
            stack.pop()
            _of_kind(stack[-1], dict)
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"the opcode {name} of a pickle, which is not followed because it may run code")
    raise ValueError("a pickle without an end")


def _known(name: str) -> _Name:
    if name not in (_TENSOR, _DICT) and name not in _DTYPES:
        raise ValueError(
            f"{name}, which is not looked up because it may run code; "
            "torch.save(tuple(outputs.attentions), path) writes tensors alone"
        )
    return _Name(name)


def _of_kind(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        wanted = getattr(kind, "__name__", "string or number").strip("_").lower()
        got = type(value).__name__.strip("_").lower()
        raise ValueError(f"a pickle with a {got} in the place of a {wanted}")  # noqa: TRY004 (what a file holds is a value)
    return value


def _set_items(target: dict[Any, Any], items: Sequence[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_of_kind(key, str | int | float | None)] = value


def _storage(kind: str, dtype: _Name, member: str, _: str, n_items: int) -> _Storage:
    if kind != "storage":
        raise ValueError(f"a {kind!r} in the place of a storage")
    return _Storage(_of_kind(member, str), _DTYPES[_of_kind(dtype, _Name).name], _of_kind(n_items, int))


def _made(name: str, arguments: Sequence[Any]) -> Any:
    """What a call of one of the known names gives."""
    if name == _DICT:
        made: dict[Any, Any] = {}
        _set_items(made, [each for pair in (arguments[0] if arguments else ()) for each in pair])
        return made
    if name != _TENSOR:
        raise ValueError(f"a call of {name}")
    storage, begin, shape, strides = arguments[:4]
    numbers = (begin, *shape, *strides)
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers) or len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {str(shape)[:80]} and strides {str(strides)[:80]}")
    last = begin + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= _of_kind(storage, _Storage).n_items:
        raise ValueError(f"a tensor of shape {str(list(shape))[:80]} in a storage of {storage.n_items} items")
    return _Tensor(storage, begin, tuple(shape), tuple(strides))


@dataclass
class _Archive:
    """Finds the arrays in a value of nested tuples, lists and dicts, and reads them; what else there is is passed over.

    Attributes:
        path, whole: the file, and all its bytes.
        members, folder, order: where storages are: the members of the archive, what their names begin with, their byte order.
        most_values: how many a value may have; n_values and n_items count them and the items of tensors.
    """

    path: Path
    whole: Bytes
    members: Mapping[str, zipfile.ZipInfo]
    folder: str
    order: Literal["<", ">"]
    most_values: int
    n_values: int = 0
    n_items: int = 0

    def arrays(self, value: Any, name: str) -> list[NamedArray]:
        """The arrays in a value of this name."""
        self.n_values += 1
        if self.n_values > self.most_values:
            raise ValueError(f"more than {self.most_values} values")
        if isinstance(value, _Tensor):
            self._count(value)
            dtype, shape = value.storage.dtype, value.shape
            return [NamedArray(name or ONLY, dtype, shape, lambda key: self._items(value, key), self.path)]
        if isinstance(value, list | tuple):
            steps = self._merged(value, name) if value and is_step(value[0]) else None
            if steps is not None:
                return steps
            value = dict(enumerate(value))
        if not isinstance(value, dict):
            return []
        pairs = [(f"{name}.{key}" if name else str(key), item) for key, item in value.items()]
        return [array for key, item in pairs for array in self.arrays(item, key)]

    def _count(self, tensor: _Tensor) -> None:
        """Refuse more items than the file can mean: a tensor may repeat its items, and a pickle its tensors."""
        self.n_items += math.prod(tensor.shape)
        if self.n_items > 1 << 20 and self.n_items // 1000 > len(self.whole):
            raise ValueError(f"tensors of {self.n_items} items, of which the file holds less than a thousandth")

    def _merged(self, steps: Sequence[Any], name: str) -> list[NamedArray] | None:
        """The layers of a generation; None where these are other tuples in tuples, such as keys and values."""
        try:
            merged = list(merged_steps([[self._step(item) for item in step] for step in steps]))
        except (TypeError, ValueError) as error:
            if name and "attention" not in name:
                return None
            with undamaged(name or "the file", "must hold the steps of a generation"):
                raise ValueError(str(error)) from error
        found = []
        for n, (layer, source) in enumerate(merged):
            number = n if source is None else source.layer
            named = f"{name}.{number}" if name else str(number)
            found.append(NamedArray(named, layer.dtype, layer.array.shape, layer.array.__getitem__, self.path))
        return found

    def _step(self, item: Any) -> Any:
        """A tensor of a step as an array."""
        if not isinstance(item, _Tensor):
            return item
        self._count(item)
        items = self._items(item, ...)
        is_bfloat16 = item.storage.dtype == "bfloat16"
        return items.view(imported("ml_dtypes", "a generation in bfloat16").bfloat16) if is_bfloat16 else items

    def _items(self, tensor: _Tensor, key: Any) -> npt.NDArray[Any]:
        """The items of a tensor at an index, read-only; bfloat16 as uint16."""
        storage = tensor.storage
        dtype = np.dtype("uint16" if storage.dtype == "bfloat16" else storage.dtype).newbyteorder(self.order)
        n_bytes = storage.n_items * dtype.itemsize
        with undamaged(f"storage {storage.member}", "must be whole"):
            raw = self._bytes(f"{self.folder}{storage.member}")
            if len(raw) < n_bytes:
                raise ValueError(f"{len(raw)} bytes for {storage.n_items} items of {storage.dtype}")
            if 0 in tensor.shape:
                return read_only(np.empty(tensor.shape, dtype)[key])
            items, strides = raw[:n_bytes].view(dtype)[tensor.begin :], [n * dtype.itemsize for n in tensor.strides]
            found = as_strided(items, tensor.shape, strides, writeable=False)[key]
            return read_only(found if dtype.isnative else found.astype(dtype.newbyteorder("=")))

    def _bytes(self, member: str) -> Bytes:
        """The bytes of a member: over those of the file, if it is not compressed."""
        info = self.members[member]
        if info.compress_type != zipfile.ZIP_STORED:
            with self.path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
                return np.frombuffer(archive.read(info), np.uint8)
        head = self.whole[info.header_offset : info.header_offset + 30].tobytes()
        begin = info.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        if head[:4] != b"PK\x03\x04" or begin + info.file_size > len(self.whole):
            raise ValueError("a member that is not in the file")
        return self.whole[begin : begin + info.file_size]
