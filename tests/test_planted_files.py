"""What somebody else has put under a name of ours in a cache's directory is never followed, waited for or written to.

Covered: links (to a file, to nothing, to a directory), hard links, pipes, devices and directories under each name that the
format knows, when the directory is created, loaded, verified, pushed to, compacted and described; the same beside a file
that is saved; the user's own file called lock. Each call ends, with the cache or with an OSError or ValueError, and what
lies outside of the directory keeps every byte.
Not covered: somebody who changes names while a call runs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.files.atomic import hidden_name
from attncache.files.verifying import verify

ONE = np.ones((1, 1, 1, 1), np.float32)
PRECIOUS = b"a thesis, 300 pages\n" * 10
SEGMENT, NEXT, MANIFEST = "segment-000000.safetensors", "segment-000002.safetensors", "manifest.json"
NAMES = ("lock", MANIFEST, SEGMENT, NEXT, f".{SEGMENT}.saving", f".{NEXT}.saving", f".{MANIFEST}.saving")


def device(path: Path, _: Path) -> None:
    try:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 3))  # as /dev/null
    except PermissionError:
        pytest.skip("only root makes devices")


def folder(path: Path, _: Path) -> None:
    path.mkdir()
    (path / "mine").write_bytes(PRECIOUS)


KINDS: dict[str, Callable[[Path, Path], object]] = {
    "link to a file": lambda path, outside: path.symlink_to(outside / "precious"),
    "link to nothing": lambda path, outside: path.symlink_to(outside / "new"),
    "link to a folder": lambda path, outside: path.symlink_to(outside),
    "link to a cache": lambda path, outside: path.symlink_to(
        outside / "cache" / (path.name if (outside / "cache" / path.name).exists() else MANIFEST)
    ),
    "second name": lambda path, outside: path.hardlink_to(outside / "precious"),
    "pipe": lambda path, _: os.mkfifo(path),
    "device": device,
    "folder": folder,
}


def written(directory: Path) -> None:
    """A cache of two layers."""
    with AttentionCache.create(directory) as cache:
        cache.push(ONE)
        cache.push(ONE / 2)
        cache.tokens = ["a"]


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder of somebody's, which must stay as it is."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "precious").write_bytes(PRECIOUS)
    written(path / "cache")

    def state() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}

    before = state()
    yield path
    assert state() == before


def planted(path: Path, kind: str, outside: Path) -> None:
    """Put something in the place of what is there."""
    path.unlink(missing_ok=True)
    KINDS[kind](path, outside)


def tried(call: Callable[[], object]) -> bool:
    """Whether a call ends well; it may also refuse."""
    try:
        call()
    except (OSError, ValueError):
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_directory_with_something_planted_in_it(name: str, kind: str, outside: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    written(run)
    planted(run / name, kind, outside)
    is_readable = name not in (MANIFEST, SEGMENT)
    for way in ({}, {"mmap": False}, {"verify": True}):
        assert tried(lambda way=way: AttentionCache.load(run, **way)) == is_readable  # type: ignore[misc]
    assert tried(lambda: verify(run)) or name == MANIFEST
    if is_readable:
        assert {file.state for file in verify(run)} == {"whole"}

    def change() -> None:
        with AttentionCache.create(run) as cache:
            cache.push(ONE)
            cache.tokens = ["b"]
            cache.compact()

    changed = tried(change)
    if is_readable and kind != "folder":
        assert changed
        assert AttentionCache.load(run, verify=True).shapes == ((1, 1, 1, 1),) * 3
        assert sorted(path.name for path in run.iterdir()) == ["lock", MANIFEST, "segment-000003.safetensors"]
    if kind == "folder":
        assert (run / name / "mine").read_bytes() == PRECIOUS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lock", MANIFEST, SEGMENT])
def test_a_folder_that_holds_nothing_else(name: str, kind: str, outside: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    planted(run / name, kind, outside)

    def create() -> None:
        with AttentionCache.create(run) as cache:
            cache.push(ONE)

    assert tried(create) == (name == "lock" and kind not in ("folder", "second name"))


@pytest.mark.parametrize("name", [NEXT, f".{NEXT}.saving", f".{MANIFEST}.saving"])
@pytest.mark.parametrize("kind", KINDS)
def test_something_planted_while_a_writer_is_at_work(name: str, kind: str, outside: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    written(run)
    with AttentionCache.create(run) as cache:
        planted(run / name, kind, outside)
        pushed = tried(lambda: cache.push(ONE))
        assert pushed == (kind == "second name" or (name != NEXT and kind != "folder"))
        if kind == "folder":
            shutil.rmtree(run / name)
        cache.push(ONE / 4)
        assert cache[-1].item() == 0.25
    assert AttentionCache.load(run, verify=True)[-1].item() == 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_something_planted_beside_a_file_that_is_saved(kind: str, outside: Path, tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    cache = AttentionCache()
    cache.push(ONE)
    cache.save(path)
    planted(hidden_name(path), kind, outside)
    assert AttentionCache.load(path).n_layers == 1
    cache.push(ONE)
    assert tried(lambda: cache.save(path)) == (kind != "folder")
    assert AttentionCache.load(path, verify=True).n_layers == (1 if kind == "folder" else 2)
    assert not path.is_symlink()


def test_the_users_own_file_called_lock_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(PRECIOUS)
    with pytest.raises(ValueError, match="directory must be empty or a cache, got one with lock"):
        AttentionCache.create(tmp_path)
    assert (tmp_path / "lock").read_bytes() == PRECIOUS


def test_a_manifest_or_segment_that_is_a_link_is_refused_by_name(tmp_path: Path) -> None:
    for name in (MANIFEST, SEGMENT):
        written(tmp_path / name)
        real = (tmp_path / name / name).rename(tmp_path / f"moved {name}")
        (tmp_path / name / name).symlink_to(real)
        with pytest.raises(OSError, match=rf"not a regular file but a symbolic link: '.*{name}'"):
            AttentionCache.load(tmp_path / name)


def test_a_lock_of_another_user_is_replaced_and_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "run")
    lock = tmp_path / "run" / "lock"
    before = lock.stat().st_ino
    monkeypatch.setattr(os, "geteuid", lambda: lock.stat().st_uid + 1 if lock.stat().st_ino == before else os.getuid())
    kept = lock.open("rb")
    with AttentionCache.create(tmp_path / "run") as cache:
        cache.push(ONE)
    with kept:
        assert kept.read() == str(os.getpid()).encode()
    assert lock.stat().st_ino != before
