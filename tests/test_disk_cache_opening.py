"""Opening a directory as a cache, to write it or to read it: what is there, what is missing, and what is somebody else's.

Covered: new folders, folders with other files, layers without a manifest and a manifest without layers, a directory that is created
while a reader looks, the manifest itself. Not covered: damage (test_damage.py) and links (test_planted_files.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.files import DamagedFileError, read_patterns
from attncache.files.bytes import opened
from attncache.files.containers import open_container
from attncache.files.contents import contents_of
from attncache.files.manifest import MANIFEST
from attncache.files.verifying import verify
from tests.support.stored import push_dense

ONE = np.ones((1, 1, 1, 1), np.float32)


def segments(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.safetensors"))


def test_the_folders_above_are_made(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "a" / "b" / "run") as cache:
        assert cache.directory == tmp_path / "a" / "b" / "run"
        assert cache.path == cache.directory


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"directory must be empty or a cache, got one with thesis\.tex"):
        AttentionCache.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_layers_without_their_manifest_are_refused_and_left_alone(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path) as cache:
        cache.push(ONE)
        cache.push(ONE)
    (tmp_path / MANIFEST).rename(tmp_path.parent / "moved")
    words = r"must have the manifest\.json of its layers, got segment-000000\.safetensors without one"
    with pytest.raises(ValueError, match=words):
        AttentionCache.create(tmp_path)
    (tmp_path.parent / "moved").rename(tmp_path / MANIFEST)
    assert AttentionCache.load(tmp_path, verify=True).n_layers == 2


NEITHER = (
    r"must be a cache, which has manifest\.json, or hold a file of arrays per layer, got a folder with neither; "
    r"attncache\.open_runs opens a folder of caches"
)


@pytest.mark.parametrize("left", [[], ["lock"], ["lock", ".manifest.json.saving"]])
def test_a_reader_finds_nothing_until_a_directory_is_created(left: list[str], tmp_path: Path) -> None:
    for name in left:
        (tmp_path / name).write_bytes(b"7")
    for read in (AttentionCache.load, read_patterns, contents_of, verify):
        with pytest.raises(FileNotFoundError, match=rf"^{tmp_path}: {NEITHER}"):
            read(tmp_path)
    AttentionCache.create(tmp_path).close()
    assert AttentionCache.load(tmp_path).is_empty


def test_a_directory_that_is_created_while_a_reader_looks_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked_at(path: Path, **options: Any) -> Any:
        with AttentionCache.create(path) as cache:
            if cache.is_empty:
                cache.push([[[[1.0]]]])
        return open_container(path, **options)

    monkeypatch.setattr("attncache.files.contents.open_container", looked_at)
    assert AttentionCache.load(tmp_path / "a").n_layers == 1
    assert len(read_patterns(tmp_path / "b").patterns) == 1
    assert len(contents_of(tmp_path / "c").layers) == 1


def test_a_folder_that_is_made_while_a_reader_looks_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(path: Path) -> Any:
        path.mkdir()
        return opened(path)

    monkeypatch.setattr("attncache.files.containers.opened", made)
    with pytest.raises(FileNotFoundError, match="got a folder with neither"):
        AttentionCache.load(tmp_path / "run")


def test_other_files_beside_a_cache_are_left_alone(tmp_path: Path) -> None:
    AttentionCache.create(tmp_path).close()
    (tmp_path / "notes.txt").write_text("x")
    with AttentionCache.create(tmp_path) as cache:
        cache.push(ONE)
    assert (tmp_path / "notes.txt").read_text() == "x"


def test_a_file_in_the_place_of_the_directory_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(FileExistsError):
        AttentionCache.create(tmp_path / "run")


def test_a_missing_or_exchanged_segment_is_said_with_its_name(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        push_dense(cache, "float16")
        push_dense(cache, "float32")
    first, second = ((tmp_path / "run" / name) for name in segments(tmp_path / "run"))
    raw = second.read_bytes()
    second.unlink()
    with pytest.raises(DamagedFileError, match=f"segments must be in the directory.*{second.name}"):
        AttentionCache.load(tmp_path / "run")
    with pytest.raises(OSError, match=second.name):
        AttentionCache.create(tmp_path / "run")
    first.write_bytes(raw)
    second.write_bytes(raw)
    with pytest.raises(DamagedFileError, match=first.name):
        AttentionCache.load(tmp_path / "run")
