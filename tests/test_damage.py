"""Damage to files of caches: every truncation, every flipped bit, bytes behind the end.

Covered: a file that has everything a file can hold (dense, factored with each option, index, tokens, metadata, padding)
and a directory of two segments. Under ``verify=True`` and ``mmap=False`` each damage is refused with the path in the
message; a mapped file that is not verified is refused or loaded, and nothing else. Sizes: about 4 KiB, so that every bit
can be tried; of a directory every bit of the manifest and one bit of every byte of a segment. Not covered: damage to
several places at once (CRC-32 misses one in 2^32 of those), headers made wrong with a right checksum
(test_malformed.py), and files that others cut while they are mapped, which ends the process (docs/faults.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.files.errors import DamagedFileError
from attncache.files.verifying import verify
from tests.support.stored import state

Load = Callable[[Path], object]


def by_verify(path: Path) -> object:
    """What ``attncache verify`` finds, as ``load`` would raise it."""
    for error in (error for file in verify(path) for error in file.errors):
        raise error
    return path


PROVING: dict[str, Load] = {
    "verified": lambda path: AttentionCache.load(path, verify=True),
    "in memory": lambda path: AttentionCache.load(path, mmap=False),
}
WAYS: dict[str, Load] = {**PROVING, "not verified": AttentionCache.load, "by attncache verify": by_verify}
SEGMENT = "run/segment-000001.safetensors"


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


def assert_refused(
    load: Load, opened: Path, what: str, damaged: Path, kind: type[ValueError] = DamagedFileError
) -> None:
    """A damaged path is refused as what it is, and its name is told."""
    with pytest.raises(kind) as caught:
        raise AssertionError(f"{what}: {load(opened)} was loaded")
    assert type(caught.value) is kind, what
    assert str(damaged) in str(caught.value), what


def test_the_small_file_has_everything_and_is_loaded_undamaged(file: Path) -> None:
    names = file.read_bytes().decode("latin-1")
    for word in ("pattern", "mean_by_key", "query", "lse", "key_mask", "sinks", "row_sum", "__pad", "tokens"):
        assert word in names, word
    for found in (AttentionCache.load(file, verify=True), AttentionCache.load(file, mmap=False)):
        assert state(found) == state(small_cache())


FLIPS = [
    ("verified", "small.safetensors", 8),
    ("in memory", "small.safetensors", 1),
    ("by attncache verify", "small.safetensors", 1),
    ("not verified", "small.safetensors header", 1),
    ("not verified", "run/manifest.json", 8),
    ("verified", SEGMENT, 1),
    ("in memory", SEGMENT, 1),
]


@pytest.mark.parametrize(("way", "what", "n_bits"), FLIPS)
@pytest.mark.usefixtures("file", "directory")
def test_a_flipped_bit_is_found_wherever_it_is(way: str, what: str, n_bits: int, tmp_path: Path) -> None:
    path = tmp_path / what.removesuffix(" header")
    opened = path.parent if "run" in what else path
    raw = path.read_bytes()
    n_bytes = 8 + int.from_bytes(raw[:8], "little") if what.endswith("header") else len(raw)
    with path.open("r+b") as stream:
        for at in range(n_bytes):
            for bit in range(8) if n_bits == 8 else [at % 8]:
                os.pwrite(stream.fileno(), bytes([raw[at] ^ (1 << bit)]), at)
                assert_refused(WAYS[way], opened, f"bit {bit} of byte {at} of {len(raw)}", path)
            os.pwrite(stream.fileno(), raw[at : at + 1], at)
    WAYS[way](opened)


@pytest.mark.parametrize(
    ("way", "what"),
    [
        *((way, "small.safetensors") for way in WAYS),
        *(("not verified", name) for name in ("run/manifest.json", SEGMENT)),
    ],
)
@pytest.mark.usefixtures("file", "directory")
def test_a_file_cut_anywhere_is_refused(way: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / what
    opened = path.parent if "run" in what else path
    raw = path.read_bytes()
    known = 9 if opened == path else 0  # nobody can tell what a shorter one was, but in a directory
    for size in range(len(raw) - 1, -1, -1):
        os.truncate(path, size)
        kind = DamagedFileError if size >= known else ValueError
        assert_refused(WAYS[way], opened, f"cut to {size} of {len(raw)} bytes", path, kind)


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
    assert_refused(PROVING[proving], file, "a tail", file)
    with pytest.raises(DamagedFileError, match="bytes long, as its header says"):
        AttentionCache.load(file)
