"""Files and directories whose container and checksum are right and whose contents break a rule of ours.

Covered: layers that are missing, doubled, of the wrong kind, dtype or shape; their numbers; tokens, metadata, checksums
and versions of every wrong JSON type; sizes that are absurd. Each is refused with the file, the place and the
rule, quickly and in little memory. Not covered: the container itself (test_malformed.py).
"""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, LayerSource
from attncache.files.errors import DamagedFileError
from test_malformed import DENSE, FACTORS, NUMBERS, TWO, WEIGHTS, assert_refused
from tests.support.handmade import Tensors, our_file, raw_file

ONE: Tensors = {"layers.0.pattern": ("F32", (1, 1, 2, 2), WEIGHTS)}
FLOATS = np.ones(64, np.float32).tobytes()


def dense(**more: Any) -> bytes:
    """A file of one dense layer with more or other tensors, by the last word of their names."""
    added = {f"layers.0.{name}": value for name, value in more.items()}
    return our_file({name: value for name, value in {**ONE, **added}.items() if value is not None}, DENSE[:1])


def factored(numbers: Any = None, **more: Any) -> bytes:
    """A file of one factored layer with more or other tensors and numbers."""
    added = {f"layers.0.{name}": value for name, value in more.items()}
    tensors = {name: value for name, value in {**FACTORS, **added}.items() if value is not None}
    return our_file(tensors, [{**NUMBERS, **(numbers or {})}])


def described(layers: Any, /, **metadata: Any) -> bytes:
    """The file of two dense layers, described so."""
    return our_file(TWO, layers, **metadata)


def floats(*shape: int) -> tuple[str, tuple[int, ...], bytes]:
    return "F32", shape, np.ones(shape, np.float32).tobytes()


