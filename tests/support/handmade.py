"""Files of caches made by hand from docs/format.md alone, right or wrong in any way; for the tests that damage them."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

BLOCK = 16 << 20
Tensors = Mapping[str, tuple[str, Sequence[int], bytes]]  # by name: dtype, shape and bytes
_ZEROS = "0" * 8


def raw_file(header: bytes | str, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of this header, whatever it is, with its true length or another."""
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entries_of(tensors: Tensors) -> tuple[dict[str, Any], bytes]:
    """Entries of a header for tensors one after the other, and their data."""
    entries: dict[str, Any] = {}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return entries, data


def padded(tensors: Tensors) -> dict[str, tuple[str, Sequence[int], bytes]]:
    """The tensors with padding between them, so that each begins at a multiple of 64."""
    found: dict[str, tuple[str, Sequence[int], bytes]] = {}
    at = 0
    for name, (dtype, shape, raw) in tensors.items():
        if missing := -at % 64:
            found[f"__pad{len(found)}"] = "U8", [missing], bytes(missing)
            at += missing
        found[name] = dtype, shape, raw
        at += len(raw)
    return found


def checksums(tensors: Tensors) -> str:
    """The entry data_crc32 of tensors."""
    found = {
        name: [f"{zlib.crc32(raw[at : at + BLOCK]):08x}" for at in range(0, len(raw), BLOCK)]
        for name, (_, _, raw) in tensors.items()
        if not name.startswith("__pad")
    }
    return json.dumps({"block": BLOCK, "tensors": found})


def sealed_header(entries: Mapping[str, Any], metadata: Mapping[str, Any]) -> bytes:
    """A header of ours with its length and its own checksum, from entries and metadata that may be anything."""
    text = json.dumps({"__metadata__": {"header_crc32": _ZEROS, **metadata}, **entries}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return sealed(struct.pack("<Q", len(text)) + text)


def sealed(beginning: bytes) -> bytes:
    """The beginning of a file, or a manifest, with the checksum in its first eight zeros after ``_crc32":"``."""
    at = beginning.index(b'_crc32":"') + 9
    blank = beginning[:at] + _ZEROS.encode() + beginning[at + 8 :]
    return blank[:at] + f"{zlib.crc32(blank):08x}".encode() + blank[at + 8 :]


def our_file(tensors: Tensors, layers: Any, /, **metadata: Any) -> bytes:
    """A file of ours.

    Args:
        tensors: without padding.
        layers: the descriptions of the layers.
        metadata: more entries of ``__metadata__``, or others in the place of right ones; None leaves one out.
    """
    whole = padded(tensors)
    entries, data = entries_of(whole)
    right = {"attncache": "1", "layers": json.dumps(layers), "data_crc32": checksums(whole)}
    given = {name: value for name, value in {**right, **metadata}.items() if value is not None}
    return sealed_header(entries, given) + data


def manifest(segments: Any, **entries: Any) -> bytes:
    """A manifest of segments, given as their entries, with its checksum."""
    whole = {"manifest_crc32": _ZEROS, "attncache": 1, "next": 1000, "segments": segments, **entries}
    return sealed(json.dumps(whole, separators=(",", ":")).encode() + b"\n")


def segment(name: str, file: bytes, first_layer: int, n_layers: int) -> dict[str, Any]:
    """The entry of a segment in a manifest."""
    header = file[: 8 + struct.unpack("<Q", file[:8])[0]]
    digest = hashlib.sha256(header).hexdigest()
    return {"file": name, "first_layer": first_layer, "n_layers": n_layers, "header_sha256": digest}
