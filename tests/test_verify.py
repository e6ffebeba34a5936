"""``attncache verify``: what is damaged, where, and the exit code.

Covered: every kind of file, whole and damaged; every segment and the manifest
of a directory; several damaged places at once; directories of runs; files without checksums; a writer at work meanwhile; a
disk that fails; the exit code and stdout of a real process.
Not covered: every bit, every length and malformed headers; test_damage.py and the readers' tests have those.
"""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.files import read_patterns, safetensors, sample_path, single, verifying
from attncache.files.verifying import verify
from tests.support.command_line import Run, every_kind, flipped, process, write_safetensors
from tests.support.stored import everything, tokened

PATTERNS = read_patterns(sample_path()).patterns[:3]
Ask = Callable[..., Any]
Fails = Callable[..., tuple[Any, str]]


def test_every_kind_of_file_with_checksums_is_whole(ask: Ask, run: Run, tmp_path: Path) -> None:
    for name, path in every_kind(tmp_path, PATTERNS).items():
        if name in ("a.npy", "others.safetensors"):
            continue
        value = ask("verify", path)
        assert value["ok"] is True
        assert {file["state"] for file in value["files"]} == {"whole"}
        assert value["path"] == str(path)
        n_bytes = sum(file["bytes"] for file in value["files"])
        assert n_bytes >= 3 * 28800
        assert run("verify", path)[0] == f"{path}: whole, {n_bytes:,} bytes compared with their checksums"