GOOD = our_file(ONE, DENSE[:1])
SOURCES: list[tuple[Any, str]] = [
    ([], "layers.0: its source must be one"),
    ("a", "source must be an object, got str"),
    ({"module": 1}, "module must be a string"),
    ({"module": "a" * 1001}, "at most 1,000 characters"),
    ({"layer": -1}, "layer must be from 0"),
    ({"layer": 0.5}, "layer must be an int"),
    ({"layer": 10**3000}, "layer must be from 0"),
    ({"stack": "tower"}, "stack must be one of"),
    ({"kind": [[["self"]]]}, "kind must be a string or None, got list"),
    ({"heads": 0}, "heads must be a list of ints"),
    ({"heads": [0] * 100_000}, "n_heads=1, got 100000"),
]
LAYERS: dict[str, tuple[bytes, str]] = {
    "no layer 0": (our_file({"layers.1.pattern": ONE["layers.0.pattern"]}, DENSE[:1]), "layers.0"),
    "a gap": (our_file({**ONE, "layers.2.pattern": ONE["layers.0.pattern"]}, DENSE), "layers.1"),
    "fewer described": (described(DENSE[:1]), "layers.1"),
    "more described": (described([*DENSE, *DENSE]), "layers.2"),
    "none described": (described([]), "layers.0"),
    "a layer of 0 and of 00": (our_file({**ONE, "layers.00.pattern": ONE["layers.0.pattern"]}, DENSE), "layers.1"),
    "layers missing": (described(DENSE, layers=None), "layers in __metadata__ must be a list"),
    "layers an object": (described({}), "layers in __metadata__ must be a list"),
    "layers of numbers": (described([1, 2]), "layers in __metadata__ must be a list"),
    "layers not JSON": (described(DENSE, layers="[{]"), "layers in __metadata__ must be JSON"),
    "layers with NaN": (described(DENSE, layers='[{"kind":NaN}]'), "layers in __metadata__ must be JSON"),
    "layers deep": (described(DENSE, layers="[" * 100_000), "layers in __metadata__ must be JSON"),
    "a name twice": (described(DENSE, layers='[{"kind":"dense","kind":"dense"}]'), "'kind' twice"),
    "no kind": (described([{}, {}]), "layers.0: its kind"),
    "kind a number": (described([{"kind": 1}, {"kind": 1}]), "layers.0: its kind"),
    "kind a list": (described([{"kind": []}, {"kind": []}]), "layers.0: its kind"),
    "kind unknown": (described([{"kind": "sparse"}, *DENSE[:1]]), "layers.0: its kind must be dense or factored"),
    "dense of factors": (our_file(FACTORS, DENSE[:1]), "must have the tensor layers.0.pattern"),
    "factored of a pattern": (our_file(ONE, [NUMBERS]), "must have the tensor layers.0.query"),
    "queries without keys": (factored(key=None), "must have the tensor layers.0.key"),
    "keys without queries": (factored(query=None), "must have the tensor layers.0.query"),
    "pattern among factors": (factored(pattern=ONE["layers.0.pattern"]), "tensor layers.0.pattern must not be in"),
    "an unknown tensor": (dense(gradient=floats(1, 1, 2, 2)), "tensor layers.0.gradient must not be in"),
    "pattern of three axes": (dense(pattern=floats(1, 2, 2)), "must be [batch, head, query, key]"),
    "pattern of no axes": (dense(pattern=floats()), "must be [batch, head, query, key]"),
    "pattern of int32": (dense(pattern=("I32", (1, 1, 2, 2), WEIGHTS)), "dtype of tensor layers.0.pattern"),
    "pattern of float64": (dense(pattern=("F64", (1, 1, 1, 2), WEIGHTS)), "dtype of tensor layers.0.pattern"),
    "pattern of 2^32 keys": (dense(pattern=("F32", (0, 1, 1, 2**32), b"")), "fewer than 2**32 queries and keys"),
    "dtypes that differ": (factored(key=("F16", (1, 1, 3, 4), bytes(24))), "queries and keys of one dtype"),
    "batches that differ": (factored(key=floats(2, 1, 3, 4)), "layers.0 must fit together"),
    "items that differ": (factored(key=floats(1, 1, 3, 5)), "layers.0 must fit together"),
    "no items": (factored(query=("F32", (1, 2, 2, 0), b""), key=("F32", (1, 1, 3, 0), b"")), "layers.0 must fit"),
    "heads that do not divide": (factored(query=floats(1, 3, 2, 4), key=floats(1, 2, 3, 4)), "layers.0 must fit"),
    "no key head": (factored(key=("F32", (1, 0, 3, 4), b"")), "layers.0 must fit together"),
    "lse of other rows": (factored(lse=floats(1, 2, 3)), "tensor layers.0.lse must be F32"),
    "lse of float16": (factored(lse=("F16", (1, 2, 2), bytes(8))), "tensor layers.0.lse must be F32"),
    "sinks of other heads": (factored(sinks=floats(3)), "tensor layers.0.sinks must be F32"),
    "lse and sinks": (factored(lse=floats(1, 2, 2), sinks=floats(2)), "layers.0 must fit together"),
    "mask of other keys": (factored(key_mask=("BOOL", (1, 2), b"\1\1")), "tensor layers.0.key_mask must be BOOL"),
    "mask of bytes": (factored(key_mask=("U8", (1, 3), b"\1\1\1")), "tensor layers.0.key_mask must be BOOL"),
    "mask of twos": (factored(key_mask=("BOOL", (1, 3), b"\1\2\1")), "layers.0"),
    "mean without transpose": (dense(mean=floats(1, 2, 2)), "must have both mean and mean_by_key"),
    "transpose without mean": (dense(mean_by_key=floats(1, 2, 2)), "must have both mean and mean_by_key"),
    "mean of heads": (dense(mean=floats(1, 1, 2, 2), mean_by_key=floats(1, 2, 2)), "tensor layers.0.mean must be F32"),
    "mean of a factored": (factored(mean=floats(1, 2, 3), mean_by_key=floats(1, 3, 2)), "must not be in"),
    "greatest without sum": (factored(row_greatest=floats(1, 2, 2)), "must have both row_greatest and row_sum"),
    "sums of other rows": (factored(row_greatest=floats(1, 2, 2), row_sum=floats(1, 2, 3)), "layers.0.row_sum must be"),
    "scale missing": (our_file(FACTORS, [{"kind": "factored"}]), "layers.0: its scale must be a number"),
    **{
        f"scale {value!r}": (factored({"scale": value}), "layers.0: its scale must be a number")
        for value in (None, "0.5", True)
    },
    "scale infinite": (described(DENSE, layers='[{"kind":"factored","scale":1e999}]'), "1e999, which is too large"),
    **{
        f"{name} {value}": (factored({name: value}), "layers.0")
        for name, values in {"causal": (1, None), "window": (0, 1.5, True), "softcap": (0, -1.0, [1])}.items()
        for value in values
    },
    **{
        f"source {str(source)[:40]}": (our_file(ONE, [{"kind": "dense", "source": source}]), words)
        for source, words in SOURCES
    },
    "source of other heads": (factored({"source": {"heads": [0, 1, 2]}}), "n_heads=2, got 3"),
    "a list for the mask": (factored({"key_mask": [[1, 1, 1]], "bias": 5, "lse": [1]}), ""),
}
ENTRIES: dict[str, tuple[bytes, str]] = {
    "version 2": (described(DENSE, attncache="2"), "must be version 1; a newer attncache may read it, got 2"),
    "version 1.0": (described(DENSE, attncache="1.0"), "must be version 1"),
    "no version number": (described(DENSE, attncache=""), "must be version 1"),
    "no checksum of the header": (
        raw_file(json.dumps({"__metadata__": {"attncache": "1", "layers": "[]"}})),
        "must begin with header_crc32",
    ),
    **{
        f"{name} {text}": (described(DENSE, **{name: text}), f"{name} must be lists of strings")
        for name in ("tokens", "query_tokens")
        for text in ('"ab"', "7", '{"a":"b"}', '[{"a":1,"b":2}]', "[1,2]", "[null,null]", '["a",["b"]]', '[[["a"]]]')
    },
    "tokens not JSON": (described(DENSE, tokens="['a']"), "tokens in __metadata__ must be JSON"),
    "query_tokens not JSON": (described(DENSE, query_tokens="['a']"), "query_tokens in __metadata__ must be JSON"),
    **{
        f"metadata {text}": (described(DENSE, metadata=text), "metadata must be a JSON object")
        for text in ("[1]", '"a"', "1")
    },
    "metadata not JSON": (described(DENSE, metadata="{1:2}"), "metadata in __metadata__ must be JSON"),
    "metadata with NaN": (described(DENSE, metadata='{"a":NaN}'), "metadata in __metadata__ must be JSON"),
    "metadata name twice": (described(DENSE, metadata='{"a":1,"a":2}'), "'a' twice"),
    "metadata deep": (described(DENSE, metadata='{"a":' * 50_000), "metadata in __metadata__ must be JSON"),
}
RIGHT = "00000000"


