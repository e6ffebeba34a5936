"""What a file says beside its bytes: which tensors a layer has, its description, tokens and metadata; all checked.

A layer N of one kind has the tensors ``layers.N.<name>`` of that kind. Every slot of what was derived from it and is kept
(``SLOTS``) may add its own: a new one is an entry there, and what computes and takes it in layers.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from attncache.files import strict_json
from attncache.files.errors import damaged
from attncache.files.safetensors import Header, Tensor
from attncache.layer_source import LayerSource, checked_layer_source
from attncache.tokens import Tokens, checked_tokens

if TYPE_CHECKING:
    from attncache.cache import AttentionCache

VERSION = "1"  # of the format
STORED = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}  # safetensors' names of what layers are stored as
Description = dict[str, Any]
Axes = tuple[str, ...]


class Slot(NamedTuple):
    """What was derived from a layer and is kept: bytes of the slot, not of the layer; all of its tensors are there or none.

    Attributes:
        kind: of the layers that may have it.
        tensors: the axes of each tensor by the last word of its name; all are float32.
    """

    kind: str
    tensors: Mapping[str, Axes]


HEAD_MEANS = Slot("dense", {"mean": ("batch", "query", "key"), "mean_by_key": ("batch", "key", "query")})
ROW_SUMS = Slot("factored", dict.fromkeys(("row_greatest", "row_sum"), ("batch", "head", "query")))
SLOTS = (HEAD_MEANS, ROW_SUMS)
DERIVED = frozenset(name for slot in SLOTS for name in slot.tensors)
_MAIN: dict[str, dict[str, Axes]] = {
    "dense": {"pattern": ("batch", "head", "query", "key")},
    "factored": {"query": ("batch", "head", "query", "item"), "key": ("batch", "key head", "key", "item")},
}  # what a layer of each kind must have
_BESIDE: dict[str, dict[str, tuple[str, Axes]]] = {
    "dense": {},
    "factored": {
        "lse": ("F32", ("batch", "head", "query")),
        "key_mask": ("BOOL", ("batch", "key")),
        "sinks": ("F32", ("head",)),
    },
}  # and may have, with its dtype: where it was given, where some key is hidden, where there are any; and its slots
for _slot in SLOTS:
    _BESIDE[_slot.kind].update({name: ("F32", axes) for name, axes in _slot.tensors.items()})
MOST_LAYERS = 1_000_000  # far beyond any model, and quickly counted
MOST_OF_NOTHING = 1 << 20  # what follows takes memory for each batch item, which nothing else bounds
_NAME = re.compile(r"layers\.(0|[1-9][0-9]{0,8})\.([a-z_]+)")


class StoredLayer(NamedTuple):
    """One layer in a file: its description, its tensors by the last word of their names, and where it comes from."""

    number: int
    description: Description
    tensors: dict[str, Tensor]
    source: LayerSource | None = None

    @property
    def main(self) -> Tensor:
        """The tensor that has the layer's dtype, and its first axes."""
        return self.tensors["pattern" if "pattern" in self.tensors else "query"]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Its sizes as [batch, head, query, key]."""
        batch_size, n_heads, seq_q, seq_k = self.main.shape
        return batch_size, n_heads, seq_q, seq_k if "pattern" in self.tensors else self.tensors["key"].shape[2]


def layers_of(header: Header, first: int = 0) -> list[StoredLayer]:
    """The layers of a file of ours in their order, checked as far as the header tells.

    Args:
        header: of the file.
        first: the number of its first layer.

    Raises:
        DamagedFileError: layers are missing, their tensors do not fit each other, or a description is wrong.
    """
    check_version(header.metadata.get("attncache"))
    if not header.is_sealed:
        raise damaged("the header", "must begin with header_crc32, the checksum of itself", "none")
    descriptions = metadata_entry(header, "layers")
    if not isinstance(descriptions, list) or not all(isinstance(each, dict) for each in descriptions):
        raise damaged("layers in __metadata__", "must be a list of objects", repr(descriptions)[:80])
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in header.tensors.items():
        if match := _NAME.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = tensor
    numbers = range(first, first + len(descriptions))
    for number in sorted({*found, *numbers}):
        if number not in found or number not in numbers:
            got = "no tensor of this layer" if number not in found else f"layers.{number}"
            rule = f"must be numbered from {first} to {numbers.stop - 1}" if numbers else "must be none"
            raise damaged(f"layers.{number}: layers", rule, got)
    return [_checked(StoredLayer(n, descriptions[n - first], found[n])) for n in numbers]


def check_version(version: object) -> None:
    """Refuse what a later attncache wrote.

    Raises:
        DamagedFileError: the version is not the one that this attncache reads.
    """
    if str(version) != VERSION:
        raise damaged("the format", f"must be version {VERSION}; a newer attncache may read it", version)


def metadata_entry(header: Header, name: str) -> Any:
    """The JSON value of an entry in __metadata__; None if there is none.

    Raises:
        DamagedFileError: it is not JSON.
    """
    text = header.metadata.get(name)
    if text is None:
        return None
    try:
        return strict_json.parse(text)
    except ValueError as error:
        raise damaged(f"{name} in __metadata__", "must be JSON", error) from error


def _checked(layer: StoredLayer) -> StoredLayer:
    """A layer whose tensors are those of its kind, with shapes and dtypes that fit each other."""
    where = f"layers.{layer.number}"
    kind = layer.description.get("kind")
    if not isinstance(kind, str) or kind not in _MAIN:
        raise damaged(f"{where}: its kind", f"must be {' or '.join(_MAIN)}", repr(kind)[:80])
    for name, axes in _MAIN[kind].items():
        if name not in layer.tensors:
            raise damaged(where, f"must have the tensor {where}.{name}", ", ".join(layer.tensors) or "no tensor")
        _check_main(layer.tensors[name], axes)
    if len(layer.tensors) > 1:
        _check_beside(layer, where, kind)
    return layer if layer.description.get("source") is None else layer._replace(source=_source(layer))


def _check_beside(layer: StoredLayer, where: str, kind: str) -> None:
    """Everything beside the pattern, or beside queries and keys, has the dtype and shape that follow from these."""
    for name in layer.tensors.keys() - _MAIN[kind].keys() - _BESIDE[kind].keys():
        raise damaged(f"tensor {where}.{name}", f"must not be in a {kind} layer", layer.tensors[name].dtype)
    for slot in SLOTS:
        if 0 < len(slot.tensors.keys() & layer.tensors.keys()) < len(slot.tensors):
            raise damaged(where, f"must have both {' and '.join(slot.tensors)}, or neither", "one of them")
    dtypes = [layer.tensors[name].dtype for name in _MAIN[kind]]
    if len(set(dtypes)) > 1:
        raise damaged(where, "must have queries and keys of one dtype", " and ".join(dtypes))
    sizes = dict(zip(("batch", "head", "query", "key"), layer.shape, strict=True))
    for name in layer.tensors.keys() & _BESIDE[kind].keys():
        tensor, (dtype, axes) = layer.tensors[name], _BESIDE[kind][name]
        shape = [sizes[axis] for axis in axes]
        if (tensor.dtype, list(tensor.shape)) != (dtype, shape):
            rule = f"must be {dtype} [{', '.join(axes)}] = {shape}"
            raise damaged(f"tensor {tensor.name}", rule, f"{tensor.dtype} {list(tensor.shape)}")


def _source(layer: StoredLayer) -> LayerSource | None:
    """Where a layer comes from, as its description says."""
    given = layer.description["source"]
    try:
        if not isinstance(given, dict):
            raise TypeError(f"source must be an object, got {type(given).__name__}")
        return checked_layer_source(LayerSource.from_dict(given), layer.shape[1])
    except (TypeError, ValueError) as error:
        raise damaged(f"layers.{layer.number}: its source", "must be one that a layer can have", error) from error


def _check_main(tensor: Tensor, axes: Axes) -> None:
    """A pattern, queries or keys of a dtype and sizes that a layer can have."""
    where, got = f"tensor {tensor.name}", f"shape {list(tensor.shape)}"
    if tensor.dtype not in STORED:
        raise damaged(f"dtype of {where}", f"must be one of {', '.join(STORED)}", tensor.dtype)
    if len(tensor.shape) != 4:
        raise damaged(where, f"must be [{', '.join(axes)}]", got)
    if max(tensor.shape[2:]) >= 2**32:
        raise damaged(where, "must have fewer than 2**32 queries and keys", got)
    if max(tensor.shape[:2]) >= 2**24:
        raise damaged(where, "must have fewer than 2**24 batch items and heads", got)
    if tensor.n_bytes == 0 and max(tensor.shape[:2]) > MOST_OF_NOTHING:
        raise damaged(where, f"must have at most {MOST_OF_NOTHING} batch items and heads if it is empty", got)


class Said(NamedTuple):
    """What a file or a manifest says of a cache beside its layers.

    Attributes:
        tokens: of each key, as the cache has them.
        query_tokens: of each query, where they are others.
        metadata: the user's.
    """

    tokens: Tokens | None = None
    query_tokens: Tokens | None = None
    metadata: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def of(cls, cache: AttentionCache) -> Said:
        """What a cache says."""
        return cls(cache._tokens, cache._query_tokens, cache._metadata)

    def entries(self) -> dict[str, Any]:
        """The JSON values that are written; nothing for what is not there."""
        values = {"tokens": self.tokens, "query_tokens": self.query_tokens, "metadata": dict(self.metadata) or None}
        return {name: value for name, value in values.items() if value is not None}


def read_said(entry: Callable[[str], Any]) -> Said:
    """What a file says, of which ``entry`` gives the JSON value of an entry by its name, None if there is none.

    Raises:
        DamagedFileError: an entry is of the wrong kind.
    """
    tokens, query_tokens = (_tokens(entry(name), name) for name in ("tokens", "query_tokens"))
    metadata = entry("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise damaged("metadata", "must be a JSON object", type(metadata).__name__)
    return Said(tokens, query_tokens, MappingProxyType(metadata or {}))


def _tokens(tokens: Any, name: str) -> Tokens | None:
    """Tokens as a file has them; they need not fit its layers, as those of a cache need not after more pushes."""
    for item in (tokens, *tokens) if isinstance(tokens, list) else (tokens,):
        if isinstance(item, dict) or isinstance(tokens, str):
            raise damaged(name, "must be lists of strings", repr(item)[:80])
    try:
        return checked_tokens(tokens, ())
    except (TypeError, ValueError) as error:
        raise damaged(name, "must be lists of strings", error) from error