def test_a_whole_file_has_every_byte_of_its_tensors_compared(ask: Ask, tmp_path: Path) -> None:
    cache = everything()
    cache.save(tmp_path / "a.safetensors", index=True)
    value = ask("verify", tmp_path / "a.safetensors")
    with (tmp_path / "a.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    spans = [entry["data_offsets"] for name, entry in header.items() if name.startswith("layers.")]
    assert [file["bytes"] for file in value["files"]] == [sum(end - begin for begin, end in spans)]
    assert value["files"][0]["checksums"] == "attncache"


def test_every_damaged_block_is_named(
    capsys: pytest.CaptureFixture[str], fails: Fails, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in (safetensors, single):
        monkeypatch.setattr(module, "BLOCK", 10_000)
    path = tmp_path / "a.safetensors"
    cache = AttentionCache()
    for pattern in PATTERNS:
        cache.push(pattern)
    cache.save(path)
    data = path.stat().st_size - 3 * 28800
    for at in (5, 28_799, 28_800 + 10_000, 28_800 + 10_001):
        flipped(path, data + at)
    value, line = fails("verify", path)
    errors = value["files"][0]["errors"]
    assert value["ok"] is False
    assert [error.split(" must ")[0].removeprefix(f"{path}: ") for error in errors] == [
        "bytes 0 to 9999 of tensor layers.0.pattern",
        "bytes 20000 to 28799 of tensor layers.0.pattern",
        "bytes 10000 to 19999 of tensor layers.1.pattern",
    ]
    assert line == errors[0]


def test_a_directory_says_which_segments_are_damaged_and_which_are_missing(
    capsys: pytest.CaptureFixture[str], fails: Fails, tmp_path: Path
) -> None:
    path = every_kind(tmp_path, [*PATTERNS, *PATTERNS])["run"]
    segments = [path / f"segment-{number:06d}.safetensors" for number in range(6)]
    flipped(segments[1], segments[1].stat().st_size - 1)
    flipped(segments[3], 70)
    segments[4].unlink()
    value, line = fails("verify", path)
    states = {Path(file["file"]).name: file["state"] for file in value["files"]}
    assert states == {"manifest.json": "whole"} | {
        segment.name: "damaged" if number in (1, 3, 4) else "whole" for number, segment in enumerate(segments)
    }
    errors = [error for file in value["files"] for error in file["errors"]]
    assert errors[0].startswith(f"{segments[1]}: bytes 0 to 28799 of tensor layers.1.pattern must have the checksum ")
    assert errors[1].startswith(f"{segments[3]}: header_crc32 must be ")
    assert errors[2] == f"{segments[4]}: No such file or directory"
    assert line == f"{path}: 3 of 7 files damaged; {errors[0]}"


@pytest.mark.parametrize("at", [0, 20, 60, -5])
def test_a_damaged_manifest_is_damage(fails: Fails, tmp_path: Path, at: int) -> None:
    path = every_kind(tmp_path, PATTERNS)["run"]
    flipped(path / "manifest.json", at)
    value, line = fails("verify", path)
    assert [file["file"] for file in value["files"]] == [str(path / "manifest.json")]
    assert line.startswith(f"{path / 'manifest.json'}: ")


def test_a_directory_of_runs_says_which_are_damaged(
    capsys: pytest.CaptureFixture[str], run: Run, fails: Fails, tmp_path: Path
) -> None:
    for number in (10, 2, 1):
        with AttentionCache.create(tmp_path / f"prompt-{number}") as cache:
            cache.push(PATTERNS[0])
    tokened().save(tmp_path / "z.safetensors")
    lines = run("verify", tmp_path)
    assert [line.split()[0] for line in lines[2:]] == ["run", "prompt-1", "prompt-2", "prompt-10", "z.safetensors"]
    assert [line.split()[1] for line in lines[3:]] == ["2", "2", "2", "1"]
    assert {line.split()[-1] for line in lines[3:]} == {"whole"}
    segment = tmp_path / "prompt-10" / "segment-000000.safetensors"
    flipped(segment, segment.stat().st_size - 9)
    (tmp_path / "prompt-2" / "manifest.json").chmod(0)
    if os.access(tmp_path / "prompt-2" / "manifest.json", os.R_OK):  # root may read all
        flipped(tmp_path / "prompt-2" / "manifest.json", 30)
    value, line = fails("verify", tmp_path)
    damaged = [file["file"] for file in value["files"] if file["state"] == "damaged"]
    assert [Path(file).parent.name for file in damaged] == ["prompt-2", "prompt-10"]
    assert line.startswith(f"{tmp_path}: 2 of {len(value['files'])} files damaged; ")


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_file_without_checksums_is_not_called_whole(
    capsys: pytest.CaptureFixture[str], fails: Fails, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, PATTERNS[0])
    else:
        write_safetensors(path, {"layers.0.pattern": PATTERNS[0]})
    value, line = fails("verify", path)
    assert value["ok"] is False
    assert value["files"] == [{"file": str(path), "state": "no checksums", "checksums": None, "bytes": 0, "errors": []}]
    assert line == f"{path}: it has no checksums, so nobody can know; attncache convert writes a file that has them"
    os.truncate(path, path.stat().st_size - 1)
    assert fails("verify", path)[0]["files"][0]["state"] == "damaged"


def test_a_flipped_byte_in_the_data_of_an_npz_is_found(fails: Fails, tmp_path: Path) -> None:
    paths = every_kind(tmp_path, PATTERNS)
    for name in ("a.npz", "b.npz"):
        flipped(paths[name], paths[name].stat().st_size // 2)
        value, line = fails("verify", paths[name])
        assert value["files"][0]["state"] == "damaged"
        assert line.startswith(f"{paths[name]}: ")


def test_an_array_that_is_shorter_than_its_header_says_is_damage(fails: Fails, ask: Ask, tmp_path: Path) -> None:
    whole = io.BytesIO()
    np.save(whole, np.zeros((1, 2, 10, 10), np.float32))
    for name, raw, words in [
        ("short", whole.getvalue()[:-760], "got: 40 bytes where its header says 800"),
        ("none", b"no array", "layers.0.pattern must be whole, in NumPy's format"),
    ]:
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as archive:
            archive.writestr("layers.0.pattern.npy", raw)
        value, line = fails("verify", tmp_path / f"{name}.npz")
        assert value["files"][0]["state"] == "damaged"
        assert words in line
        assert line.count("must be whole") == 1
    np.savez(tmp_path / "objects.npz", a=np.zeros((1, 1, 2, 2)), names=np.array([None, "a"], object))
    assert ask("verify", tmp_path / "objects.npz")["ok"] is True


def test_a_folder_of_files_is_verified_file_by_file(fails: Fails, tmp_path: Path) -> None:
    np.savez(tmp_path / "layer_0.npz", PATTERNS[0])
    np.save(tmp_path / "layer_1.npy", PATTERNS[1])
    value, _ = fails("verify", tmp_path)
    assert [file["state"] for file in value["files"]] == ["whole", "no checksums"]


def test_data_that_are_not_aligned_break_the_format(
    fails: Fails, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(safetensors, "ALIGNMENT", 8)
    for number in range(8):  # headers of several lengths: not all end at a multiple of 64
        cache = AttentionCache()
        cache.push(np.zeros((1, 1, 1, 2), np.float32))
        cache.metadata = {"": "x" * 8 * number}
        cache.save(tmp_path / f"{number}.safetensors")
    _, line = fails("verify", tmp_path)
    assert "7 of 8 files damaged" in line
    assert "tensor layers.0.pattern must begin at a multiple of 64 in the file, got " in line


def test_a_writer_that_replaces_segments_meanwhile_is_no_damage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        for pattern in PATTERNS:
            cache.push(pattern)
        read = verifying.read_manifest
        manifests = []

        def read_then_compact(path: Path) -> Any:
            manifests.append(read(path))
            if len(manifests) == 1:
                cache.compact()
            return manifests[-1]

        monkeypatch.setattr(verifying, "read_manifest", read_then_compact)
        found = verify(tmp_path / "run")
    assert [file.path.name for file in found] == ["manifest.json", "segment-000003.safetensors"]
    assert {file.state for file in found} == {"whole"}
    assert len(manifests) == 3


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="reads with preadv where the system has it")
def test_a_disk_that_fails_is_an_error_that_names_the_file(
    fails: Fails, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = every_kind(tmp_path, PATTERNS)

    preadv = os.preadv

    def fail(fd: int, rooms: list[memoryview], offset: int) -> int:
        if len(rooms[0]) < 28_800:  # the manifest can still be read
            return preadv(fd, rooms, offset)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    value, line = fails("verify", paths["run.safetensors"])
    assert line == f"{paths['run.safetensors']}: Input/output error"
    assert value == {"error": line}
    value, line = fails("verify", paths["run"])
    assert [file["state"] for file in value["files"]] == ["whole", "damaged", "damaged", "damaged"]
    assert f"{paths['run'] / 'segment-000000.safetensors'}: Input/output error" in line


def test_a_process_of_its_own_ends_with_0_or_1_and_prints_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tokened().save(path)
    good = process("verify", str(path), "--json")
    assert (good.returncode, good.stderr, json.loads(good.stdout)["ok"]) == (0, "", True)
    flipped(path, path.stat().st_size - 1)
    for options in ([], ["--json"]):
        bad = process("verify", str(path), *options)
        assert bad.returncode == 1
        assert bad.stderr.startswith(f"attncache: error: {path}: bytes 0 to ")
        assert bad.stderr.count("\n") == 1
        assert "layers.1.key_mask" in bad.stdout
    assert json.loads(bad.stdout)["ok"] is False
    missing = process("verify", str(tmp_path / "b.safetensors"))
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == f"attncache: error: {tmp_path / 'b.safetensors'}: No such file or directory\n"
