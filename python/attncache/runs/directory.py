"""A directory of runs, one cache each, opened one by one; map_runs.py asks them all at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import overload

from attncache.cache import AttentionCache
from attncache.text import natural_order


class Runs(Sequence[AttentionCache]):
    """The runs of a directory, in the natural order of their names: run-2 comes before run-10.

    A run is opened (``AttentionCache.load``, mapped) when it is reached and closed when nobody holds it any more. Which
    runs there are is what there was when ``open_runs`` looked.

    ``runs[3]`` and ``runs["prompt-3"]`` open one run; ``runs[:10]`` is Runs again; ``"prompt-3" in runs`` asks for a name.
    """

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self._directory = directory
        self._names = tuple(names)

    @property
    def directory(self) -> Path:
        """Where the runs are."""
        return self._directory

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each run: that of its directory, or of its file with the suffix."""
        return self._names

    def _add(self, name: str) -> None:
        """There is another run, after those that there were."""
        self._names = (*self._names, name)

    def path(self, name: str) -> Path:
        """Where a run is.

        Raises:
            KeyError: there is no run of this name.
        """
        if name not in self._names:
            raise KeyError(f"{name!r} is not the name of a run in {self._directory}; runs.names has them all")
        return self._directory / name

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[AttentionCache]:
        return (AttentionCache.load(self._directory / name) for name in self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    @overload
    def __getitem__(self, which: int | str) -> AttentionCache: ...
    @overload
    def __getitem__(self, which: slice) -> Runs: ...
    def __getitem__(self, which: int | str | slice) -> AttentionCache | Runs:
        if isinstance(which, slice):
            return Runs(self._directory, self._names[which])
        if isinstance(which, str):
            return AttentionCache.load(self.path(which))
        if not hasattr(which, "__index__"):
            raise TypeError(f"a run is chosen by an int, a slice or its name, got {type(which).__name__}")
        try:
            name = self._names[which]
        except IndexError:
            raise IndexError(f"run {which} is out of range for {len(self)} runs in {self._directory}") from None
        return AttentionCache.load(self._directory / name)

    def __repr__(self) -> str:
        return f"Runs({len(self)} run{'' if len(self) == 1 else 's'} in {self._directory})"


def open_runs(directory: str | PathLike[str]) -> Runs:
    """The runs in a directory, none of them opened yet.

    A run is a directory that ``AttentionCache.create`` or ``capture(into=)`` made, or a file ``*.safetensors`` that
    ``save`` wrote. Hidden files and everything else are passed over, and directories are not searched for further runs.

    Args:
        directory: what holds the runs.

    Raises:
        TypeError: directory is not a path. OSError: it is not there, is a file or cannot be read. ValueError: it is a
            cache itself.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("prompt-1", "prompt-2", "prompt-10"):
    ...         with AttentionCache.create(f"{folder}/{name}") as cache:
    ...             cache.push([[[[1.0, 0.0], [0.25, 0.75]]]])
    ...     runs = open_runs(folder)
    ...     print(runs.names, [float(cache.rows(0, 1)[0]) for cache in runs])
    ('prompt-1', 'prompt-2', 'prompt-10') [0.25, 0.25, 0.25]
    """
    from attncache.files.manifest import MANIFEST  # noqa: PLC0415

    if not isinstance(directory, str | PathLike):
        raise TypeError(f"directory must be a string or a path, got {type(directory).__name__}")
    path = Path(directory)
    if not path.exists():
        raise FileNotFoundError(f"{path}: directory must exist; capture or save runs into it first")
    if not path.is_dir():
        rule = "directory must be one that holds runs, got a file; AttentionCache.load opens a single cache"
        raise NotADirectoryError(f"{path}: {rule}")
    if (path / MANIFEST).exists():
        rule = "directory must hold runs, got one that is a run"
        raise ValueError(f"{path}: {rule}; AttentionCache.load opens it, open_runs the directory above it")
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries if _is_run(entry, MANIFEST)]
    return Runs(path.absolute(), sorted(names, key=natural_order))


def _is_run(entry: os.DirEntry[str], manifest: str) -> bool:
    if entry.name.startswith("."):
        return False
    if entry.is_dir():
        return Path(entry.path, manifest).is_file()
    return entry.name.endswith(".safetensors") and entry.is_file()
