"""Manifests whose checksum is right and whose contents break a rule of ours, and segments that are not those they name.

Each is refused with the file, the place and the rule, by who reads and by who would write. Not covered: flipped bits
(test_damage.py) and the segments' own contents (test_malformed_caches.py).
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from attncache import AttentionCache
from attncache.files.errors import DamagedFileError
from test_malformed import DENSE, TWO, WEIGHTS
from tests.support.handmade import manifest, our_file, sealed, segment

GOOD = our_file({"layers.0.pattern": TWO["layers.0.pattern"]}, DENSE[:1])


def run_of(folder: Path, raw: bytes, **files: bytes) -> Path:
    """A directory with this manifest and one good segment, or others."""
    folder.mkdir()
    for name, content in {"segment-000000": GOOD, **files}.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    (folder / "manifest.json").write_bytes(raw)
    return folder


SEGMENT = segment("segment-000000.safetensors", GOOD, 0, 1)


MANIFESTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "must begin with"),
    "a list": (b"[]", "must begin with"),
    "no checksum": (b'{"attncache":1,"next":1,"segments":[]}', "must begin with"),
    "wrong checksum": (manifest([SEGMENT]).replace(b'"next":1000', b'"next":1001'), "manifest_crc32 must be"),
    "not JSON": (sealed(b'{"manifest_crc32":"00000000",'), "must be JSON"),
    "not UTF-8": (sealed(b'{"manifest_crc32":"00000000","\xff":1}'), "must be JSON in UTF-8"),
    "name twice": (sealed(b'{"manifest_crc32":"00000000","next":1,"next":1,"attncache":1,"segments":[]}'), "twice"),
    "version 2": (manifest([SEGMENT], attncache=2), "must be version 1; a newer attncache may read it, got 2"),
    "version true": (manifest([SEGMENT], attncache=True), "must be version 1"),
    "no version": (sealed(b'{"manifest_crc32":"00000000","next":1,"segments":[]}'), "must be version 1"),
    "unknown name": (manifest([SEGMENT], more=1), "must have the names"),
    "next negative": (manifest([SEGMENT], next=-1), "must have the names"),
    "next a string": (manifest([SEGMENT], next="1"), "must have the names"),
    "segments an object": (manifest({"0": SEGMENT}), "segments must be a list"),
    "segment a name": (manifest([SEGMENT["file"]]), "a segment must have"),
    "segment without file": (manifest([{"first_layer": 0}]), "a segment must have"),
    "file above": (manifest([{**SEGMENT, "file": "../a.safetensors"}]), "must be the name of a file in this directory"),
    "file at the root": (
        manifest([{**SEGMENT, "file": "/etc/passwd"}]),
        "must be the name of a file in this directory",
    ),
    "file with a null": (manifest([{**SEGMENT, "file": "a\0b"}]), "must be the name of a file in this directory"),
    "file the folder": (manifest([{**SEGMENT, "file": "."}]), "must be the name of a file in this directory"),
    "file a number": (manifest([{**SEGMENT, "file": 5}]), "must be the name of a file in this directory"),
    "file half a character": (
        manifest([{**SEGMENT, "file": "\ud800"}]),
        "must be the name of a file in this directory",
    ),
    "file missing": (manifest([{**SEGMENT, "file": "segment-000009.safetensors"}]), "must be in the directory"),
    "first_layer negative": (manifest([{**SEGMENT, "first_layer": -1}]), "first_layer of segment-000000"),
    "first_layer a bool": (manifest([{**SEGMENT, "first_layer": False}]), "first_layer of segment-000000"),
    "first_layer 1": (manifest([{**SEGMENT, "first_layer": 1}]), "without a gap"),
    "n_layers huge": (manifest([{**SEGMENT, "n_layers": 2**63}]), "n_layers of segment-000000"),
    "n_layers 2": (manifest([{**SEGMENT, "n_layers": 2}]), "segment-000000.safetensors: layers must be 2"),
    "n_layers 0": (manifest([{**SEGMENT, "n_layers": 0}]), "segment-000000"),
    "hash a number": (manifest([{**SEGMENT, "header_sha256": 1}]), "header_sha256 of segment-000000"),
    "hash of another": (manifest([{**SEGMENT, "header_sha256": "0" * 64}]), "must have the SHA-256"),
    "tokens an object": (manifest([SEGMENT], tokens={"a": "b"}), "tokens"),
    "tokens a string": (manifest([SEGMENT], tokens="ab"), "tokens"),
    "tokens of numbers": (manifest([SEGMENT], tokens=[1, 2]), "tokens"),
    "query_tokens an object": (manifest([SEGMENT], query_tokens={"a": "b"}), "query_tokens must be lists of strings"),
    "query_tokens of numbers": (manifest([SEGMENT], query_tokens=[1, 2]), "query_tokens must be lists of strings"),
    "metadata a list": (manifest([SEGMENT], metadata=[1]), "metadata must be a JSON object"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_breaks_a_rule_is_refused(name: str, tmp_path: Path) -> None:
    raw, words = MANIFESTS[name]
    folder = run_of(tmp_path / "run", raw)
    with pytest.raises(DamagedFileError) as caught:
        AttentionCache.load(folder)
    assert str(caught.value).startswith(str(folder)), caught.value
    assert words in str(caught.value), caught.value
    with pytest.raises((DamagedFileError, FileNotFoundError), match="run"):
        AttentionCache.create(folder)


def test_a_directory_made_by_hand_is_loaded_and_continued(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", manifest([SEGMENT], tokens=["a", "b"], metadata={"n": 1}))
    assert AttentionCache.load(folder, verify=True)[0].tobytes() == WEIGHTS
    with AttentionCache.create(folder) as cache:
        cache.push([[[[1.0]]]])
    cache = AttentionCache.load(folder, mmap=False)
    assert (cache.n_layers, cache.tokens, dict(cache.metadata)) == (2, ("a", "b"), {"n": 1})


def test_a_manifest_of_absurd_segments_is_refused_quickly_and_in_little_memory(tmp_path: Path) -> None:
    many = [{**SEGMENT, "n_layers": 1_000_000, "first_layer": 1_000_000 * (at % 2)} for at in range(2000)]
    folder = run_of(tmp_path / "run", manifest(many))
    begin = time.monotonic()
    with pytest.raises(DamagedFileError, match="at most 1000000 layers together"):
        AttentionCache.load(folder)
    assert time.monotonic() - begin < 20
