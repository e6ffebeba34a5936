"""DiskCache: a cache that keeps its layers in a directory and maps them from there.

A layer is written as a segment, a safetensors file that never changes, and then becomes part of the cache by a new
manifest. So a reader finds whole layers at any moment, and a writer that is killed leaves at most a segment that no manifest
names, which the next writer removes.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy.typing as npt

from attncache import _core
from attncache.array_input import StoredDType, checked_copy, read_array
from attncache.cache import AttentionCache
from attncache.factored import factored_layer, longer_layer
from attncache.files.atomic import Lock, flush_folder
from attncache.files.contents import Origin, layers_in, of_manifest
from attncache.files.errors import InUseError, in_file, naming
from attncache.files.layers import Sourced, planned, put_layers
from attncache.files.manifest import MANIFEST, Manifest, Segment, read_manifest, segment_name, write_manifest
from attncache.files.opening import checked_path
from attncache.files.schema import Said
from attncache.files.single import write_file
from attncache.layer_source import LayerSource, checked_layer_source
from attncache.pattern_check import unlike_weights, with_positions_first
from attncache.scoring import Options
from attncache.tokens import Tokens

_SEGMENT = re.compile(r"segment-[0-9]{6,}\.safetensors")
_LITTER = re.compile(rf"{_SEGMENT.pattern}|\.({_SEGMENT.pattern}|manifest\.json)\.saving")
_OURS = re.compile(rf"{_LITTER.pattern}|manifest\.json")


class DiskCache(AttentionCache):
    """An AttentionCache whose layers live in a directory; ``AttentionCache.create`` makes it.

    It takes every call of an AttentionCache. A push returns when its layer is on disk; ``append_qk`` writes its whole
    layer anew. After ``close``, or at the end of a ``with``, it answers as before and takes no more layers.
    """

    _manifest: Manifest

    def __init__(
        self,
        directory: str | PathLike[str],
        dtype: npt.DTypeLike | StoredDType | None = None,
        *,
        index: Literal["off", "auto", "eager"] = "auto",
    ) -> None:
        super().__init__(dtype, index=index)
        self._directory = checked_path(directory).absolute()
        self._writing = threading.RLock()
        self._process = os.getpid()
        self._lock = Lock()
        with in_file(self._directory):
            try:
                _lock(self._directory, self._lock)
                self._read_again()
            except BaseException:
                self._lock.close()
                raise

    @property
    def directory(self) -> Path:
        """Where the layers are."""
        return self._directory

    def close(self) -> None:
        """Let another writer in; the cache still answers, but takes no more layers. May be called again."""
        with naming(self._directory):
            self._lock.close()

    def __enter__(self) -> DiskCache:  # noqa: PYI034 (typing has no Self before 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def compact(self, *, index: bool = False) -> None:
        """Make all segments one file, and remove the others; tokens and metadata stay in the manifest.

        Args:
            index: as for ``save``.

        Raises:
            OSError: it cannot be written; the directory holds what it held.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, AttentionCache.create(f"{folder}/run") as cache:
        ...     cache.push([[[[1.0]]]])
        ...     cache.push([[[[1.0]]]])
        ...     cache.compact()
        ...     [path.name for path in cache.directory.glob("*.safetensors")]
        ['segment-000002.safetensors']
        """
        with self._changing():
            if self.n_layers == 0:
                return
            self._write(self._sourced, 0, index=index)

    def push(
        self, pattern: Any, copy: bool | None = None, *, check: bool = True, source: LayerSource | None = None
    ) -> None:
        _refuse_borrowing(copy)
        given = read_array(pattern)._replace(is_writable=False)
        if check:
            self._warn_once(unlike_weights(given, self.n_layers))
        checked_layer_source(source, given.array.shape[1])
        stored = self._dtype or given.own_dtype
        layer = _core.Layer.dense(given.array, given.dtype, stored, given.borrows(stored, None))
        self._take(layer, source)

    def push_qk(
        self,
        query: Any,
        key: Any,
        *,
        scale: float | None = None,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
        key_mask: Any = None,
        lse: Any = None,
        sinks: Any = None,
        copy: bool | None = None,
        source: LayerSource | None = None,
    ) -> None:
        _refuse_borrowing(copy)
        self._warn_once(with_positions_first(query, key, causal=causal))
        options = Options(scale, causal, window, softcap, key_mask, lse, sinks)

        layer = factored_layer(self._dtype, query, key, options, is_only_read=True)
        checked_layer_source(source, layer.shape[1])
        self._take(layer, source)

    def append_qk(self, layer: int, query: Any, key: Any, *, key_mask: Any = None) -> None:
        with self._changing():
            _, longer = longer_layer(self, layer, query, key, key_mask)
            number = range(self.n_layers)[layer]
            self._take(longer, self.sources[number], number)

    def _take(self, layer: _core.Layer, source: LayerSource | None = None, at: int | None = None) -> None:
        with self._changing():
            self._write([(layer, source)], self.n_layers if at is None else at)

    def clear(self) -> None:
        with self._changing():
            self._publish(Manifest(next=self._manifest.next), lambda: AttentionCache.clear(self))

    def _describe(self, tokens: Tokens | None, query_tokens: Tokens | None, metadata: Mapping[str, Any]) -> None:
        with self._changing():
            said = Said(tokens, query_tokens, metadata)
            self._publish(self._manifest._replace(said=said), lambda: AttentionCache._describe(self, *said))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """The right to change the directory, of one thread of the process that opened it, until it is closed."""
        if os.getpid() != self._process:  # before its lock, which a thread that is not here may hold
            message = f"process {self._process} writes this cache; a process forked from it may only read it"
            raise InUseError(errno.EBUSY, message, str(self._directory))
        with self._writing, naming(self._directory):
            if not self._lock.is_open:
                rule = "the cache must be open to be changed, got one that was closed"
                raise ValueError(f"{self._directory}: {rule}; AttentionCache.create continues it")
            if self._is_amid_change():
                raise RuntimeError(
                    f"{self._directory}: the cache must not be changed amid a change of it, as from a signal handler"
                )
            if not self._agrees:
                self._read_again()
            yield

    def _is_amid_change(self) -> bool:
        """Whether this thread is writing this cache further down its stack, and a handler or finaliser came between.

        The stack says so whatever interrupts the writing, where a flag could stay behind.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code in _WRITES and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        return False

    def _write(self, layers: Iterable[Sourced], first: int, *, index: bool = False) -> None:
        """Make layers those from ``first`` on, on disk and then here, mapped."""
        path = self._directory / segment_name(self._manifest.next)
        try:
            plans = [planned(*layer, f"layers.{number}", index=index) for number, layer in enumerate(layers, first)]
            segment = Segment(path.name, first, len(plans), write_file(path, plans, follow=False))
            file = segment.open(self._directory, is_mapped=True, verify=False)
            written = [(layer.load(None, self.index), layer.source) for layer in layers_in(file)]
        except BaseException:
            _remove(path)
            raise
        self._publish(self._manifest.with_segment(segment), lambda: put_layers(self, first, written))

    def _publish(self, manifest: Manifest, show: Callable[[], None]) -> None:
        """Make a manifest the one of the directory, and then its contents ours; files that it does not name go."""
        before, origin = self._manifest, Origin(self._directory, manifest.digest, True)
        try:
            self._agrees = False
            write_manifest(self._directory, manifest)
            show()
            self._manifest, self._origin = manifest, origin
            self._agrees = True
        except BaseException:
            with suppress(Exception):  # then it is read before the next change
                self._read_again()
            raise
        for segment in set(before.segments) - set(manifest.segments):
            _remove(self._directory / segment.file)  # those in use live on until they are closed

    def _read_again(self) -> None:
        """Make what is in the directory ours, whichever manifest is there now; what a killed writer left is removed."""
        manifest = read_manifest(self._directory)
        contents = of_manifest(self._directory, manifest)
        layers = contents.loaded(self.index)
        if len(layers) < self.n_layers:
            AttentionCache.clear(self)
        put_layers(self, 0, layers)
        AttentionCache._describe(self, *manifest.said)
        self._manifest, self._origin = manifest, contents.origin
        named = {segment.file for segment in manifest.segments}
        for path in self._directory.iterdir():
            if _LITTER.fullmatch(path.name) and path.name not in named:
                _remove(path)
        self._agrees = True  # with the directory; False while it is changed, and after a change that was interrupted


