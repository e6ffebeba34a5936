"""One cache in one file: writes it, opens it, and compares its data with their checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import numpy as np

from attncache.files.atomic import begin_flush, replacing, reserve, write_at
from attncache.files.bytes import Bytes, mapped, opened, read, read_header
from attncache.files.errors import DamagedFileError, damaged, in_file, named
from attncache.files.layers import Part, parts_of
from attncache.files.safetensors import BLOCK, DIGITS, PADDING, Header, Plan, Tensor, blocks, hexadecimal, plan
from attncache.files.schema import VERSION, Description, Said, StoredLayer, layers_of, metadata_entry, read_said
from attncache.files.threads import in_threads

if TYPE_CHECKING:
    from attncache.cache import AttentionCache

_PIECE = 1 << 20  # bytes that are checksummed and written while they are in the processor's cache


def write_file(
    path: Path,
    cache: AttentionCache,
    *,
    first: int = 0,
    said: Said = Said(),  # noqa: B008 (it cannot be changed)
    index: bool = False,
    follow: bool = True,
) -> str:
    """Write the layers of a cache as one file in the place of what was there.

    Args:
        path: the file.
        cache: what to write.
        first: the number of the first layer in the file.
        said: what else it says.
        index: whether to write head means and normalisers.
        follow: as for ``replacing``.

    Returns:
        The SHA-256 of the header, which has the checksums of all data.

    Raises:
        OSError: it cannot be written; see ``atomic.replacing``.
    """
    described = [
        parts_of(layer, source, f"layers.{number}", index=index)
        for number, (layer, source) in enumerate(cache._sourced, first)
    ]
    return write_layers(path, described, said, follow=follow)


def write_layers(
    path: Path, described: Sequence[tuple[Description, Sequence[Part]]], said: Said, *, follow: bool = True
) -> str:
    """Write layers as one file in the place of what was there; items of their tensors are asked for one after the other.

    Args:
        path: the file.
        described: the description and the tensors of each layer.
        said: what else it says.
        follow: as for ``replacing``.

    Returns, Raises:
        As ``write_file``.
    """
    parts = [part for _, each in described for part in each]
    more = {"layers": [description for description, _ in described], **said.entries()}
    entries = {"attncache": VERSION, **{name: _json(value) for name, value in more.items()}}
    with in_file(path):
        layout = _plan(parts, entries)
    with replacing(path, follow=follow) as fd:
        reserve(fd, layout.file_size)
        checksums = _write_tensors(fd, layout, parts)
        header = layout.header({**entries, "data_crc32": _checksums_entry(checksums)})
        write_at(fd, header, 0)
    return digest(header)


def digest(header: bytes) -> str:
    """What a file is known by: the SHA-256 of its header."""
    return hashlib.sha256(header).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _plan(parts: Sequence[Part], entries: Mapping[str, str]) -> Plan:
    """Where everything goes; the checksums are not known yet, but how long they are."""
    tensors = [(part.name, part.dtype, part.shape) for part in parts]
    sizes = {tensor.name: tensor.n_bytes for tensor in plan(tensors, {}).tensors}
    unknown = {name: ["0" * DIGITS for _ in blocks(size)] for name, size in sizes.items()}
    return plan(tensors, {**entries, "data_crc32": _checksums_entry(unknown)})


def _checksums_entry(checksums: Mapping[str, Sequence[str]]) -> str:
    return _json({"block": BLOCK, "tensors": checksums})


def _write_tensors(fd: int, layout: Plan, parts: Sequence[Part]) -> dict[str, list[str]]:
    """Write the data of all tensors, and give the checksums of their blocks."""

    def pieces() -> Iterator[tuple[Bytes, int]]:
        end = layout.data_begins
        for tensor, part in zip(layout.tensors, parts, strict=True):
            if tensor.begin > end:
                write_at(fd, bytes(tensor.begin - end), end)
            end = tensor.end
            items = np.ascontiguousarray(part.items()).reshape(-1).view(np.uint8)
            for begin, stop in blocks(tensor.n_bytes):
                yield items[begin:stop], tensor.begin + begin

    def write_block(piece: tuple[Bytes, int]) -> str:
        block, begins = piece
        checksum = 0
        for at in range(0, len(block), _PIECE):
            some = block[at : at + _PIECE].data
            checksum = crc32(some, checksum)
            write_at(fd, some, begins + at)
        if len(block) >= _PIECE:
            begin_flush(fd, begins, len(block))
        return hexadecimal(checksum)

    # Blocks of all tensors in one go, so that no thread waits for the last block of a tensor.
    found = iter(in_threads(write_block, pieces(), layout.file_size))
    return {tensor.name: list(islice(found, len(blocks(tensor.n_bytes)))) for tensor in layout.tensors}


class OpenFile(NamedTuple):
    """A file of ours that is open: its layers, its header and all its bytes, which live as long as anyone looks at them."""

    path: Path
    layers: list[StoredLayer]
    header: Header
    whole: Bytes

    @property
    def digest(self) -> str:
        """What the file is known by."""
        return digest(self.header.raw)

    def said(self) -> Said:
        """What it says beside its layers.

        Raises:
            DamagedFileError: an entry is of the wrong kind.
        """
        with in_file(self.path):
            return read_said(lambda name: metadata_entry(self.header, name))


def open_file(path: Path, *, is_mapped: bool, verify: bool, first: int = 0, follow: bool = True) -> OpenFile:
    """Open a file of ours and check all that its header says; with ``verify``, or if it is not mapped, its data too.

    A link is followed unless ``follow`` is False.

    Raises:
        OSError: it cannot be read. DamagedFileError: it breaks a rule, or is damaged. MemoryError: there is no room.
    """
    with opened(path, follow=follow) as fd:
        header, size = read_header(fd)
        layers = layers_of(header, first)
        whole = mapped(fd, size) if is_mapped else read(fd, size)
    return proved(OpenFile(path, layers, header, whole), is_mapped=is_mapped, verify=verify)


def proved(file: OpenFile, *, is_mapped: bool, verify: bool) -> OpenFile:
    """The file, its data compared with their checksums if that is asked for, or if they have been read anyway.

    Raises:
        DamagedFileError: they differ, the message says in which tensor and where; or the file has no checksums.
    """
    if verify or not is_mapped:
        _, found = damages(file.header, file.path, lambda begin, end: file.whole[begin:end])
        if found:
            raise found[0]
    return file


def damages(
    header: Header, path: Path, bytes_between: Callable[[int, int], Bytes]
) -> tuple[int, list[DamagedFileError]]:
    """Everything in the data of a file that differs from its checksums.

    Args:
        header: of the file.
        path: of the file.
        bytes_between: gives the bytes of the file from one place to another; called in several threads.

    Returns:
        How many bytes were compared, and an error for each damaged block.

    Raises:
        DamagedFileError: the file has no checksums, or not those of its tensors.
    """
    with in_file(path):
        expected = _expected_checksums(header)
    spans: list[tuple[Tensor, int, int]] = []
    found = []
    for tensor in header.tensors.values():
        if not tensor.name.startswith(PADDING):
            spans += [(tensor, *span) for span in blocks(tensor.n_bytes)]
        elif bytes_between(tensor.begin, tensor.end).any():
            found.append(damaged(f"tensor {tensor.name}", "must be zeros, it is padding", "other bytes"))

    def checksum_of(span: tuple[Tensor, int, int]) -> str:
        tensor, begin, end = span
        return hexadecimal(crc32(bytes_between(tensor.begin + begin, tensor.begin + end).data))

    n_bytes = sum(end - begin for _, begin, end in spans)
    checksums = in_threads(checksum_of, spans, n_bytes)
    for (tensor, begin, end), checksum in zip(spans, checksums, strict=True):
        wanted = expected[tensor.name][begin // BLOCK]
        if checksum != wanted:
            where = f"bytes {begin} to {end - 1} of tensor {tensor.name}"
            found.append(damaged(where, f"must have the checksum {wanted}", f"{checksum}: the file is damaged"))
    return n_bytes, [named(path, error) for error in found]


def _expected_checksums(header: Header) -> dict[str, Any]:
    """The checksums that the file carries, one for each block of each tensor."""
    entry = metadata_entry(header, "data_crc32")
    if entry is None:
        rule = "must have data_crc32 in __metadata__ to be verified"
        raise damaged("the header", rule, "none: attncache did not write this file")
    data = {name: tensor for name, tensor in header.tensors.items() if not name.startswith(PADDING)}
    wanted = {name: len(blocks(tensor.n_bytes)) for name, tensor in data.items()}
    known = entry.get("tensors") if isinstance(entry, dict) and entry.get("block") == BLOCK else None
    if not isinstance(known, dict) or known.keys() != wanted.keys():
        raise damaged("data_crc32 in __metadata__", f"must have blocks of {BLOCK} bytes of every tensor", "less")
    for name, checksums in known.items():
        if not isinstance(checksums, list) or len(checksums) != wanted[name]:
            rule = f"must be {wanted[name]} checksums"
            raise damaged(f"data_crc32 of tensor {name}", rule, repr(checksums)[:80])
    return known
