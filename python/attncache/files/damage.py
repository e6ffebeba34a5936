"""Compares the data of a file with the checksums in its header."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

from attncache.files.checksums import BLOCK, block_checksum, blocks
from attncache.files.errors import DamagedFileError, damaged
from attncache.files.memory import Bytes
from attncache.files.safetensors import PADDING, Header, Tensor
from attncache.files.schema import metadata_entry
from attncache.files.threads import in_threads

_Path = str | PathLike[str]


def damages(
    header: Header, path: _Path, bytes_between: Callable[[int, int], Bytes]
) -> tuple[int, list[DamagedFileError]]:
    """Everything in the data of a file that differs from its checksums.

    Args:
        header: of the file.
        path: how errors name it.
        bytes_between: gives the bytes of the file from one place to another; called in several threads.

    Returns:
        How many bytes were compared, and an error for each damaged block.

    Raises:
        DamagedFileError: the file has no checksums, or not those of its tensors.
    """
    expected = _expected_checksums(header, path)
    spans: list[tuple[Tensor, int, int]] = []
    found = []
    for tensor in header.tensors.values():
        if not tensor.name.startswith(PADDING):
            spans += [(tensor, *span) for span in blocks(tensor.n_bytes)]
        elif bytes_between(tensor.begin, tensor.end).any():
            found.append(damaged(path, f"tensor {tensor.name}", "must be zeros, it is padding", "other bytes"))

    def checksum_of(span: tuple[Tensor, int, int]) -> str:
        tensor, begin, end = span
        return block_checksum(bytes_between(tensor.begin + begin, tensor.begin + end))

    n_bytes = sum(end - begin for _, begin, end in spans)
    checksums = in_threads(checksum_of, spans, n_bytes)
    for (tensor, begin, end), checksum in zip(spans, checksums, strict=True):
        wanted = expected[tensor.name][begin // BLOCK]
        if checksum != wanted:
            where = f"bytes {begin} to {end - 1} of tensor {tensor.name}"
            found.append(damaged(path, where, f"must have the checksum {wanted}", f"{checksum}: the file is damaged"))
    return n_bytes, found


def _expected_checksums(header: Header, path: _Path) -> dict[str, Any]:
    """The checksums that the file carries, one for each block of each tensor."""
    entry = metadata_entry(header, "data_crc32", path)
    if entry is None:
        rule = "must have data_crc32 in __metadata__ to be verified"
        raise damaged(path, "the header", rule, "none: attncache did not write this file")
    data = {name: tensor for name, tensor in header.tensors.items() if not name.startswith(PADDING)}
    wanted = {name: len(blocks(tensor.n_bytes)) for name, tensor in data.items()}
    known = entry.get("tensors") if isinstance(entry, dict) and entry.get("block") == BLOCK else None
    if not isinstance(known, dict) or known.keys() != wanted.keys():
        raise damaged(path, "data_crc32 in __metadata__", f"must have blocks of {BLOCK} bytes of every tensor", "less")
    for name, checksums in known.items():
        if not isinstance(checksums, list) or len(checksums) != wanted[name]:
            rule = f"must be {wanted[name]} checksums"
            raise damaged(path, f"data_crc32 of tensor {name}", rule, repr(checksums)[:80])
    return known
