"""What ``torch.save`` writes: its tensors are found without torch, and nothing in the file is run or looked up.

Covered: every dtype of attention and every nesting, strides, generations, mapped and read; pickles made by hand that name other things,
break every rule of the few opcodes that are followed, or hold more than memory does; the old format.
Not covered: names and axes (test_files_by_others.py).
"""

from __future__ import annotations

import collections
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.files import read_patterns
from attncache.files.verifying import verify
from tests.support.written_by_others import LAYERS, assert_layers, patterns, read_alike


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_what_torch_saves_is_read(dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    layers = [torch.from_numpy(layer).to(getattr(torch, dtype)) for layer in patterns(2)]
    expected = [layer.to(torch.float64).numpy() for layer in layers]
    path = tmp_path / "attentions.bin"
    for saved in (
        tuple(layers),
        layers,
        dict(enumerate(layers)),
        torch.stack(layers),
        {"attentions": tuple(layers), "n": 3},
    ):
        torch.save(saved, path)
        found = read_alike(path) if dtype != "float64" else read_patterns(path).patterns
        assert [layer.dtype.name for layer in found] == [dtype] * LAYERS
        assert all(np.array_equal(mine.astype("f8"), theirs) for mine, theirs in zip(found, expected, strict=True))
    assert [file.state for file in verify(path)] == ["whole"]


@pytest.mark.parametrize("mmap", [True, False])
def test_tensors_of_torch_are_read_over_the_file_whatever_their_strides(mmap: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    whole = torch.from_numpy(patterns(2))
    views = {
        "whole": whole,
        "turned": whole.transpose(3, 4),
        "part": whole[1:, :, 1:2, ::2],
        "one": whole[0, 0, 0, 0, 0],
    }
    torch.save(
        collections.OrderedDict(views, ids=torch.arange(6), flag=torch.tensor([True]), note="a"), tmp_path / "a.pt"
    )
    for name in ("whole", "turned", "part"):
        cache = AttentionCache.load(tmp_path / "a.pt", mmap, names=name, check=False)
        assert_layers(list(cache), views[name].numpy())
    assert cache.dtypes == ("float32",) * (LAYERS - 1)
    torch.save({"a": torch.zeros(1).expand(1, 1, 4096, 4096)}, tmp_path / "b.pt")
    with pytest.raises(
        ValueError, match=r"b\.pt: .* got: tensors of 16777216 items, of which the file holds less than a"
    ):
        AttentionCache.load(tmp_path / "b.pt")


def test_checksums_are_compared_when_a_file_is_read_or_verified(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", TENSOR % (STORAGE, b"K\x0c", SIZES, STRIDES), bytes(63) + b"\x3f")
    assert AttentionCache.load(path, verify=True)[0].flat[3] == AttentionCache.load(path, mmap=False)[0].flat[3] == 0.5
    path.write_bytes(path.read_bytes().replace(b"\0\0\0\x3f", b"\0\0\0\x3e"))
    assert AttentionCache.load(path)[0].flat[3] == 0.125  # mapped: nobody has looked at it
    for way in ({"mmap": False}, {"verify": True}):
        with pytest.raises(ValueError, match=r"a\.pt: a/data/0 must be whole, got: Bad CRC-32"):
            AttentionCache.load(path, **way)
    assert [str(file.errors[0]) for file in verify(path)] == [
        f"{path}: a/data/0 must be whole, got: Bad CRC-32 for file 'a/data/0'"
    ]


@pytest.mark.parametrize("kind", ["Float", "BFloat16"])
def test_a_file_of_the_other_byte_order_is_read(kind: str, tmp_path: Path) -> None:
    storage = STORAGE.replace(b"FloatStorage", kind.encode() + b"Storage")
    half = {"Float": b"\x3f\0\0\0", "BFloat16": b"\x3f\0"}[kind]
    path = archive(tmp_path / "a.pt", TENSOR % (storage, b"K\0", SIZES, STRIDES), half * 16, byteorder=b"big")
    (layer,) = AttentionCache.load(path, check=False).patterns
    assert layer.dtype.name == kind.lower().replace("float", "float32" if kind == "Float" else "float")
    assert np.array_equal(layer.astype("f4"), np.full((1, 1, 2, 2), 0.5, "f4"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_steps_of_a_generation_become_one_pattern_per_layer(dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    sizes = ((4, 4), (1, 5), (1, 6))
    steps = [tuple(torch.rand(1, 2, *size).to(getattr(torch, dtype)) for _ in range(3)) for size in sizes]
    keys = tuple((torch.rand(1, 2, 6, 8), torch.rand(1, 2, 6, 8)) for _ in range(3))
    expected = AttentionCache.from_attentions(steps)
    for saved in (tuple(steps), {"attentions": tuple(steps), "past_key_values": keys}):
        torch.save(saved, tmp_path / "a.pt")
        assert_layers(read_alike(tmp_path / "a.pt"), np.array(expected.patterns))
    torch.save((steps[0], steps[2]), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: the file must hold the steps of a generation, got: attentions\["):
        read_patterns(tmp_path / "a.pt")


class Bomb:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def archive(path: Any, pickled: bytes, storage: bytes = bytes(64), byteorder: bytes = b"little") -> Any:
    """What torch.save writes, with this pickle; into a path or a stream, which it gives back."""
    with zipfile.ZipFile(path, "w") as file:
        for name, raw in {"data.pkl": pickled, "byteorder": byteorder, "data/0": storage}.items():
            file.writestr(f"a/{name}", raw)
    return path


STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x10tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(%s%s%s%s\x89ccollections\nOrderedDict\n)RtR."
SIZES, STRIDES = b"(K\x01K\x01K\x02K\x02t", b"(K\x04K\x04K\x02K\x01t"
PICKLES: dict[str, tuple[bytes, str]] = {
    "a function": (
        b"cposix\nsystem\n(X\x01\0\0\0atR.",
        "got: posix.system, which is not looked up because it may run code",
    ),
    "another of torch": (b"ctorch._utils\n_rebuild_tensor_v3\n.", "_rebuild_tensor_v3, which is not looked up"),
    "a name on the stack": (pickle.dumps(Bomb(), 4), "got: the opcode STACK_GLOBAL of a pickle, which is not followed"),
    "an instance": (b"(iposix\nsystem\n.", "got: the opcode INST of a pickle"),
    "a class that is called": (b"ctorch\nFloatStorage\n)R.", "got: a call of torch.FloatStorage"),
    "a number that is called": (b"K\x01)R.", "got: a pickle with a int in the place of a name"),
    "attributes of a list": (b"]}b.", "got: a pickle with a list in the place of a dict"),
    "a tuple as a name": (b"})K\x01s.", "a tuple in the place of a string or number"),
    "no end": (b"K\x01", "got: pickle exhausted before seeing STOP"),
    "nothing on the stack": (b"R.", "got: pop from empty list"),
    "no mark": (b"K\x01t.", "got: pop from empty list"),
    "a list of itself": (b"]q\0h\0a.", "got: maximum recursion depth exceeded"),
    "2^30 values": (b"]q\0" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(30)) + b".", "got: more than 1"),
    "beyond the storage": (
        TENSOR % (STORAGE, b"K\x0d", SIZES, STRIDES),
        "a tensor of shape [1, 1, 2, 2] in a storage of 16",
    ),
    "a negative stride": (
        TENSOR % (STORAGE, b"K\x04", SIZES, b"(K\x01K\x01K\x01J\xff\xff\xff\xfft"),
        "a tensor of shape",
    ),
    "a shape of words": (TENSOR % (STORAGE, b"K\0", b"(X\x01\0\0\0at", b"(K\x01t"), "a tensor of shape ('a',)"),
    "no storage": (TENSOR % (b"N", b"K\0", SIZES, STRIDES), "a nonetype in the place of a storage"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_nothing_in_a_file_of_torch_is_run_or_looked_up(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled, words = PICKLES[name]
    path = archive(tmp_path / "a.pt", pickled)
    for read in (read_patterns, AttentionCache.load):
        with pytest.raises(
            ValueError, match=r"a\.pt: the file must hold tensors, numbers and strings in tuples"
        ) as caught:
            read(path)
        assert words in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["a.pt"]


def test_a_file_of_torch_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    path = archive(tmp_path / "a.pt", TENSOR % (STORAGE, b"K\x0c", SIZES, STRIDES))
    assert_layers(read_alike(path), np.zeros((1, 1, 1, 2, 2)))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"a/data/0", b"a/data/1"))
    with pytest.raises(ValueError, match=r"a\.pt: storage 0 must be whole, got: "):
        read_patterns(path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.ones(1, 1, 2, 2), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Bomb()))
    for name, words in (("old.pt", "a file of torch.save in its old format, a pickle"), ("a.pkl", "a pickle")):
        with pytest.raises(ValueError, match=rf"{name}: .* got {words}, which is never opened because it may run code"):
            read_patterns(tmp_path / name)
