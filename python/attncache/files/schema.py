"""Which tensors and which description a layer has in a file: the names, and the check of what a file holds.

A dense layer N is the tensor ``layers.N.pattern``. A factored one is ``layers.N.query`` and ``layers.N.key``, with
``.lse`` if it was given, ``.key_mask`` if some key is hidden, ``.sinks`` if there are any, and its numbers in its
description. Both may bring what was computed from them: ``.mean`` and ``.mean_by_key``, the head means of a dense layer;
``.row_greatest`` and ``.row_sum``, the normalisers of a factored one.
"""

from __future__ import annotations

import re
from os import PathLike
from typing import Any, NamedTuple

from attncache.files import strict_json
from attncache.files.errors import damaged
from attncache.files.safetensors import Header, Tensor
from attncache.layer_source import LayerSource, checked_layer_source

VERSION = "1"  # of the format
STORED = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}  # safetensors' names of what layers are stored as
_Path = str | PathLike[str]
Description = dict[str, Any]
_KINDS = {
    "dense": (("pattern",), ("mean", "mean_by_key")),
    "factored": (("query", "key"), ("lse", "key_mask", "sinks", "row_greatest", "row_sum")),
}  # what a layer of each kind must have, and may have
_PAIRS = (("mean", "mean_by_key"), ("row_greatest", "row_sum"))
INDEX = tuple(name for pair in _PAIRS for name in pair)  # what was computed from a layer
_AXES = {
    "pattern": "[batch, head, query, key]",
    "query": "[batch, head, query, item]",
    "key": "[batch, key head, key, item]",
    "lse": "[batch, head, query]",
    "key_mask": "[batch, key]",
    "sinks": "[head]",
    "mean": "[batch, query, key]",
    "mean_by_key": "[batch, key, query]",
    "row_greatest": "[batch, head, query]",
    "row_sum": "[batch, head, query]",
}
_MOST_OF_NOTHING = 1 << 20  # what follows takes memory for each batch item, which nothing else bounds
_NAME = re.compile(r"layers\.(0|[1-9][0-9]{0,8})\.([a-z_]+)")


class StoredLayer(NamedTuple):
    """One layer in a file: its description, its tensors by the last word of their names, and where it comes from."""

    number: int
    description: Description
    tensors: dict[str, Tensor]
    source: LayerSource | None = None


