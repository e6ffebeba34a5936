"""The safetensors container: the header of a file as checked numbers, the header of a file to be written, and checksums.

A file is 8 bytes that say how long the header is (little-endian), the header (JSON), and the data of all tensors one
after the other. Everything is checked when a file is opened; whoever reads tensors needs no further check. Files of ours
carry a CRC-32 of their header inside it, and one of each block of data. A CRC-32 finds any burst of up to 32 flipped bits,
and of all other damage all but one case in 2^32; it is no protection against somebody who wants to deceive.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias
from zlib import crc32

from attncache.files import strict_json
from attncache.files.errors import damaged

ALIGNMENT = 64  # of every tensor of ours in the file, so in memory too: a mapping begins at a page
PADDING = "__pad"
_LENGTH = 8
_MOST = 100_000_000  # bytes of a header, the limit of the safetensors library
BLOCK = 16 << 20  # bytes of a tensor under one checksum
DIGITS = 8  # of a checksum: hexadecimal, lower-case
_BEGINNING = b'{"__metadata__":{"header_crc32":"'
_SEAL_AT = _LENGTH + len(_BEGINNING)
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
}


class Tensor(NamedTuple):
    """One tensor: its dtype by safetensors' name, its shape, and the bytes of the file that it takes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def n_bytes(self) -> int:
        return self.end - self.begin


Named: TypeAlias = tuple[str, str, tuple[int, ...]]  # name, dtype and shape of a tensor to be written


class Header(NamedTuple):
    """What a file says of itself: tensors in the order of their bytes, metadata, and the header's own bytes."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    raw: bytes

    @property
    def is_sealed(self) -> bool:
        """Whether the header carries its own checksum, which has then been compared."""
        return self.raw.startswith(_BEGINNING, _LENGTH)


def is_safetensors(beginning: bytes) -> bool:
    """Whether the first bytes of a file are those of a safetensors file; of ours, even if they are damaged."""
    is_ours = beginning.startswith(_BEGINNING[1:], _LENGTH + 1)
    return is_ours or (
        beginning[_LENGTH : _LENGTH + 1] == b"{" and int.from_bytes(beginning[:_LENGTH], "little") <= _MOST
    )


def header_length(beginning: bytes, file_size: int) -> int:
    """The bytes of the header and its length, from the first 8 bytes of a file.

    Raises:
        DamagedFileError: the file cannot be as long as it says, or the header is longer than any may be.
    """
    if len(beginning) < _LENGTH:
        raise damaged("the file", "must begin with the 8 bytes of the header's length", f"{file_size} bytes")
    length = int.from_bytes(beginning[:_LENGTH], "little")
    if length > _MOST:
        raise damaged("the header (bytes 0 to 7)", f"must be at most {_MOST} bytes long", length)
    if _LENGTH + length > file_size:
        raise damaged("the header", f"of {length} bytes must lie in the file", f"a file of {file_size} bytes")
    return _LENGTH + length


def parse_header(raw: bytes, file_size: int) -> Header:
    """The header of a file.

    Args:
        raw: the first ``header_length`` bytes of the file.
        file_size: the size of the file in bytes.

    Raises:
        DamagedFileError: the header breaks a rule of safetensors, or does not match the checksum that it carries.
    """
    if raw.startswith(_BEGINNING, _LENGTH):
        check_seal(raw, _SEAL_AT, "header_crc32", "the header")
    try:
        entries = strict_json.parse(raw[_LENGTH:])
    except ValueError as error:
        raise damaged("the header", "must be JSON in UTF-8", error) from error
    if not isinstance(entries, dict):
        raise damaged("the header", "must be a JSON object", type(entries).__name__)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged("__metadata__", "must be an object of strings", repr(metadata)[:80])
    tensors = [_tensor(name, entry, len(raw)) for name, entry in entries.items()]
    return Header(_covering(tensors, len(raw), file_size), metadata, raw)


def _tensor(name: str, entry: Any, data_begins: int) -> Tensor:
    """One entry of the header, checked on its own."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise damaged(f"tensor {name!r}", "must have dtype, shape and data_offsets alone", repr(entry)[:80])
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise damaged(f"dtype of tensor {name!r}", f"must be one of {', '.join(_BITS)}", repr(dtype)[:80])
    if not isinstance(shape, list) or not all(map(strict_json.is_whole, shape)):
        raise damaged(f"shape of tensor {name!r}", "must be whole numbers from 0 on", repr(shape)[:80])
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(strict_json.is_whole, offsets)):
        raise damaged(f"data_offsets of tensor {name!r}", "must be two whole numbers", repr(offsets)[:80])
    begin, end = offsets
    n_bytes = _BITS[dtype] // 8
    for size in shape:
        n_bytes *= size
        if n_bytes >= 2**63:  # even if a later size is 0: other readers multiply in this order too
            raise damaged(f"shape of tensor {name!r}", "must come to fewer than 2**63 bytes", shape)
    if end - begin != n_bytes:
        rule = f"must be {n_bytes} bytes apart, as {dtype} of shape {shape} takes"
        raise damaged(f"data_offsets of tensor {name!r}", rule, offsets)
    return Tensor(name, dtype, tuple(shape), data_begins + begin, data_begins + end)