def summed(tensors: Any, block: Any = 16 << 20) -> bytes:
    """The file of one layer with these checksums."""
    return our_file(ONE, DENSE[:1], data_crc32=json.dumps({"block": block, "tensors": tensors}))


CHECKSUMS: dict[str, tuple[bytes, str]] = {
    "none": (our_file(ONE, DENSE[:1], data_crc32=None), "must have data_crc32 in __metadata__ to be verified"),
    "a list": (our_file(ONE, DENSE[:1], data_crc32="[]"), "data_crc32 in __metadata__"),
    "not JSON": (our_file(ONE, DENSE[:1], data_crc32="{"), "data_crc32 in __metadata__ must be JSON"),
    "a number": (our_file(ONE, DENSE[:1], data_crc32="1"), "data_crc32 in __metadata__"),
    "of no tensor": (summed({}), "data_crc32 in __metadata__"),
    "of another tensor": (summed({"layers.1.pattern": [RIGHT]}), "data_crc32 in __metadata__"),
    "of one tensor more": (summed({"layers.0.pattern": [RIGHT], "a": []}), "data_crc32 in __metadata__"),
    "of other blocks": (summed({"layers.0.pattern": [RIGHT]}, 4), "blocks of 16777216 bytes"),
    "of no block": (summed({"layers.0.pattern": []}), "data_crc32 of tensor layers.0.pattern must be 1 checksums"),
    "of two blocks": (summed({"layers.0.pattern": [RIGHT, RIGHT]}), "must be 1 checksums"),
    "a string": (summed({"layers.0.pattern": RIGHT}), "must be 1 checksums"),
    "of numbers": (summed({"layers.0.pattern": [0]}), "must have the checksum"),
    "wrong": (summed({"layers.0.pattern": [RIGHT]}), "must have the checksum 00000000"),
}


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "a list for the mask"])
def test_layers_that_break_a_rule_are_refused(name: str, tmp_path: Path) -> None:
    assert_refused(*LAYERS[name], tmp_path / "wrong.safetensors")


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_of_the_wrong_kind_are_refused(name: str, tmp_path: Path) -> None:
    assert_refused(*ENTRIES[name], tmp_path / "wrong.safetensors")


