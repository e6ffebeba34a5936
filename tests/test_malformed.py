"""Headers made wrong by hand: each is refused with the file, the place and the rule in its message.

Covered: the container (lengths, JSON, tensors, offsets, products that overflow); manifests whose checksum is right, and
segments that are not those they name, by who reads and by who would write; every way of loading; that the stock safetensors
library refuses the same containers. Files are written by handmade.py, which knows the format document alone, so the right ones
among them test that too. Not covered: our own entries (test_malformed_caches.py), flipped bits and truncation (test_damage.py), random mutations (test_fuzz_load.py).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.files.errors import DamagedFileError
from tests.support.handmade import Tensors, entries_of, manifest, our_file, raw_file, sealed, segment

WEIGHTS = np.array([[1, 0], [0.25, 0.75]], np.float32).tobytes()
TWO: Tensors = {f"layers.{n}.pattern": ("F32", (1, 1, 2, 2), WEIGHTS) for n in range(2)}
DENSE = [{"kind": "dense"}, {"kind": "dense"}]
NUMBERS = {"kind": "factored", "scale": 0.5, "causal": True, "window": None, "softcap": None}
FACTORS: Tensors = {
    "layers.0.query": ("F32", (1, 2, 2, 4), np.ones(16, np.float32).tobytes()),
    "layers.0.key": ("F32", (1, 1, 3, 4), np.ones(12, np.float32).tobytes()),
}
NOT_KNOWN = "must be a cache of attncache or a file of arrays (safetensors, .npz, "  # what is no safetensors at all
WAYS: tuple[dict[str, bool], ...] = ({}, {"mmap": False}, {"verify": True}, {"mmap": False, "verify": True})


def assert_refused(raw: bytes, words: str, path: Path) -> None:
    """Every way of loading refuses the bytes, names the file and says these words; only what is ours is called damaged."""
    path.write_bytes(raw)
    for way in WAYS:
        with pytest.raises(ValueError, match=re.escape(path.name)) as caught:
            AttentionCache.load(path, **way)
        message = str(caught.value)
        assert type(caught.value) is (ValueError if words is NOT_KNOWN else DamagedFileError), message
        assert message.startswith(f"{path}: "), message
        assert words in message, f"{way}: {message}"
        assert len(message) < 1000, "a message must be readable"


def changed(change: Callable[[dict[str, Any]], object], data: bytes = WEIGHTS * 2) -> bytes:
    """The container of two patterns with something changed in its header."""
    entries, _ = entries_of(TWO)
    change(entries)
    return raw_file(json.dumps(entries), data)


def tensor(name: str, **fields: Any) -> Callable[[dict[str, Any]], object]:
    """Change fields of a tensor's entry; None leaves one out."""

    def change(entries: dict[str, Any]) -> None:
        entries[name] = {key: value for key, value in {**entries[name], **fields}.items() if value is not None}

    return change


def one(dtype: str, shape: Any, offsets: Any, size: int = 16) -> bytes:
    """The container of one pattern that says this of itself."""
    entry = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    return raw_file(json.dumps({"layers.0.pattern": entry}), bytes(size))