def _covering(tensors: list[Tensor], data_begins: int, file_size: int) -> dict[str, Tensor]:
    """The tensors in the order of their bytes, if they cover the data without a hole, an overlap or a rest."""
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    at = data_begins
    for tensor in tensors:
        if tensor.begin != at:
            rule = f"must begin where the tensor before ends, at {at - data_begins}"
            raise damaged(f"data_offsets of tensor {tensor.name!r}", rule, tensor.begin - data_begins)
        at = tensor.end
    if at != file_size:
        raise damaged("the file", f"must be {at} bytes long, as its header says", f"{file_size} bytes")
    return {tensor.name: tensor for tensor in tensors}


class Plan(NamedTuple):
    """Where everything goes in a file to be written; the bytes of the header need the checksums of the data."""

    entries: dict[str, dict[str, Any]]
    tensors: list[Tensor]
    data_begins: int
    file_size: int

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """The header with its own checksum; metadata must be as long as that given to ``plan``."""
        raw = _header(self.entries, metadata)
        if len(raw) != self.data_begins:
            raise AssertionError(f"a header of {self.data_begins} bytes was planned, got {len(raw)}")
        return sealed(raw, _SEAL_AT)


def plan(tensors: Sequence[Named], metadata: Mapping[str, str]) -> Plan:
    """Lay tensors out one after the other, each at a multiple of ALIGNMENT.

    Args:
        tensors: in the order of the file.
        metadata: names and strings of the final lengths.

    Raises:
        ValueError: the header would be longer than a reader accepts.
    """
    entries: dict[str, dict[str, Any]] = {}
    spans = []
    at = n_pads = 0
    for name, dtype, shape in tensors:
        if at % ALIGNMENT:
            end = at + ALIGNMENT - at % ALIGNMENT
            entries[f"{PADDING}{n_pads}"] = {"dtype": "U8", "shape": [end - at], "data_offsets": [at, end]}
            at, n_pads = end, n_pads + 1
        n_bytes = _BITS[dtype] // 8
        for size in shape:
            n_bytes *= size
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + n_bytes]}
        spans.append((name, dtype, shape, at, at + n_bytes))
        at += n_bytes
    begins = len(_header(entries, metadata))
    if begins > _MOST:
        raise ValueError(f"tokens and metadata must leave the header under {_MOST} bytes, got {begins}")
    placed = [Tensor(name, dtype, shape, begins + begin, begins + end) for name, dtype, shape, begin, end in spans]
    return Plan(entries, placed, begins, begins + at)


def _header(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """The header with zeros for its checksum, padded so that data begin at a multiple of ALIGNMENT."""
    whole = {"__metadata__": {"header_crc32": "0" * DIGITS, **metadata}, **entries}
    text = json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(_LENGTH + len(text)) % ALIGNMENT)
    return len(text).to_bytes(_LENGTH, "little") + text


def hexadecimal(checksum: int) -> str:
    """Eight lower-case digits."""
    return f"{checksum:08x}"


def blocks(n_bytes: int) -> list[tuple[int, int]]:
    """Where each block of a tensor begins and ends."""
    return [(begin, min(begin + BLOCK, n_bytes)) for begin in range(0, n_bytes, BLOCK)]


def sealed(text: bytes, at: int) -> bytes:
    """A text with eight zeros at ``at`` replaced by its own checksum."""
    return text[:at] + hexadecimal(crc32(text)).encode() + text[at + DIGITS :]


def check_seal(text: bytes, at: int, name: str, what: str) -> None:
    """Compare a sealed text with the checksum that it carries.

    Raises:
        DamagedFileError: they differ.
    """
    carried, computed = text[at : at + DIGITS], hexadecimal(crc32(text[:at] + b"0" * DIGITS + text[at + DIGITS :]))
    if carried != computed.encode():
        raise damaged(name, f"must be {computed}, the checksum of {what}", carried.decode("latin-1"))