@pytest.mark.parametrize("name", CHECKSUMS)
def test_checksums_of_the_wrong_kind_are_refused_when_verified(name: str, tmp_path: Path) -> None:
    raw, words = CHECKSUMS[name]
    (tmp_path / "wrong.safetensors").write_bytes(raw)
    with pytest.raises(DamagedFileError) as caught:
        AttentionCache.load(tmp_path / "wrong.safetensors", verify=True)
    assert words in str(caught.value)


def test_more_numbers_than_a_layer_has_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "more.safetensors").write_bytes(LAYERS["a list for the mask"][0])
    (tmp_path / "plain.safetensors").write_bytes(factored())
    more, plain = (AttentionCache.load(tmp_path / name) for name in ("more.safetensors", "plain.safetensors"))
    assert more.rows(0).tobytes() == plain.rows(0).tobytes()


def test_an_entry_of_a_later_version_in_a_description_or_a_source_is_passed_over(tmp_path: Path) -> None:
    source = {"module": "m", "layer": 5, "of a later version": {"a": [1]}}
    layer = {"kind": "dense", "source": source, "of a later version": [None]}
    (tmp_path / "later.safetensors").write_bytes(our_file(ONE, [layer], said_later="7"))
    cache = AttentionCache.load(tmp_path / "later.safetensors", verify=True)
    assert cache[0].tobytes() == WEIGHTS
    assert cache.sources == (LayerSource("m", layer=5),)


def test_no_source_is_known_of_a_layer_whose_source_is_null(tmp_path: Path) -> None:
    (tmp_path / "null.safetensors").write_bytes(our_file(ONE, [{"kind": "dense", "source": None}]))
    assert AttentionCache.load(tmp_path / "null.safetensors").sources == (None,)


def test_padding_that_is_not_zeros_is_refused_when_verified(tmp_path: Path) -> None:
    raw = bytearray(described(DENSE))
    raw[-WEIGHTS.__len__() - 1] = 1  # the last byte before the second pattern
    (tmp_path / "wrong.safetensors").write_bytes(raw)
    with pytest.raises(DamagedFileError, match="must be zeros, it is padding"):
        AttentionCache.load(tmp_path / "wrong.safetensors", verify=True)


def names(count: int, *, last: str) -> bytes:
    """A header of many names, of which the last is ``last``."""
    return raw_file("{" + ",".join(f'"{n}":0' for n in range(count)) + f',"{last}":0}}')


MANY: Tensors = {"layers.0.pattern": ("F32", (2**40, 0, 0, 0), b"")}
ABSURD: dict[str, bytes] = {
    "300,000 names, the last twice": names(300_000, last="299999"),
    "300,000 names": names(300_000, last="a"),
    "a pattern of 2^40 texts": our_file(
        {**MANY, "layers.0.mean": ("F32", (2**40, 0, 0), b""), "layers.0.mean_by_key": ("F32", (2**40, 0, 0), b"")},
        DENSE[:1],
    ),
    "factors of 2^40 texts": our_file(
        {"layers.0.query": ("F32", (2**40, 0, 0, 4), b""), "layers.0.key": ("F32", (2**40, 1, 0, 4), b"")}, [NUMBERS]
    ),
    "200,000 layers described": our_file(ONE, DENSE[:1] * 200_000),
    "a layer numbered 999999999": our_file({"layers.999999999.pattern": ONE["layers.0.pattern"]}, DENSE[:1]),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_sizes_are_refused_quickly_and_in_little_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "absurd.safetensors"
    path.write_bytes(ABSURD[name])
    tracemalloc.start()
    begin = time.monotonic()
    with pytest.raises(ValueError, match="absurd"):
        AttentionCache.load(path)
    assert time.monotonic() - begin < 20
    assert tracemalloc.get_traced_memory()[1] < 60 * len(ABSURD[name]) + 10_000_000
    tracemalloc.stop()
