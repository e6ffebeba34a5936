"""Proves files of any kind undamaged, as far as they have checksums, and says everything that is damaged.

It reads with the system's calls and not through a mapping: a disk that fails is then an error to report, where a mapping
would end the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from attncache.files.arrays import npy_array, verify_zip
from attncache.files.bytes import mapped, opened, read_between, read_header
from attncache.files.containers import WITH_CHECKSUMS, files_in, kind_of
from attncache.files.contents import is_cache_directory
from attncache.files.errors import DamagedFileError, damaged, in_file
from attncache.files.layers import stored_layer
from attncache.files.manifest import MANIFEST, Manifest, Segment, read_manifest
from attncache.files.safetensors import ALIGNMENT, Header
from attncache.files.schema import layers_of
from attncache.files.single import OpenFile, damages


class Verified(NamedTuple):
    """What was found of one file.

    Attributes:
        path: of the file.
        n_bytes: how many bytes of data were compared with checksums.
        checksums: whose; None if the file has none, and nothing but its header could be checked.
        errors: everything that is wrong.
    """

    path: Path
    n_bytes: int = 0
    checksums: Literal["attncache", "zip"] | None = "attncache"
    errors: tuple[Exception, ...] = ()

    @property
    def state(self) -> Literal["whole", "damaged", "no checksums"]:
        """What is known of the file."""
        if self.errors:
            return "damaged"
        return "whole" if self.checksums else "no checksums"


def verify(path: Path) -> list[Verified]:
    """What is found of a file, of the manifest and every segment of a cache's directory, or of every file of a folder.

    Raises:
        OSError: a path that is not there or cannot be read. ValueError: it is no file of arrays at all, and so not damaged.
    """
    if is_cache_directory(path):
        return _verify_directory(path)
    if path.is_dir():
        return [found for file in files_in(path) for found in verify(file)]
    kind = kind_of(path)
    try:
        if kind == "safetensors":
            return [_verify_safetensors(path)]
        with in_file(path):
            if kind in WITH_CHECKSUMS:
                return [Verified(path, verify_zip(path), "zip")]
            if kind == "npy":
                npy_array(path)
        return [Verified(path, checksums=None)]
    except ValueError as error:
        return [Verified(path, errors=(error,))]


def _verify_directory(path: Path) -> list[Verified]:
    """The manifest and its segments; once more if a writer has replaced any meanwhile."""
    while True:
        try:
            manifest = read_manifest(path)
        except DamagedFileError as error:
            return [Verified(path / MANIFEST, errors=(error,))]
        found = [Verified(path / MANIFEST, len(manifest.raw)), *_verify_segments(path, manifest)]
        if all(file.state == "whole" for file in found):
            return found
        with suppress(OSError, DamagedFileError):
            if read_manifest(path).digest != manifest.digest:
                continue
        return found


def _verify_segments(path: Path, manifest: Manifest) -> Iterator[Verified]:
    for segment in manifest.segments:
        file = path / segment.file
        try:
            yield _verify_safetensors(file, segment)
        except (OSError, ValueError) as error:
            yield Verified(file, errors=(error,))


def _verify_safetensors(path: Path, segment: Segment | None = None) -> Verified:
    """A safetensors file: all that its header says, and its data if it has checksums."""
    with opened(path, follow=segment is None) as fd:
        header, size = read_header(fd)
        if "attncache" not in header.metadata and segment is None:
            return Verified(path, checksums=None)
        layers = layers_of(header, segment.first_layer if segment else 0)
        file = OpenFile(path, layers, header, mapped(fd, size))
        if segment is not None:
            segment.check(file)
        _check_alignment(header)
        n_bytes, errors = damages(header, path, lambda begin, end: read_between(fd, begin, end))
        if not errors:  # so that every number that belongs to a factored layer is sound, too
            for layer in layers:
                stored_layer(layer, file.whole)
            file.said()
    return Verified(path, n_bytes, errors=tuple(errors))


def _check_alignment(header: Header) -> None:
    """A file of ours must have its data where any vector unit can use them; reading does not need it, and so allows it."""
    for tensor in header.tensors.values():
        if tensor.name.startswith("layers.") and tensor.begin % ALIGNMENT:
            rule = f"must begin at a multiple of {ALIGNMENT} in the file"
            raise damaged(f"tensor {tensor.name}", rule, tensor.begin)
