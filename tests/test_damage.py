"""Damage to files of caches: every truncation, every flipped bit, bytes behind the end, files exchanged.

Covered: a file that has everything a file can hold (dense, factored with each option, index, tokens, metadata, padding)
and a directory of two segments. Under ``verify=True`` and ``mmap=False`` each damage is refused with the path in the
message; a mapped file that is not verified is refused or loaded, and nothing else. Sizes: about 4 KiB, so that every bit
can be tried; of a directory every bit of the manifest and one bit of every byte of a segment. Not covered: damage to
several places at once (CRC-32 misses one in 2^32 of those), headers made wrong with a right checksum
(test_malformed.py), and files that others cut while they are mapped, which ends the process (docs/faults.md).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.files.errors import DamagedFileError
from tests.support.stored import state

Load = Callable[[Path], AttentionCache]
PROVING: dict[str, Load] = {
    "verified": lambda path: AttentionCache.load(path, verify=True),
    "in memory": lambda path: AttentionCache.load(path, mmap=False),
}


def small_cache() -> AttentionCache:
    """Everything a file can hold, small."""
    random = np.random.default_rng(20240817)
    cache = AttentionCache()
    cache.push(random.random((1, 2, 2, 3)).astype(np.float16))
    query, key = (
        random.normal(size=(1, 2, 2, 2)).astype(np.float32),
        random.normal(size=(1, 1, 3, 2)).astype(np.float32),
    )
    cache.push_qk(query, key, lse=random.random((1, 2, 2)).astype(np.float32))
    cache.push_qk(query, key, key_mask=[[0, 1, 1]], sinks=np.array([0.5, -1], np.float32), softcap=3.0, window=2)
    cache.lse(2)
    cache.tokens = ["the", " cat", "\N{SNOWMAN}"]
    cache.metadata = {"n": 1}
    return cache


@pytest.fixture
def file(tmp_path: Path) -> Path:
    small_cache().save(tmp_path / "small.safetensors", index=True)
    return tmp_path / "small.safetensors"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    with AttentionCache.create(tmp_path / "run") as cache:
        cache.push([[[[1.0, 0.0], [0.25, 0.75]]]])
        cache.push_qk(np.ones((1, 1, 2, 2), np.float32), np.ones((1, 1, 2, 2), np.float32))
        cache.tokens = ["a", "b"]
        cache.metadata = {"n": 1}
    return tmp_path / "run"


def assert_refused(load: Load, path: Path, what: str) -> None:
    """A damaged path is refused as what it is, and its name is told."""
    with pytest.raises(DamagedFileError) as caught:
        raise AssertionError(f"{what}: {load(path)} was loaded")
    assert str(path) in str(caught.value), what


def flip(descriptor: int, raw: bytes, bit: int) -> None:
    """Flip one bit of the file that is open; flipping it back is writing the byte."""
    at = bit // 8
    os.pwrite(descriptor, bytes([raw[at] ^ (1 << bit % 8)]), at)


def test_the_small_file_has_everything_and_is_loaded_undamaged(file: Path) -> None:
    names = file.read_bytes().decode("latin-1")
    for word in ("pattern", "mean_by_key", "query", "lse", "key_mask", "sinks", "row_sum", "__pad", "tokens"):
        assert word in names, word
    for load in PROVING.values():
        assert state(load(file)) == state(small_cache())


@pytest.mark.parametrize("proving", PROVING)
def test_a_file_cut_anywhere_is_refused(proving: str, file: Path) -> None:
    raw = file.read_bytes()
    for size in range(len(raw) - 1, -1, -1):
        os.truncate(file, size)
        assert_refused(PROVING[proving], file, f"cut to {size} of {len(raw)} bytes")
    file.write_bytes(raw)
    PROVING[proving](file)


def test_a_file_cut_anywhere_is_refused_without_looking_at_its_data(file: Path) -> None:
    raw = file.read_bytes()
    for size in range(len(raw) - 1, -1, -1):
        os.truncate(file, size)
        assert_refused(AttentionCache.load, file, f"cut to {size} of {len(raw)} bytes")


def test_every_single_flipped_bit_is_found_when_verified(file: Path) -> None:
    raw = file.read_bytes()
    with file.open("r+b") as stream:
        for bit in range(8 * len(raw)):
            flip(stream.fileno(), raw, bit)
            assert_refused(PROVING["verified"], file, f"bit {bit % 8} of byte {bit // 8} of {len(raw)}")
            os.pwrite(stream.fileno(), raw[bit // 8 : bit // 8 + 1], bit // 8)
    assert state(AttentionCache.load(file, verify=True)) == state(small_cache())


def test_a_flipped_bit_of_every_byte_is_found_when_read_into_memory(file: Path) -> None:
    raw = file.read_bytes()
    with file.open("r+b") as stream:
        for at in range(len(raw)):
            flip(stream.fileno(), raw, 8 * at + at % 8)
            assert_refused(PROVING["in memory"], file, f"bit {at % 8} of byte {at}")
            os.pwrite(stream.fileno(), raw[at : at + 1], at)


def test_a_flipped_bit_of_the_header_is_found_without_verifying(file: Path) -> None:
    raw = file.read_bytes()
    with file.open("r+b") as stream:
        for at in range(8 + int.from_bytes(raw[:8], "little")):
            flip(stream.fileno(), raw, 8 * at + at % 8)
            assert_refused(AttentionCache.load, file, f"bit {at % 8} of byte {at}")
            os.pwrite(stream.fileno(), raw[at : at + 1], at)


def test_the_message_says_which_bytes_of_which_tensor_are_damaged(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[8 + int.from_bytes(raw[:8], "little")] ^= 1
    file.write_bytes(raw)
    with pytest.raises(DamagedFileError, match=r"bytes 0 to 23 of tensor layers\.0\.pattern must have the checksum"):
        AttentionCache.load(file, verify=True)
    AttentionCache.load(file)  # the promise of a mapped file is its header's


@pytest.mark.parametrize("proving", PROVING)
@pytest.mark.parametrize("tail", [b"\0", b"\n", b"PK\5\6" + bytes(18)], ids=["a zero", "a newline", "a zip archive"])
def test_bytes_behind_the_end_are_refused(proving: str, tail: bytes, file: Path) -> None:
    file.write_bytes(file.read_bytes() + tail)
    assert_refused(PROVING[proving], file, "a tail")
    with pytest.raises(DamagedFileError, match="bytes long, as its header says"):
        AttentionCache.load(file)


def test_every_flipped_bit_of_a_manifest_is_found(directory: Path) -> None:
    path = directory / "manifest.json"
    raw = path.read_bytes()
    with path.open("r+b") as stream:
        for bit in range(8 * len(raw)):
            flip(stream.fileno(), raw, bit)
            with pytest.raises(DamagedFileError, match=r"manifest\.json"):
                AttentionCache.load(directory)
            os.pwrite(stream.fileno(), raw[bit // 8 : bit // 8 + 1], bit // 8)
    assert AttentionCache.load(directory, verify=True).tokens == ("a", "b")


@pytest.mark.parametrize("name", ["manifest.json", "segment-000000.safetensors", "segment-000001.safetensors"])
def test_a_file_of_a_directory_cut_anywhere_is_refused(name: str, directory: Path) -> None:
    raw = (directory / name).read_bytes()
    for size in range(len(raw) - 1, -1, -1):
        os.truncate(directory / name, size)
        with pytest.raises(DamagedFileError, match=name.replace(".", r"\.")):
            AttentionCache.load(directory)


@pytest.mark.parametrize("proving", PROVING)
def test_a_flipped_bit_of_every_byte_of_a_segment_is_found(proving: str, directory: Path) -> None:
    path = directory / "segment-000001.safetensors"
    raw = path.read_bytes()
    with path.open("r+b") as stream:
        for at in range(len(raw)):
            flip(stream.fileno(), raw, 8 * at + at % 8)
            with pytest.raises(DamagedFileError, match=r"segment-000001\.safetensors"):
                PROVING[proving](directory)
            os.pwrite(stream.fileno(), raw[at : at + 1], at)


def test_segments_that_changed_places_are_refused(directory: Path) -> None:
    one, other = directory / "segment-000000.safetensors", directory / "segment-000001.safetensors"
    one.rename(directory / "between")
    other.rename(one)
    (directory / "between").rename(other)
    with pytest.raises(DamagedFileError, match=r"segment-00000[01]\.safetensors"):
        AttentionCache.load(directory)


def test_a_segment_of_another_directory_is_refused(directory: Path, tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "other") as cache:
        cache.push([[[[0.5, 0.5], [0.25, 0.75]]]])
    name = "segment-000000.safetensors"
    assert (tmp_path / "other" / name).stat().st_size == (directory / name).stat().st_size
    shutil.copy(tmp_path / "other" / name, directory / name)
    with pytest.raises(DamagedFileError, match="must have the SHA-256"):
        AttentionCache.load(directory)


def test_a_damaged_directory_is_not_opened_for_writing_and_stays_as_it_is(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"next":2', b'"next":3'))
    before: dict[str, Any] = {each.name: each.read_bytes() for each in directory.iterdir() if each.name != "lock"}
    with pytest.raises(DamagedFileError, match="manifest_crc32"):
        AttentionCache.create(directory)
    assert {each.name: each.read_bytes() for each in directory.iterdir() if each.name != "lock"} == before
