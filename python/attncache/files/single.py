"""One cache in one file: writes it, opens it, and proves it undamaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import numpy as np

from attncache.files.atomic import begin_flush, replacing, reserve, write_at
from attncache.files.checksums import BLOCK, DIGITS, blocks, hexadecimal
from attncache.files.damage import damages
from attncache.files.layer_writing import Part, metadata_of, parts_of
from attncache.files.memory import Bytes, mapped, opened, read, read_header
from attncache.files.safetensors import Header, Plan, plan
from attncache.files.said import Said, read_said
from attncache.files.schema import Description, StoredLayer, layers_of, metadata_entry
from attncache.files.threads import in_threads

if TYPE_CHECKING:
    from attncache.cache import AttentionCache

_PIECE = 1 << 20  # bytes that are checksummed and written while they are in the processor's cache


def write_file(
    path: Path,
    cache: AttentionCache,
    layers: Iterable[int],
    *,
    first: int = 0,
    said: Said = Said(),  # noqa: B008 (it cannot be changed)
    index: bool = False,
    follow: bool = True,
) -> str:
    """Write layers of a cache as one file in the place of what was there.

    Args:
        path: the file.
        cache, layers: what to write.
        first: the number of the first layer in the file.
        said: what else it says.
        index: whether to write head means and normalisers.
        follow: as for ``replacing``.

    Returns:
        The SHA-256 of the header, which has the checksums of all data.

    Raises:
        OSError: it cannot be written; see ``atomic.replacing``.
    """
    described = [parts_of(cache, layer, f"layers.{first + at}", index=index) for at, layer in enumerate(layers)]
    return write_layers(path, described, said, follow=follow)


def write_layers(
    path: Path,
    described: Sequence[tuple[Description, Sequence[Part]]],
    said: Said,
    *,
    follow: bool = True,
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
    entries = metadata_of([description for description, _ in described], said)
    layout = _plan(parts, entries, path)
    with replacing(path, follow=follow) as fd:
        reserve(fd, layout.file_size)
        checksums = _write_tensors(fd, layout, parts)
        header = layout.header({**entries, "data_crc32": _checksums_entry(checksums)})
        write_at(fd, header, 0)
    return digest(header)


def digest(header: bytes) -> str:
    """What a file is known by: the SHA-256 of its header."""
    return hashlib.sha256(header).hexdigest()


def _plan(parts: Sequence[Part], entries: Mapping[str, str], path: Path) -> Plan:
    """Where everything goes; the checksums are not known yet, but how long they are."""
    tensors = [(part.name, part.dtype, part.shape) for part in parts]
    sizes = {tensor.name: tensor.n_bytes for tensor in plan(tensors, {}, path).tensors}
    unknown = {name: ["0" * DIGITS for _ in blocks(size)] for name, size in sizes.items()}
    return plan(tensors, {**entries, "data_crc32": _checksums_entry(unknown)}, path)


def _checksums_entry(checksums: Mapping[str, Sequence[str]]) -> str:
    return json.dumps({"block": BLOCK, "tensors": checksums}, separators=(",", ":"))


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
    """A file that is open: its layers, its header and all its bytes, which live as long as anyone looks at them."""

    path: Path
    layers: list[StoredLayer]
    header: Header
    whole: Bytes

    @property
    def digest(self) -> str:
        """What the file is known by."""
        return digest(self.header.raw)

    def each_layer(self) -> Iterator[tuple[OpenFile, StoredLayer]]:
        """Its layers, each with the file."""
        return ((self, layer) for layer in self.layers)

    def said(self) -> Said:
        """What it says beside its layers.

        Raises:
            DamagedFileError: an entry is of the wrong kind.
        """
        return read_said(lambda name: metadata_entry(self.header, name, self.path), self.path)


def open_file(path: Path, *, is_mapped: bool, verify: bool, first: int = 0, follow: bool = True) -> OpenFile:
    """Open a file and check all that its header says; with ``verify``, or if it is not mapped, its data too.

    A link is followed unless ``follow`` is False.

    Raises:
        OSError: it cannot be read. DamagedFileError: it breaks a rule, or is damaged. MemoryError: there is no room.
    """
    with opened(path, follow=follow) as fd:
        header, size = read_header(fd, path)
        layers = layers_of(header, path, first)
        whole = mapped(fd, size) if is_mapped else read(fd, size)
    return proved(OpenFile(path, layers, header, whole), is_mapped=is_mapped, verify=verify)


def proved(file: OpenFile, *, is_mapped: bool, verify: bool) -> OpenFile:
    """The file, its data compared with their checksums if that is asked for, or if they have been read anyway.

    Raises:
        DamagedFileError: they differ.
    """
    if verify or (not is_mapped and file.header.is_sealed):
        verify_data(file)
    return file


def verify_data(file: OpenFile) -> int:
    """Compare every byte of a file's data with its checksums.

    Returns:
        How many bytes that were.

    Raises:
        DamagedFileError: some differ, the message says in which tensor and where; or the file has no checksums.
    """
    n_bytes, found = damages(file.header, file.path, lambda begin, end: file.whole[begin:end])
    if found:
        raise found[0]
    return n_bytes
