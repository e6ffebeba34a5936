"""Files are replaced whole or not at all, whatever call fails; without strace, so on every system.

Covered: each ``os`` function of the write path of ``save``, a push, a compaction and metadata failing once: the old
contents stay, nothing else is left in the folder, the error names the path, and a second try succeeds; two writers of
one path at once; what a killed writer left; missing, read-only and wrong places; modes and links; locks across forks. Not covered: faults
at the level of system calls and power loss (``python -m tests.faults``).
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attncache import AttentionCache
from attncache.files.atomic import hidden_name, replacing
from tests.support.stored import state, tokened

CALLS = ("open", "ftruncate", "posix_fallocate", "pwrite", "fsync", "replace")
AVAILABLE = [name for name in CALLS if hasattr(os, name)]


def other() -> AttentionCache:
    """What is there before."""
    cache = AttentionCache()
    cache.push([[[[0.5, 0.5], [1.0, 0.0]]]])
    return cache


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail(name: str, monkeypatch: pytest.MonkeyPatch, *, at: int = 1) -> None:
    """The ``at``-th call of a function of ``os`` fails with EIO."""
    real, counted = getattr(os, name), iter(range(1, 1_000_000))

    def failing(*args: Any, **options: Any) -> Any:
        if next(counted) == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args, **options)

    monkeypatch.setattr(os, name, failing)


@pytest.mark.parametrize("existed", [True, False], ids=["over a file", "to a new name"])
@pytest.mark.parametrize("name", AVAILABLE)
def test_a_save_that_fails_leaves_the_old_file_or_nothing(
    name: str, existed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache.safetensors"
    if existed:
        other().save(path)
    before = [each.read_bytes() for each in tmp_path.iterdir()]
    with monkeypatch.context() as patch:
        fail(name, patch)
        with pytest.raises(OSError, match=r"cache\.safetensors") as caught:
            tokened().save(path)
    assert caught.value.errno == errno.EIO
    assert caught.value.filename == str(path)  # and not the hidden file
    assert [each.read_bytes() for each in tmp_path.iterdir()] == before
    tokened().save(path)
    assert state(AttentionCache.load(path)) == state(tokened())


def test_a_save_whose_last_flush_fails_says_so_and_has_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cache.safetensors"
    fail("fsync", monkeypatch, at=2)
    with pytest.raises(OSError, match=r"cache\.safetensors"):
        tokened().save(path)
    assert state(AttentionCache.load(path)) == state(tokened())
    assert names(tmp_path) == [path.name]


def test_a_write_that_writes_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match="writes nothing more"):
        tokened().save(tmp_path / "cache.safetensors")
    assert names(tmp_path) == []


CHANGES: dict[str, Callable[[Any], None]] = {
    "push": lambda cache: cache.push([[[[0.25, 0.75], [0.5, 0.5]]]]),
    "metadata": lambda cache: setattr(cache, "metadata", {"n": 2}),
    "tokens": lambda cache: setattr(cache, "tokens", ["x", "y"]),
    "compact": lambda cache: cache.compact(),
    "clear": lambda cache: cache.clear(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", AVAILABLE)
def test_a_change_of_a_directory_that_fails_leaves_it_and_the_cache_as_they_were(
    name: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache: Any = AttentionCache.create(tmp_path / "run")
    for layer in (other()[0], other()[0]):
        cache.push(layer)
    before, files = state(cache), names(tmp_path / "run")
    with monkeypatch.context() as patch:
        fail(name, patch)
        with pytest.raises(OSError, match="run") as caught:
            CHANGES[change](cache)
    assert caught.value.errno == errno.EIO
    assert state(cache) == before == state(AttentionCache.load(tmp_path / "run", verify=True))
    assert names(tmp_path / "run") == files
    CHANGES[change](cache)
    assert state(cache) == state(AttentionCache.load(tmp_path / "run", verify=True)) != before or change == "compact"
    cache.close()


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_creation_that_fails_can_be_repeated(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fail(name, patch, at=1)
        try:
            AttentionCache.create(tmp_path / "run").close()
        except OSError as error:
            assert "run" in str(error)  # noqa: PT017 (the first open only says who writes, and may fail unnoticed)
    with AttentionCache.create(tmp_path / "run") as cache:
        cache.push(other()[0])
    assert names(tmp_path / "run") == ["lock", "manifest.json", "segment-000000.safetensors"]


KILLED = """
import os, sys
from attncache.files.atomic import replacing
with replacing(__import__("pathlib").Path(sys.argv[1])) as fd:
    os.write(fd, b"half of a file")
    os._exit(9)
"""


@pytest.mark.parametrize("existed", [True, False], ids=["over a file", "to a new name"])
@pytest.mark.parametrize("linked", [False, True], ids=["", "through a link"])
@pytest.mark.parametrize("cleaner", ["load", "save"])
def test_what_a_killed_save_left_is_removed_by_the_next(
    cleaner: str, linked: bool, existed: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = real = folder / "cache.safetensors"
    if linked:
        path = tmp_path / "link"
        path.symlink_to(real)
    if existed:
        other().save(path)
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == 9
    assert hidden_name(real).read_bytes() == b"half of a file"
    if cleaner == "save":
        tokened().save(path)
        assert state(AttentionCache.load(path)) == state(tokened())
    elif existed:
        assert state(AttentionCache.load(path)) == state(other())
    else:
        with pytest.raises(FileNotFoundError):
            AttentionCache.load(path)
    assert names(folder) == ([real.name] if existed or cleaner == "save" else [])
    assert path.is_symlink() == linked


def test_places_that_cannot_hold_a_file_are_os_errors_that_name_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        tokened().save(tmp_path / "missing" / "cache.safetensors")
    assert missing.value.filename == str(tmp_path / "missing" / "cache.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        tokened().save(tmp_path / "folder")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        tokened().save(tmp_path / "file" / "cache.safetensors")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"not a regular file: .*pipe"):
        tokened().save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    assert names(tmp_path) == ["file", "folder", "pipe"]
    assert names(tmp_path / "folder") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_an_os_error_and_its_files_are_read(tmp_path: Path) -> None:
    tokened().save(tmp_path / "cache.safetensors")
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match="cache"):
            other().save(tmp_path / "cache.safetensors")
        assert state(AttentionCache.load(tmp_path / "cache.safetensors")) == state(tokened())
    finally:
        tmp_path.chmod(0o755)


def test_a_new_file_has_the_mode_that_the_user_asks_for_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    mask = os.umask(0o027)
    try:
        tokened().save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o600)
        with replacing(path) as fd:
            assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600  # while it is written too
        tokened().save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(mask)


def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cache.safetensors"
    other().save(path)
    path.chmod(0o444)
    if os.geteuid() == 0:  # who may write anywhere
        real_open = os.open

        def open_as_others(name: Any, flags: int, *mode: int) -> int:
            if flags & os.O_WRONLY and not Path(name).stat().st_mode & 0o222:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
            return real_open(name, flags, *mode)

        monkeypatch.setattr(os, "open", open_as_others)
    with pytest.raises(PermissionError, match="cache"):
        tokened().save(path)
    assert state(AttentionCache.load(path)) == state(other())
    assert names(tmp_path) == [path.name]
