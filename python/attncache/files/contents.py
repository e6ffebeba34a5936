"""The one reader: what is at a path, of whatever kind, by its first bytes. ``load``, ``read_patterns`` and the commands use it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from attncache import _core
from attncache.array_input import StoredDType
from attncache.axes import Axes
from attncache.cache import AttentionCache
from attncache.files.arrays import verify_zip
from attncache.files.containers import WITH_CHECKSUMS, Container, Kind, joined, open_container
from attncache.files.errors import DamagedFileError, damaged, in_file
from attncache.files.foreign import layers_of_others
from attncache.files.layers import FileLayer, Policy, Sourced, put_layers, stored_layer
from attncache.files.manifest import MANIFEST, Manifest, read_manifest
from attncache.files.schema import DERIVED, STORED, VERSION, Said, StoredLayer, layers_of
from attncache.files.single import OpenFile, digest, proved


class Origin(NamedTuple):
    """Where a cache was opened from: the path, the hash of its header or manifest, and whether it was mapped."""

    path: Path
    digest: str
    is_mapped: bool


@dataclass(frozen=True)
class Contents:
    """What is at one path.

    Attributes:
        path, kind: where, and what it is.
        n_files, size: how many files that are, and their bytes.
        layers: in their order.
        said: what else it says.
        origin: where a cache of all of it comes from; None if that cannot come back from a pickle.
    """

    path: Path
    kind: Literal["attncache file", "attncache directory"] | Kind
    n_files: int
    size: int
    layers: tuple[FileLayer, ...]
    said: Said
    origin: Origin | None

    @property
    def version(self) -> str | None:
        """Of our format; None if it is not ours."""
        return VERSION if self.kind.startswith("attncache") else None

    @property
    def checksums(self) -> Literal["attncache", "zip"] | None:
        """Whose checksums its data have: ours, those of a zip archive, or None."""
        return "attncache" if self.version else "zip" if self.kind in WITH_CHECKSUMS else None

    def loaded(self, index: Policy) -> list[Sourced]:
        """All layers; what is not mapped is read now."""
        return [(layer.load(None, index), layer.source) for layer in self.layers]

    def cache(self, index: Policy) -> AttentionCache:
        """A cache of everything."""
        cache = AttentionCache(index=index)
        put_layers(cache, 0, self.loaded(index))
        if self.version is None:
            with in_file(self.path):
                cache.tokens, cache.metadata = self.said.tokens, self.said.metadata
        else:
            AttentionCache._describe(cache, *self.said)
        cache._origin = self.origin
        return cache


def contents_of(
    paths: Path | Sequence[Path],
    names: str | None = None,
    axes: Axes | None = None,
    *,
    check: bool = True,
    is_mapped: bool = True,
    verify: bool = False,
) -> Contents:
    """What is at a path, or at several together; of a mapped file only the headers are read.

    Args:
        paths: a file, a directory that ``AttentionCache.create`` made, a folder of files, or several files by others.
        names, axes, check: as for ``layers_of_others``; of a cache there are neither names nor axes.
        is_mapped: whether files are mapped where they can be; otherwise they are read now.
        verify: whether to compare all of it with its checksums now.

    Raises:
        OSError: it cannot be read. ValueError: it is none of these, or damaged; the message says where. ImportError: what
            reads it is not installed.
    """
    several = [paths] if isinstance(paths, Path) else list(paths)
    path = several[0]
    container = joined(several, path.parent) if len(several) > 1 else _container_at(path, is_mapped=is_mapped)
    is_ours = container is None or container.is_ours
    if is_ours and (names, axes) != (None, None):
        name, value = ("names", names) if names is not None else ("axes", axes)
        raise ValueError(f"{path}: {name} must be None for a cache of attncache, which knows its layers, got {value!r}")
    if container is None:
        return _of_directory(path, is_mapped, verify)
    if is_ours:
        return _of_file(container, is_mapped, verify)
    if verify and container.kind not in WITH_CHECKSUMS:
        raise ValueError(f"{path}: verify must be False for a file without checksums, got a {container.kind} file")
    if verify or (container.kind == "torch" and not is_mapped):
        with in_file(path):
            verify_zip(path)
    layers = layers_of_others(container, names, axes, check=check)
    origin = None
    if container.safetensors is not None and names is None and axes is None:
        origin = Origin(path.absolute(), digest(container.safetensors[0].raw), is_mapped)
    said = Said(container.tokens, None, container.metadata)
    return Contents(container.path, container.kind, container.n_files, container.size, tuple(layers), said, origin)


def _of_file(container: Container, is_mapped: bool, verify: bool) -> Contents:
    """What a file of ours holds."""
    assert container.safetensors is not None
    header, whole = container.safetensors
    with in_file(container.path):
        file = OpenFile(container.path, layers_of(header), header, whole)
    proved(file, is_mapped=is_mapped, verify=verify)
    origin = Origin(container.path.absolute(), file.digest, is_mapped)
    return Contents(container.path, "attncache file", 1, container.size, layers_in(file), file.said(), origin)


def _of_directory(path: Path, is_mapped: bool, verify: bool) -> Contents:
    """What a directory holds, as its manifest says at one moment; read again if a writer has replaced segments meanwhile."""
    while True:
        manifest = read_manifest(path)
        try:
            return of_manifest(path, manifest, is_mapped=is_mapped, verify=verify)
        except (FileNotFoundError, DamagedFileError) as error:
            if read_manifest(path).digest != manifest.digest:
                continue
            if isinstance(error, FileNotFoundError):  # and no writer has replaced it
                with in_file(path / MANIFEST):
                    raise damaged("segments", "must be in the directory", error) from error
            raise


def of_manifest(path: Path, manifest: Manifest, *, is_mapped: bool = True, verify: bool = False) -> Contents:
    """What a manifest says that a directory holds; each layer is in the last segment that has it.

    Raises:
        OSError, DamagedFileError: a segment cannot be opened, or is not what the manifest means.
    """
    files = [segment.open(path, is_mapped=is_mapped, verify=verify) for segment in manifest.segments]
    layers = [layers_in(file) for file in files]
    firsts = [segment.first_layer for segment in manifest.segments]
    sizes = [*(len(file.whole) for file in files), len(manifest.raw)]
    found = tuple(layers[place][number - firsts[place]] for number, place in enumerate(manifest.sources()))
    origin = Origin(path.absolute(), manifest.digest, is_mapped)
    return Contents(path, "attncache directory", len(sizes), sum(sizes), found, manifest.said, origin)


def layers_in(file: OpenFile) -> tuple[FileLayer, ...]:
    """The layers of a file of ours, as its header describes them."""
    return tuple(_layer(file, layer) for layer in file.layers)


def _layer(file: OpenFile, layer: StoredLayer) -> FileLayer:

    def load(dtype: StoredDType | None, index: Policy) -> _core.Layer:
        with in_file(file.path):
            return stored_layer(layer, file.whole, dtype, index)

    tensors, dtype = layer.tensors, STORED[layer.main.dtype]
    derived = DERIVED & tensors.keys()
    n_bytes = sum(tensor.n_bytes for name, tensor in tensors.items() if name not in derived)
    has_index = bool(derived) and "lse" not in tensors
    if "pattern" in tensors:
        return FileLayer("dense", layer.shape, dtype, n_bytes, load, layer.source, {}, has_index)
    options: dict[str, Any] = {"key_heads": tensors["key"].shape[1], "items": layer.main.shape[3]}
    options |= {name: layer.description.get(name) for name in ("scale", "causal", "window", "softcap")}
    options |= {name: name in tensors for name in ("key_mask", "sinks", "lse")}
    return FileLayer("factored", layer.shape, dtype, n_bytes, load, layer.source, options, has_index)


def is_cache_directory(path: Path) -> bool:
    """Whether a path is a directory of ``AttentionCache.create``."""
    return path.is_dir() and os.path.lexists(path / MANIFEST)


def _container_at(path: Path, *, is_mapped: bool) -> Container | None:
    """What is at a path, as ``open_container``; None if that is a cache directory, be it one that was created meanwhile.

    Raises:
        As ``open_container``.
    """
    if not is_cache_directory(path):
        try:
            return open_container(path, is_mapped=is_mapped)
        except IsADirectoryError:  # it was none yet when its kind was asked
            return _container_at(path, is_mapped=is_mapped)
        except (OSError, ValueError):
            if not is_cache_directory(path):
                raise
    return None
