"""The manifest of a cache in a directory: which segments hold its layers, and its tokens and metadata."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from attncache.files import strict_json
from attncache.files.atomic import replacing, reserve, write_at
from attncache.files.bytes import mapped, opened, read, read_header
from attncache.files.errors import damaged, in_file
from attncache.files.safetensors import DIGITS, check_seal, sealed
from attncache.files.schema import MOST_LAYERS, VERSION, Said, check_version, layers_of, read_said
from attncache.files.single import OpenFile, proved

MANIFEST = "manifest.json"
_BEGINNING = b'{"manifest_crc32":"'
_MOST_BYTES = 100_000_000  # as of a header
_NAMES = {"manifest_crc32", "attncache", "next", "segments", *Said._fields}


class Segment(NamedTuple):
    """One file of a directory: the layers ``first_layer`` to ``first_layer + n_layers - 1``."""

    file: str
    first_layer: int
    n_layers: int
    header_sha256: str

    @property
    def layers(self) -> range:
        return range(self.first_layer, self.first_layer + self.n_layers)

    def open(self, directory: Path, *, is_mapped: bool, verify: bool) -> OpenFile:
        """The segment's file, with all that its header says checked, and its data as for ``proved``.

        Raises:
            OSError: it cannot be read. MemoryError: there is no room. DamagedFileError: it breaks a rule, is damaged, or is
                not the file that the manifest means.
        """
        path = directory / self.file
        with opened(path, follow=False) as fd:
            header, size = read_header(fd)
            layers = layers_of(header, self.first_layer)
            file = OpenFile(path, layers, header, mapped(fd, size) if is_mapped else read(fd, size))
            self.check(proved(file, is_mapped=is_mapped, verify=verify))
        return file

    def check(self, file: OpenFile) -> None:
        """Refuse a file that is not the one the manifest means.

        Raises:
            DamagedFileError: it has another header or another number of layers.
        """
        if file.digest != self.header_sha256:
            rule = f"must have the SHA-256 {self.header_sha256}, as {MANIFEST} says"
            raise damaged("the header", rule, file.digest)
        if len(file.layers) != self.n_layers:
            raise damaged("layers", f"must be {self.n_layers}, as {MANIFEST} says", len(file.layers))


class Manifest(NamedTuple):
    """What a directory holds. A layer that several segments have is that of the last of them.

    Attributes:
        segments: in the order of their writing.
        next: the number of the next segment's file; none is used twice.
        said: what else it says.
    """

    segments: tuple[Segment, ...] = ()
    next: int = 0
    said: Said = Said()

    @property
    def n_layers(self) -> int:
        return max((segment.layers.stop for segment in self.segments), default=0)

    @property
    def raw(self) -> bytes:
        """The bytes of its file."""
        entries = {
            "manifest_crc32": "0" * DIGITS,
            "attncache": int(VERSION),
            "next": self.next,
            "segments": [segment._asdict() for segment in self.segments],
            **self.said.entries(),
        }
        text = json.dumps(entries, separators=(",", ":")).replace('},{"file"', '},\n{"file"')
        return sealed(text.encode() + b"\n", len(_BEGINNING))

    @property
    def digest(self) -> str:
        """What the contents of the directory are known by: the SHA-256 of the manifest, which has those of all headers."""
        return hashlib.sha256(self.raw).hexdigest()

    def sources(self) -> list[int]:
        """For each layer the place of its segment in ``segments``."""
        places = {layer: place for place, segment in enumerate(self.segments) for layer in segment.layers}
        return [places[layer] for layer in range(self.n_layers)]

    def with_segment(self, segment: Segment) -> Manifest:
        """The manifest with one more segment, without those whose layers it replaces."""
        longer = self._replace(segments=(*self.segments, segment), next=self.next + 1)
        needed = set(longer.sources())
        kept = tuple(each for place, each in enumerate(longer.segments) if place in needed)
        return longer._replace(segments=kept)


def segment_name(number: int) -> str:
    """The file of a segment."""
    return f"segment-{number:06d}.safetensors"


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Make a manifest the one of its directory.

    Raises:
        ValueError: it is larger than a reader takes. OSError: it cannot be written; see ``atomic.replacing``.
    """
    raw = manifest.raw
    with in_file(directory):
        if len(raw) > _MOST_BYTES:
            rule = f"the manifest with tokens and metadata must be at most {_MOST_BYTES:,} bytes"
            raise ValueError(f"{rule}, got {len(raw):,}")
        if sum(segment.n_layers for segment in manifest.segments) > MOST_LAYERS:
            raise ValueError(f"a cache on disk must have at most {MOST_LAYERS:,} layers")
    with replacing(directory / MANIFEST, follow=False) as fd:
        reserve(fd, len(raw))
        write_at(fd, raw, 0)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a directory.

    Raises:
        OSError: there is none, or it cannot be read. DamagedFileError: it breaks a rule.
    """
    with opened(directory / MANIFEST, follow=False) as fd:
        size = os.fstat(fd).st_size
        if size > _MOST_BYTES:
            raise damaged("the manifest", f"must be at most {_MOST_BYTES} bytes", size)
        return parse_manifest(read(fd, size).tobytes())


def parse_manifest(raw: bytes) -> Manifest:
    """A manifest from the bytes of its file.

    Raises:
        DamagedFileError: it breaks a rule.
    """
    if not raw.startswith(_BEGINNING):
        raise damaged("the manifest", f"must begin with {_BEGINNING.decode()}", raw[: len(_BEGINNING)])
    check_seal(raw, len(_BEGINNING), "manifest_crc32", "the manifest")
    try:
        entries = strict_json.parse(raw)
    except ValueError as error:
        raise damaged("the manifest", "must be JSON in UTF-8", error) from error
    check_version(entries.get("attncache"))
    if not entries.keys() <= _NAMES or not strict_json.is_whole(entries.get("next")):
        raise damaged("the manifest", f"must have the names {', '.join(sorted(_NAMES))}", list(entries))
    listed = entries.get("segments")
    if not isinstance(listed, list):
        raise damaged("segments", "must be a list", type(listed).__name__)
    segments = tuple(_segment(entry) for entry in listed)
    if sum(segment.n_layers for segment in segments) > MOST_LAYERS:
        raise damaged("segments", f"must hold at most {MOST_LAYERS} layers together", len(segments))
    layers = sorted({layer for segment in segments for layer in segment.layers})
    if layers != list(range(len(layers))):
        raise damaged("segments", "must have the layers 0, 1, 2, .. without a gap", layers)
    return Manifest(segments, entries["next"], read_said(entries.get))


def _segment(entry: Any) -> Segment:
    if not isinstance(entry, dict) or entry.keys() != set(Segment._fields):
        raise damaged("a segment", f"must have {', '.join(Segment._fields)}", repr(entry)[:80])
    segment = Segment(**entry)
    file: Any = segment.file
    named = isinstance(file, str) and file.isprintable() and len(file) < 256  # no file system takes more
    if not named or Path(file).name != file or file in ("", ".", ".."):
        raise damaged("the file of a segment", "must be the name of a file in this directory", repr(file)[:80])
    for name in ("first_layer", "n_layers"):
        if not strict_json.is_whole(entry[name]) or entry[name] > MOST_LAYERS:
            raise damaged(f"{name} of {segment.file}", f"must be 0 to {MOST_LAYERS}", entry[name])
    if not isinstance(entry["header_sha256"], str):
        raise damaged(f"header_sha256 of {segment.file}", "must be a string", repr(entry["header_sha256"])[:80])
    return segment