_WRITES = (DiskCache._write.__code__, DiskCache._publish.__code__)


def _refuse_borrowing(copy: Any) -> None:
    if checked_copy(copy) is False:
        raise ValueError("copy=False cannot borrow: a cache on disk keeps every layer in a file of its own")


def _lock(directory: Path, lock: Lock) -> None:
    """Lock a directory, and give it an empty manifest if it has none.

    Raises:
        ValueError: other files are there, or layers without a manifest. InUseError, OSError: as ``AttentionCache.create``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    foreign = [path.name for path in directory.iterdir() if not _is_ours(path)]
    if foreign and not os.path.lexists(directory / MANIFEST):
        raise ValueError(f"directory must be empty or a cache, got one with {min(foreign)}")
    lock.take_directory(directory)
    if not os.path.lexists(directory / MANIFEST):
        segments = [path.name for path in directory.iterdir() if _SEGMENT.fullmatch(path.name)]
        if segments:  # nothing that writes here leaves them so
            raise ValueError(f"must have the {MANIFEST} of its layers, got {min(segments)} without one")
        flush_folder(directory.parent)
        write_manifest(directory, Manifest())


def _is_ours(path: Path) -> bool:
    """Whether what is in a directory may be there before its manifest is; a lock holds the number of a process at most."""
    is_lock = path.name == "lock" and (path.lstat().st_size <= 20 or not stat.S_ISREG(path.lstat().st_mode))
    return is_lock or _OURS.fullmatch(path.name) is not None


def _remove(path: Path) -> None:
    """Remove a file that nobody needs; what cannot be removed now is removed when the directory is opened next."""
    with suppress(OSError):
        path.unlink()