FIRST, SECOND = "layers.0.pattern", "layers.1.pattern"
ENTRY = '{"dtype":"F32","shape":[1,1,2,2],"data_offsets":[0,16]}'
CONTAINERS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", NOT_KNOWN),
    "seven bytes": (bytes(7), NOT_KNOWN),
    "header of no bytes": (raw_file(b""), NOT_KNOWN),
    "header longer than the file": (raw_file("{}", length=3), "must lie in the file"),
    "header of 100,000,001 bytes": (raw_file("{}", length=100_000_001), NOT_KNOWN),
    "length + 8 wraps to 7": (raw_file("{}", length=2**64 - 1), NOT_KNOWN),
    "not UTF-8": (raw_file(b'{"\xff":1}'), "must be JSON in UTF-8"),
    "UTF-16": (raw_file('{"a":1}'.encode("utf-16")), NOT_KNOWN),
    "surrogate in UTF-8": (raw_file(b'{"\xed\xa0\x80":1}'), "must be JSON in UTF-8"),
    "byte order mark": (raw_file(b"\xef\xbb\xbf{}"), NOT_KNOWN),
    "not JSON": (raw_file("{"), "must be JSON in UTF-8"),
    "two values": (raw_file("{}{}"), "must be JSON in UTF-8"),
    "control character": (raw_file('{"a\nb":1}'), "must be JSON in UTF-8"),
    "zeros after the header": (raw_file(b"{}" + bytes(6)), "must be JSON in UTF-8"),
    "deep objects": (raw_file('{"a":' * 500_000 + "1" + "}" * 500_000), "too deeply nested"),
    "a name of a megabyte": (raw_file(f'{{"{"a" * 1_000_000}":[]}}'), "must have dtype"),
    "a name of a megabyte twice": (raw_file(f'{{"{"a" * 1_000_000}":1,"{"a" * 1_000_000}":1}}'), "twice"),
    "list": (raw_file("[]"), NOT_KNOWN),
    "NaN": (raw_file(f'{{"{FIRST}":NaN}}'), "NaN"),
    "Infinity": (raw_file(f'{{"{FIRST}":-Infinity}}'), "Infinity"),
    "number of 5000 digits": (raw_file(f'{{"{FIRST}":1{"0" * 5000}}}'), "5001 digits"),
    "name twice": (raw_file(f'{{"{FIRST}":{ENTRY},"{FIRST}":{ENTRY}}}', bytes(16)), f"{FIRST!r} twice"),
    "name twice by escape": (raw_file(f'{{"{FIRST}":{ENTRY},"\\u006c{FIRST[1:]}":{ENTRY}}}', bytes(16)), "twice"),
    "dtype twice": (raw_file(f'{{"{FIRST}":{ENTRY[:-1]},"dtype":"F16"}}}}', bytes(16)), "'dtype' twice"),
    "metadata twice": (raw_file(f'{{"__metadata__":{{}},"{FIRST}":{ENTRY},"__metadata__":{{}}}}', bytes(16)), "twice"),
    "name in metadata twice": (
        raw_file(f'{{"__metadata__":{{"a":"1","a":"2"}},"{FIRST}":{ENTRY}}}', bytes(16)),
        "'a' twice",
    ),
    "metadata a list": (changed(lambda entries: entries.update(__metadata__=["a"])), "__metadata__ must be an object"),
    "metadata null": (changed(lambda entries: entries.update(__metadata__=None)), "__metadata__ must be an object"),
    "metadata of numbers": (changed(lambda entries: entries.update(__metadata__={"a": 1})), "object of strings"),
    "entry a list": (changed(lambda entries: entries.update({FIRST: []})), f"tensor '{FIRST}' must have"),
    **{
        f"entry without {each}": (changed(tensor(FIRST, **{each: None})), f"tensor '{FIRST}' must have")
        for each in ("dtype", "shape", "data_offsets")
    },
    "entry with more": (changed(tensor(FIRST, strides=[1])), f"tensor '{FIRST}' must have"),
    "dtype a number": (changed(tensor(FIRST, dtype=5)), f"dtype of tensor '{FIRST}'"),
    **{f"dtype {each!r}": (changed(tensor(FIRST, dtype=each)), "one of F64") for each in ("F33", "f32", "F32\0")},
    "shape a number": (changed(tensor(FIRST, shape=4)), f"shape of tensor '{FIRST}'"),
    **{
        f"shape beginning {each!r}": (changed(tensor(FIRST, shape=[each, 1, 2, 2])), "must be whole numbers")
        for each in (1.0, True, "1", -1, [2])
    },
    **{
        f"offsets {each}": (changed(tensor(FIRST, data_offsets=each)), "must be two whole numbers")
        for each in ([0], [0, 16, 16], 0, [-16, 0], [0.0, 16.0], [False, 16])
    },
    "offsets backwards": (changed(tensor(FIRST, data_offsets=[16, 0])), "must be 16 bytes apart"),
    "offsets of 2^64": (changed(tensor(FIRST, data_offsets=[2**64, 2**64 + 16])), "must begin where"),
    "offsets of 10^400": (changed(tensor(FIRST, data_offsets=[0, 10**400])), "must be 16 bytes apart"),
    "offsets the same twice": (changed(tensor(SECOND, data_offsets=[0, 16])), "must begin where the tensor before"),
    "offsets overlapping": (changed(tensor(SECOND, data_offsets=[8, 24])), "must begin where the tensor before"),
    "offsets with a hole": (changed(tensor(SECOND, data_offsets=[20, 36]), bytes(36)), "must begin where"),
    "offsets beginning late": (one("F32", [1, 1, 2, 2], [4, 20], 20), "must begin where"),
    "offsets behind the end": (changed(lambda _: None, WEIGHTS), "must be"),
    "data behind the last": (changed(lambda _: None, WEIGHTS * 3), "bytes long, as its header says"),
    "size of another dtype": (changed(tensor(FIRST, dtype="F16")), "must be 8 bytes apart"),
    "size of another shape": (changed(tensor(FIRST, shape=[1, 1, 2, 3])), "must be 24 bytes apart"),
    "product that is 2^64": (one("U8", [2**32, 2**32, 1, 1], [0, 0], 0), "fewer than 2**63 bytes"),
    "product that wraps to 0": (one("F32", [2**31, 2**31, 1, 1], [0, 0], 0), "fewer than 2**63 bytes"),
    "product that wraps to 16": (one("F32", [2**62 + 1, 1, 2, 2], [0, 16]), "fewer than 2**63 bytes"),
    "product that is negative": (one("F32", [2**61, 1, 1, 1], [0, 16]), "fewer than 2**63 bytes"),
    "product with a late zero": (one("F32", [2**62, 2**62, 2, 0], [0, 0], 0), "fewer than 2**63 bytes"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_wrong_container_is_refused(name: str, tmp_path: Path) -> None:
    raw, words = CONTAINERS[name]
    assert_refused(raw, words, tmp_path / "wrong.safetensors")


# What safetensors takes and we do not: names that occur twice (its parser keeps the last), a hole that no tensor of
# ours can see, sizes that come to nothing only by a late zero.
STRICTER = {"name twice", "name twice by escape", "metadata twice", "name in metadata twice"}
STRICTER |= {"metadata null", "entry with more", "product with a late zero"}


def test_stock_safetensors_refuses_the_same_containers(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors", reason="the stock reader is not installed")
    path = tmp_path / "wrong.safetensors"
    taken = set()
    for name, (raw, _) in CONTAINERS.items():
        path.write_bytes(raw)
        with suppress(Exception), safetensors.safe_open(path, "np") as file:  # its kinds vary between versions
            file.keys()
            taken.add(name)
    assert taken <= STRICTER


def test_right_containers_made_by_hand_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "right.safetensors"
    for raw in (
        changed(lambda _: None),
        our_file(TWO, DENSE),
        raw_file(json.dumps(entries_of(TWO)[0]) + "  ", WEIGHTS * 2),
    ):
        path.write_bytes(raw)
        assert [layer.tobytes() for layer in AttentionCache.load(path)] == [WEIGHTS, WEIGHTS]
    path.write_bytes(our_file(FACTORS, [NUMBERS], tokens='["a","b","c"]', metadata='{"n":1}'))
    cache = AttentionCache.load(path, verify=True)
    assert (cache.kinds, cache.tokens, dict(cache.metadata)) == (("factored",), ("a", "b", "c"), {"n": 1})
    assert cache.get_queries(0).tobytes() == FACTORS["layers.0.query"][2]


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
    **{
        f"file {each!r}": (manifest([{**SEGMENT, "file": each}]), "must be the name of a file in this directory")
        for each in ("../a.safetensors", "/etc/passwd", "a\0b", ".", 5, "\ud800")
    },
    "file missing": (manifest([{**SEGMENT, "file": "segment-000009.safetensors"}]), "must be in the directory"),
    "first_layer negative": (manifest([{**SEGMENT, "first_layer": -1}]), "first_layer of segment-000000"),
    "first_layer a bool": (manifest([{**SEGMENT, "first_layer": False}]), "first_layer of segment-000000"),
    "first_layer 1": (manifest([{**SEGMENT, "first_layer": 1}]), "without a gap"),
    "n_layers huge": (manifest([{**SEGMENT, "n_layers": 2**63}]), "n_layers of segment-000000"),
    "n_layers 2": (manifest([{**SEGMENT, "n_layers": 2}]), "segment-000000.safetensors: layers must be 2"),
    "n_layers 0": (manifest([{**SEGMENT, "n_layers": 0}]), "segment-000000"),
    "hash a number": (manifest([{**SEGMENT, "header_sha256": 1}]), "header_sha256 of segment-000000"),
    "hash of another": (manifest([{**SEGMENT, "header_sha256": "0" * 64}]), "must have the SHA-256"),
    **{
        f"{name} {each}": (manifest([SEGMENT], **{name: each}), name)
        for name in ("tokens", "query_tokens")
        for each in ({"a": "b"}, "ab", [1, 2])
    },
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
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises((DamagedFileError, FileNotFoundError), match="run"):
        AttentionCache.create(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"} == before


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
