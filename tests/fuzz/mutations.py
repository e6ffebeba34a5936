"""Changes bytes, JSON and tensors of a file; the checksums are put right again, or not, so that both are tried."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from tests.fuzz.bases import Files

_SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "BOOL": 1, "U8": 1, "I8": 1}
_NUMBERS = (
    *(0, 1, 2, 3, 7, 64, -1),
    *(2**bits for bits in (31, 32, 40, 53, 62, 63, 64)),
    2**31 - 1,
    2**63 - 1,
    10**30,
    -(2**63),
)
_OTHERS: tuple[Any, ...] = (
    *(1.5, -0.0, 1e308, 1e-320, math.nan, math.inf, True, False, None, [], {}, [[]], [0] * 300, {"a": {"b": 1}}),
    *("", "a", "1", "2", "dense", "factored", "F16", "F99", "layers.0.pattern", "\ud800", "\0", "é" * 50, "[" * 3000),
    *("{", "NaN", '{"a":1,"a":2}', "../../etc/passwd", "cos\nsystem\n(S'true'\ntR.", "segment-000000.safetensors"),
)
_WORDS = ("pattern", "query", "key", "lse", "key_mask", "sinks", "mean", "mean_by_key", "row_greatest", "row_sum", "x")


class Case(NamedTuple):
    """An input: the files of a cache, and how it was made."""

    files: Files
    changes: list[str]


def case(number: int, bases: Sequence[Files]) -> Case:
    """The input of a number, always the same."""
    random = Random(number)
    files = dict(random.choice(bases))
    changes = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        name = random.choice(sorted(files))
        change = (
            _change_manifest if name == "manifest.json" else random.choice((_change_bytes, _change_file, _change_file))
        )
        changed = change(random, files[name])
        changes.append(f"{change.__name__.strip('_')} of {name}")
        if "manifest.json" in files and name != "manifest.json" and random.random() < 0.8:
            files["manifest.json"] = _with_hash(files["manifest.json"], files[name], changed)
        files[name] = changed
    return Case(files, changes)


def _change_bytes(random: Random, raw: bytes) -> bytes:
    """Flip, replace, insert, remove or repeat some bytes."""
    data = bytearray(raw)
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(data) + 1)
        size = random.choice((1, 1, 2, 8, 64))
        kind = random.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[at : at + size] = random.randbytes(min(size, len(data) - at))
        elif kind == 2:
            data[at:at] = random.randbytes(size)
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size]
        else:
            del data[at:]
    return _sealed(bytes(data)) if random.random() < 0.7 else bytes(data)


def _change_file(random: Random, raw: bytes) -> bytes:
    """Change the header, what it says of tensors, or the data, of a safetensors file."""
    try:
        length = int.from_bytes(raw[:8], "little")
        header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    except ValueError:
        return _change_bytes(random, raw)
    if not isinstance(header, dict):
        return _change_bytes(random, raw)
    changes: tuple[Callable[[Random, dict[str, Any], bytes], bytes], ...]
    changes = (_any_value, _inner_value, _inner_value, _new_shape, _new_shape, _new_name, _new_data)
    for _ in range(random.choice((1, 1, 2))):
        data = random.choice(changes)(random, header, data)
    if random.random() < 0.5:
        _put_checksums(header, data)
    return _file(random, header, data)


def _change_manifest(random: Random, raw: bytes) -> bytes:
    """Change a value of a manifest, or its bytes."""
    try:
        manifest = json.loads(raw)
    except ValueError:
        return _change_bytes(random, raw)
    if random.random() < 0.3:
        return _change_bytes(random, raw)
    _change_json(random, manifest)
    return _sealed(json.dumps(manifest, separators=(",", ":")).encode() + b"\n")


def _any_value(random: Random, header: dict[str, Any], data: bytes) -> bytes:
    """Change something anywhere in the header."""
    _change_json(random, header)
    return data


def _inner_value(random: Random, header: dict[str, Any], data: bytes) -> bytes:
    """Change something in one of the JSON texts of the metadata."""
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict) and metadata:
        name = random.choice(sorted(metadata))
        try:
            value = [json.loads(metadata[name])]
        except (ValueError, TypeError):
            value = [metadata[name]]
        _change_json(random, value)
        metadata[name] = json.dumps(value[0] if value else None)
    return data


def _new_shape(random: Random, header: dict[str, Any], data: bytes) -> bytes:
    """Give a tensor another shape or dtype, and the file the bytes that this takes, if they are not too many."""
    tensors = _tensors(header)
    if not tensors:
        return data
    name = random.choice(sorted(tensors))
    entry = tensors[name]
    dtype = random.choice((entry["dtype"], entry["dtype"], *_SIZES))
    shape = list(entry["shape"])
    for _ in range(random.choice((1, 1, 2))):
        kind = random.randrange(5)
        if kind == 0 and shape:
            shape[random.randrange(len(shape))] = random.choice(_NUMBERS)
        elif kind == 1 and shape:
            shape[random.randrange(len(shape))] = random.randrange(6)
        elif kind == 2:
            random.shuffle(shape)
        elif kind == 3:
            shape.append(random.choice((0, 1, 1, 2)))
        elif shape:
            shape.pop()
    size = _SIZES.get(dtype, 4) * math.prod(size for size in shape if isinstance(size, int))
    if not 0 <= size <= 1 << 16:
        size = random.choice((0, 4, 64))
    pieces = {each: data[slice(*tensors[each]["data_offsets"])] for each in tensors}
    pieces[name] = (pieces[name] * (size // max(1, len(pieces[name])) + 1))[:size].ljust(size, b"\0")
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
    return _packed(header, pieces)


def _new_name(random: Random, header: dict[str, Any], data: bytes) -> bytes:
    """Rename a tensor, or drop it with its bytes."""
    tensors = _tensors(header)
    if not tensors:
        return data
    pieces = {each: data[slice(*tensors[each]["data_offsets"])] for each in tensors}
    name = random.choice(sorted(tensors))
    entry = header.pop(name)
    piece = pieces.pop(name)
    if random.random() < 0.7:
        number = random.choice(("0", "0", "1", "2", "3", "9", "00", "-1", "999999999", "1e3"))
        name = random.choice((f"layers.{number}.{random.choice(_WORDS)}", "__pad7", "other", ""))
        header[name], pieces[name] = entry, piece
    return _packed(header, pieces)


def _new_data(random: Random, _: dict[str, Any], data: bytes) -> bytes:
    """Write special floats, or anything, somewhere into the data."""
    if not data:
        return data
    at = random.randrange(len(data)) & ~3
    special = struct.pack("<f", random.choice((math.nan, math.inf, -math.inf, -1.0, 1e38, 1e-45)))
    piece = random.choice((special * 4, random.randbytes(16), b"\xff" * 16))
    return (data[:at] + piece + data[at + len(piece) :])[: len(data)]


def _tensors(header: dict[str, Any]) -> dict[str, Any]:
    """The entries that still look like tensors."""
    found = {}
    for name, entry in header.items():
        match entry:
            case {"dtype": str(), "shape": list(), "data_offsets": [int(begin), int(end)]}:
                if not isinstance(begin, bool) and not isinstance(end, bool) and max(abs(begin), abs(end)) < 2**40:
                    found[name] = entry
    return found


def _packed(header: dict[str, Any], pieces: dict[str, bytes]) -> bytes:
    """The data of tensors one after the other, each at a multiple of 64; their entries say so."""
    data = b""
    for name in [name for name in header if name in pieces]:
        if name.startswith("__pad"):
            del header[name]
            continue
        if missing := -len(data) % 64:
            offsets = [len(data), len(data) + missing]
            header[f"__pad{len(data)}"] = {"dtype": "U8", "shape": [missing], "data_offsets": offsets}
            data += bytes(missing)
        header[name]["data_offsets"] = [len(data), len(data) + len(pieces[name])]
        data += pieces[name]
    return data


def _change_json(random: Random, value: Any) -> None:
    """Change one value in a tree of JSON values, or drop, add or exchange some."""
    places = _places(value)
    if not places:
        return
    holder, key = random.choice(places)
    kind = random.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[random.choice(("a", "kind", "0", "layers.0.pattern", "__metadata__"))] = holder[key]
    elif kind == 2:
        other, place = random.choice(places)
        holder[key], other[place] = other[place], holder[key]
    elif type(holder[key]) is int:
        holder[key] = random.choice((*_NUMBERS, holder[key] + 1, holder[key] - 1, float(holder[key]), *_OTHERS))
    else:
        holder[key] = random.choice((*_OTHERS, *_NUMBERS))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Where values are: holder and key."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    found = [(value, key) for key in keys]
    for key in keys:
        found += _places(value[key])
    return found


def _put_checksums(header: dict[str, Any], data: bytes) -> None:
    """Make the checksums of the data right, of a file that had any."""
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict) and "data_crc32" in metadata:
        found = {}
        for name, entry in _tensors(header).items():
            begin, end = entry["data_offsets"]
            if not name.startswith("__pad"):
                found[name] = [f"{zlib.crc32(data[begin:end]):08x}"] if begin < end else []
        metadata["data_crc32"] = json.dumps({"block": 16 << 20, "tensors": found})


def _file(random: Random, header: Any, data: bytes) -> bytes:
    """The bytes of a file; now and then with a text that json would not write."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=random.random() < 0.5).encode(
        "utf-8", "surrogatepass"
    )
    if random.random() < 0.05:
        at = random.randrange(len(text))
        text = text[:at] + random.choice((b",", b'"', b"}", b"\\u0000", b"\xff", b"[" * 2000, b"1" * 5000)) + text[at:]
    text += b" " * (-(8 + len(text)) % 64)
    raw = struct.pack("<Q", len(text)) + text + data
    return _sealed(raw) if random.random() < 0.9 else raw


def _sealed(raw: bytes) -> bytes:
    """The same with a right checksum, if it has one where it belongs."""
    is_manifest = raw.startswith(b'{"manifest_crc32":"')
    at = 19 if is_manifest else 41
    end = len(raw) if is_manifest else 8 + int.from_bytes(raw[:8], "little")
    if not raw[:at].endswith(b'_crc32":"') or at + 8 > end:
        return raw
    blank = raw[:at] + b"0" * 8 + raw[at + 8 : end]
    return blank[:at] + f"{zlib.crc32(blank):08x}".encode() + blank[at + 8 :] + raw[end:]


def _with_hash(manifest: bytes, old: bytes, new: bytes) -> bytes:
    """The manifest with the hash of a segment's new header in the place of the old one's."""
    before, after = (raw[: 8 + int.from_bytes(raw[:8], "little")] for raw in (old, new))
    digests = hashlib.sha256(before).hexdigest().encode(), hashlib.sha256(after).hexdigest().encode()
    return _sealed(manifest.replace(*digests))
