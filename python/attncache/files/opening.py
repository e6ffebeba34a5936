"""What ``AttentionCache.save`` and ``load`` do, and how a cache on disk comes back from its pickle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from attncache.adapters.named import errors_named
from attncache.axes import Axes
from attncache.cache import AttentionCache
from attncache.files.atomic import remove_abandoned
from attncache.files.containers import Container, open_container
from attncache.files.errors import DamagedFileError, damaged
from attncache.files.foreign import ForeignLayer, layers_of_others
from attncache.files.layer_reading import push_layer
from attncache.files.manifest import MANIFEST, Manifest, read_manifest
from attncache.files.numpy_arrays import verify_zip
from attncache.files.said import Said
from attncache.files.schema import StoredLayer, layers_of
from attncache.files.single import OpenFile, digest, proved, write_file

_Result = TypeVar("_Result")
_Policy = Literal["off", "auto", "eager"]


class Origin(NamedTuple):
    """Where a cache was opened from: the path, the hash of its header or manifest, and whether it was mapped."""

    path: Path
    digest: str
    is_mapped: bool


def save(cache: AttentionCache, path: str | PathLike[str], *, index: bool) -> None:
    """``AttentionCache.save``."""
    _check_bool(index, "index")
    write_file(checked_path(path), cache, range(cache.n_layers), said=Said.of(cache), index=index)


def load(
    path: str | PathLike[str],
    *,
    mmap: bool = True,
    verify: bool = False,
    index: _Policy = "auto",
    names: str | None = None,
    axes: Axes | None = None,
    check: bool = True,
) -> AttentionCache:
    """``AttentionCache.load``."""
    _check_bool(mmap, "mmap")
    _check_bool(verify, "verify")
    path = checked_path(path)
    remove_abandoned(path)
    container = container_at(path, is_mapped=mmap)
    if container is None:
        check_ours(path, names, axes)
        return _load_directory(path, mmap, verify, index)
    if not container.is_ours or container.safetensors is None:
        cache = AttentionCache(index=index)
        _fill(cache, container, layers_of_others(container, names, axes, check=check), verify=verify)
        if container.safetensors is not None and names is None and axes is None:
            cache._origin = Origin(path.absolute(), digest(container.safetensors[0].raw), mmap)
        return cache
    check_ours(path, names, axes)
    header, whole = container.safetensors
    file = proved(OpenFile(path, layers_of(header, path), header, whole), is_mapped=mmap, verify=verify)
    cache = AttentionCache(index=index)
    push_layers(cache, file.each_layer())
    file.said().give_to(cache)
    cache._origin = Origin(path.absolute(), file.digest, mmap)
    return cache


def is_cache_directory(path: Path) -> bool:
    """Whether a path is a directory of ``AttentionCache.create``."""
    return path.is_dir() and os.path.lexists(path / MANIFEST)


def container_at(path: Path, *, is_mapped: bool = True) -> Container | None:
    """What is at a path, as ``open_container``; None if that is a cache directory, be it one that was created meanwhile.

    Raises:
        As ``open_container``.
    """
    if not is_cache_directory(path):
        try:
            return open_container(path, is_mapped=is_mapped)
        except (OSError, ValueError):
            if not is_cache_directory(path):
                raise
    return None


def check_ours(path: Path, names: str | None, axes: Axes | None) -> None:
    """Refuse names and axes for a cache, whose layers are known.

    Raises:
        ValueError: one is given.
    """
    for name, value in (("names", names), ("axes", axes)):
        if value is not None:
            raise ValueError(
                f"{path}: {name} must be None for a cache of attncache, which knows its layers, got {value!r}"
            )


def _fill(cache: AttentionCache, container: Container, layers: Iterable[ForeignLayer], *, verify: bool) -> None:
    """Give an empty cache what a file of others holds: over the mapped file where that can be, otherwise read now."""
    path = container.path
    if verify:
        if container.kind not in ("npz", "torch"):
            raise ValueError(f"{path}: verify must be False for a file without checksums, got a {container.kind} file")
        verify_zip(path)
    for layer in layers:
        layer.push_to(cache)
    with errors_named(str(path)):
        cache.tokens, cache.metadata = container.tokens, container.metadata


def _load_directory(path: Path, mmap: bool, verify: bool, index: _Policy) -> AttentionCache:
    """The cache of a directory, as its manifest says at one moment."""

    def loaded(manifest: Manifest) -> AttentionCache:
        cache = AttentionCache(index=index)
        map_directory(cache, path, manifest, is_mapped=mmap, verify=verify)
        return cache

    return at_one_moment(path, loaded)


def at_one_moment(path: Path, use: Callable[[Manifest], _Result]) -> _Result:
    """What ``use`` makes of a directory; called again with the newer manifest if a writer has replaced segments meanwhile.

    Raises:
        OSError, DamagedFileError: the manifest or a segment that it names cannot be opened.
    """
    while True:
        manifest = read_manifest(path)
        try:
            return use(manifest)
        except (FileNotFoundError, DamagedFileError) as error:
            if read_manifest(path).digest == manifest.digest:  # no writer has replaced a segment since
                if isinstance(error, FileNotFoundError):
                    raise damaged(path / MANIFEST, "segments", "must be in the directory", error) from error
                raise


def map_directory(
    cache: AttentionCache, path: Path, manifest: Manifest, *, is_mapped: bool = True, verify: bool = False
) -> None:
    """Give an empty cache what a manifest names.

    Raises:
        OSError, DamagedFileError: a segment cannot be opened, or is not what the manifest means; the cache is empty.
    """
    push_layers(cache, segments_of(path, manifest, is_mapped=is_mapped, verify=verify))
    manifest.said.give_to(cache)
    cache._origin = Origin(path.absolute(), manifest.digest, is_mapped)


def segments_of(
    path: Path, manifest: Manifest, *, is_mapped: bool = True, verify: bool = False
) -> list[tuple[OpenFile, StoredLayer]]:
    """The layers that a manifest names, in their order, each with the open file that it is in.

    Raises:
        OSError, DamagedFileError: a segment cannot be opened, or is not what the manifest means.
    """
    files = [segment.open(path, is_mapped=is_mapped, verify=verify) for segment in manifest.segments]
    firsts = [segment.first_layer for segment in manifest.segments]
    return [(files[place], files[place].layers[n - firsts[place]]) for n, place in enumerate(manifest.sources())]


def push_layers(cache: AttentionCache, layers: Iterable[tuple[OpenFile, StoredLayer]]) -> None:
    """Append layers of open files to a cache in memory."""
    policy = cache.index
    try:
        for file, layer in layers:
            push_layer(cache, layer, file.whole, file.path, policy)
    finally:
        cache._set_index_policy(policy)


def reopened(path: Path, digest: str, is_mapped: bool, index: _Policy) -> AttentionCache:
    """A cache from its pickle.

    Raises:
        OSError: its path cannot be read here. ValueError: something else is there now.
    """
    cache = load(path, mmap=is_mapped, verify=False, index=index)
    if cache._origin is None or cache._origin.digest != digest:
        raise ValueError(f"{path}: must be as it was when the cache was pickled, got other contents: they have changed")
    return cache


def checked_path(path: object) -> Path:
    """The argument ``path``."""
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path must be a string or a path, got {type(path).__name__}")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"path must be a string or a path, got {path!r}")
    return Path(text)


def _check_bool(value: object, name: str) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")
