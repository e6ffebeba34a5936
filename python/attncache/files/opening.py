"""What ``AttentionCache.save`` and ``load`` do, and how a cache on disk comes back from its pickle."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from attncache.cache import AttentionCache
from attncache.files.atomic import remove_abandoned
from attncache.files.errors import DamagedFileError, damaged
from attncache.files.layer_reading import push_layer
from attncache.files.manifest import MANIFEST, Manifest, read_manifest
from attncache.files.said import Said
from attncache.files.schema import StoredLayer
from attncache.files.single import OpenFile, open_file, write_file

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


def load(path: str | PathLike[str], *, mmap: bool, verify: bool, index: _Policy) -> AttentionCache:
    """``AttentionCache.load``."""
    _check_bool(mmap, "mmap")
    _check_bool(verify, "verify")
    path = checked_path(path)
    if path.is_dir():
        return _load_directory(path, mmap, verify, index)
    cache = AttentionCache(index=index)
    remove_abandoned(path)
    try:
        file = open_file(path, is_mapped=mmap, verify=verify)
    except IsADirectoryError:  # a writer has made it since
        return _load_directory(path, mmap, verify, index)
    push_layers(cache, file.each_layer())
    file.said().give_to(cache)
    cache._origin = Origin(path.absolute(), file.digest, mmap)
    return cache


def _load_directory(path: Path, mmap: bool, verify: bool, index: _Policy) -> AttentionCache:
    """The cache of a directory, as its manifest says at one moment."""

    if not (path / MANIFEST).exists():
        message = f"is no cache: a directory must have {MANIFEST}; attncache.open_runs opens one of several caches"
        raise FileNotFoundError(errno.ENOENT, message, str(path))

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