def layers_of(header: Header, path: _Path, first: int = 0) -> list[StoredLayer]:
    """The layers of a file in their order, checked as far as the header tells.

    Args:
        header: of the file.
        path: how errors name it.
        first: the number of its first layer.

    Raises:
        DamagedFileError: layers are missing, their tensors do not fit each other, or a description is wrong.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in header.tensors.items():
        if match := _NAME.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = tensor
    descriptions = _descriptions(header, path)
    if descriptions is None:  # somebody else's file: patterns alone
        found = {number: {"pattern": each["pattern"]} for number, each in found.items() if "pattern" in each}
        descriptions = [{"kind": "dense"}] * len(found)
        if not found:
            names = ", ".join(list(header.tensors)[:5]) or "no tensor"
            raise damaged(path, "the file", "must hold tensors named layers.0.pattern, layers.1.pattern, ..", names)
    numbers = range(first, first + len(descriptions))
    for number in sorted({*found, *numbers}):
        if number not in found or number not in numbers:
            got = "no tensor of this layer" if number not in found else f"layers.{number}"
            rule = f"must be numbered from {first} to {numbers.stop - 1}" if numbers else "must be none"
            raise damaged(path, f"layers.{number}: layers", rule, got)
    return [_checked(StoredLayer(n, descriptions[n - first], found[n]), path) for n in numbers]


def _descriptions(header: Header, path: _Path) -> list[Description] | None:
    """What our metadata say of each layer; None in a file by somebody else."""
    version = header.metadata.get("attncache")
    if version is None:
        return None
    check_version(version, path)
    if not header.is_sealed:
        raise damaged(path, "the header", "must begin with header_crc32, the checksum of itself", "none")
    layers = metadata_entry(header, "layers", path)
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise damaged(path, "layers in __metadata__", "must be a list of objects", repr(layers)[:80])
    return layers


def check_version(version: object, path: _Path) -> None:
    """Refuse what a later attncache wrote.

    Raises:
        DamagedFileError: the version is not the one that this attncache reads.
    """
    if str(version) != VERSION:
        raise damaged(path, "the format", f"must be version {VERSION}; a newer attncache may read it", version)


def metadata_entry(header: Header, name: str, path: _Path) -> Any:
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
        raise damaged(path, f"{name} in __metadata__", "must be JSON", error) from error


def _checked(layer: StoredLayer, path: _Path) -> StoredLayer:
    """A layer whose tensors are those of its kind, with shapes and dtypes that fit each other."""
    where = f"layers.{layer.number}"
    kind = layer.description.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise damaged(path, f"{where}: its kind", f"must be {' or '.join(_KINDS)}", repr(kind)[:80])
    needed, optional = _KINDS[kind]
    for name in needed:
        if name not in layer.tensors:
            raise damaged(path, where, f"must have the tensor {where}.{name}", ", ".join(layer.tensors) or "no tensor")
        _check_main(layer.tensors[name], name, path)
    for name in layer.tensors.keys() - {*needed, *optional}:
        raise damaged(path, f"tensor {where}.{name}", f"must not be in a {kind} layer", layer.tensors[name].dtype)
    for pair in _PAIRS:
        if (pair[0] in layer.tensors) != (pair[1] in layer.tensors):
            raise damaged(path, where, f"must have both {pair[0]} and {pair[1]}, or neither", "one of them")
    if kind == "factored" and len({layer.tensors[name].dtype for name in needed}) > 1:
        dtypes = " and ".join(layer.tensors[name].dtype for name in needed)
        raise damaged(path, where, "must have queries and keys of one dtype", dtypes)
    _check_fit(layer, path)
    return layer._replace(source=_source(layer, path))


def _source(layer: StoredLayer, path: _Path) -> LayerSource | None:
    """Where a layer comes from, as its description says."""
    given = layer.description.get("source")
    if given is None:
        return None
    n_heads = layer.tensors["pattern" if "pattern" in layer.tensors else "query"].shape[1]
    try:
        if not isinstance(given, dict):
            raise TypeError(f"source must be an object, got {type(given).__name__}")
        return checked_layer_source(LayerSource.from_dict(given), n_heads)
    except (TypeError, ValueError) as error:
        raise damaged(path, f"layers.{layer.number}: its source", "must be one that a layer can have", error) from error


def _check_fit(layer: StoredLayer, path: _Path) -> None:
    """Everything beside the pattern, or beside queries and keys, must have the shape that follows from these."""
    if "pattern" in layer.tensors:
        batch_size, n_heads, seq_q, seq_k = layer.tensors["pattern"].shape
    else:
        batch_size, n_heads, seq_q, _ = layer.tensors["query"].shape
        seq_k = layer.tensors["key"].shape[2]
    fitting = {
        "mean": ("F32", (batch_size, seq_q, seq_k)),
        "mean_by_key": ("F32", (batch_size, seq_k, seq_q)),
        "lse": ("F32", (batch_size, n_heads, seq_q)),
        "row_greatest": ("F32", (batch_size, n_heads, seq_q)),
        "row_sum": ("F32", (batch_size, n_heads, seq_q)),
        "key_mask": ("BOOL", (batch_size, seq_k)),
        "sinks": ("F32", (n_heads,)),
    }
    for name in layer.tensors.keys() & fitting.keys():
        tensor, (dtype, shape) = layer.tensors[name], fitting[name]
        if (tensor.dtype, tensor.shape) != (dtype, shape):
            rule = f"must be {dtype} {_AXES[name]} = {list(shape)}"
            raise damaged(path, f"tensor {tensor.name}", rule, f"{tensor.dtype} {list(tensor.shape)}")


def _check_main(tensor: Tensor, name: str, path: _Path) -> None:
    if tensor.dtype not in STORED:
        raise damaged(path, f"dtype of tensor {tensor.name}", f"must be one of {', '.join(STORED)}", tensor.dtype)
    if len(tensor.shape) != 4:
        raise damaged(path, f"tensor {tensor.name}", f"must be {_AXES[name]}", f"shape {list(tensor.shape)}")
    if max(tensor.shape[2:]) >= 2**32:
        rule = "must have fewer than 2**32 queries and keys"
        raise damaged(path, f"tensor {tensor.name}", rule, f"shape {list(tensor.shape)}")
    if max(tensor.shape[:2]) >= 2**24:
        rule = "must have fewer than 2**24 batch items and heads"
        raise damaged(path, f"tensor {tensor.name}", rule, f"shape {list(tensor.shape)}")
    if tensor.n_bytes == 0 and max(tensor.shape[:2]) > _MOST_OF_NOTHING:
        rule = f"must have at most {_MOST_OF_NOTHING} batch items and heads if it is empty"
        raise damaged(path, f"tensor {tensor.name}", rule, f"shape {list(tensor.shape)}")
