"""Each kind of file that others keep attention in: what is in it, what is refused, and what needs a package.

Covered: bfloat16 in NumPy's files; HDF5; zarr; weights of models, folders and caches; what is no file of arrays; what checksums say.
Sizes and values as in test_files_by_others.py, which has names and axes. Not covered: what torch.save writes (test_torch_files.py),
damaged files (test_archives.py, test_fuzz_load.py), the commands (test_convert.py, test_info.py).
"""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attncache import AttentionCache
from attncache.files import read_patterns
from attncache.files.contents import contents_of
from attncache.files.verifying import verify
from attncache.notices import PatternWarning
from tests.support.written_by_others import (
    LAYERS,
    Writer,
    assert_layers,
    hdf5,
    npz,
    patterns,
    read_alike,
    safetensors,
    torch_dict,
)


@pytest.mark.parametrize("save", [np.save, np.savez])
def test_bfloat16_of_numpy_is_read(save: Any, tmp_path: Path) -> None:
    stack = patterns().astype(ml_dtypes.bfloat16)
    save(tmp_path / "a", stack)
    (path,) = tmp_path.iterdir()
    found = read_alike(path)
    assert_layers(found, stack)
    assert AttentionCache.load(path).dtypes == ("bfloat16",) * LAYERS
    save(tmp_path / "a", np.zeros(stack.shape, "V3"))
    with pytest.raises(ValueError, match="must be one of float16, bfloat16, float32, float64, got void24"):
        read_patterns(path)


def test_a_file_whose_reader_is_not_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hdf5(tmp_path, {"a": patterns()})
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"a\.h5: an HDF5 file needs h5py to be read: pip install h5py"):
        read_patterns(path)


def test_a_zarr_store_is_told_how_to_come_in(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    for n, layer in enumerate(patterns()):
        group.create_array(f"layer_{n}", data=layer)
    with pytest.raises(
        ValueError, match=r"a\.zarr: is a zarr store, .*AttentionCache\.from_attentions\(zarr\.open\(path\)\["
    ):
        read_patterns(tmp_path / "a.zarr")
    group = zarr.open(tmp_path / "a.zarr", mode="r")
    assert_layers(list(AttentionCache.from_attentions(group[f"layer_{n}"] for n in range(LAYERS))), patterns())


WEIGHTS = {
    "model.embed.weight": np.ones((9, 4), "f4"),
    "conv.weight": np.ones((4, 3, 2, 2), "f4"),
    "conv.bias": np.ones(4, "f4"),
}


@pytest.mark.parametrize("write", [safetensors, torch_dict])
def test_weights_of_a_model_are_called_that(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, WEIGHTS)
    for read in (read_patterns, AttentionCache.load):
        with pytest.raises(
            ValueError, match=r"must hold attention, got weights of a model, such as .*; attncache\.capture\(model\)"
        ):
            read(path)
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(40))
    with pytest.raises(ValueError, match=r"a\.gguf: .* got weights of a model \(GGUF\), not attention"):
        AttentionCache.load(tmp_path / "a.gguf")


UNKNOWN = {
    "nothing": (b"", "an empty file"),
    "two bytes": (b"12", "one that begins with b'12'"),
    "zeros": (bytes(4096), "one that begins with b'\\x00"),
    "text": (b"some notes\n" * 100, "one that begins with b'some notes"),
    "JSON": (b'[1, 2, {"a": 3}]', "one that begins with b'[1, 2, {"),
    "indented JSON": (b'        {"a": 1}', "one that begins with b'        {"),
    "a PDF": (b"%PDF-1.4\n", "a PDF"),
}


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.pt", "a"])
@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_no_file_of_arrays_is_refused_by_every_reader_in_the_same_words(
    what: str, name: str, tmp_path: Path
) -> None:
    raw, words = UNKNOWN[what]
    path = tmp_path / name
    path.write_bytes(raw)
    said = set()
    for read in (AttentionCache.load, read_patterns, contents_of, verify):
        with pytest.raises(
            ValueError, match=re.escape(f"{path}: must be a cache of attncache or a file of arrays")
        ) as caught:
            read(path)
        assert type(caught.value) is ValueError
        said.add(str(caught.value))
    (message,) = said
    assert f"got {words}" in message


def test_ours_are_read_too_and_take_no_axes(tmp_path: Path) -> None:
    cache = AttentionCache.from_attentions(list(patterns()), tokens=list("abcdef"))
    cache.metadata = {"model": "none"}
    cache.save(tmp_path / "a.safetensors")
    with AttentionCache.create(tmp_path / "run") as run:
        run.push(patterns()[0])
    file = read_patterns(tmp_path / "a.safetensors")
    assert_layers(list(file.patterns), patterns())
    assert (file.tokens, file.metadata) == (tuple("abcdef"), {"model": "none"})
    assert_layers(list(read_patterns(tmp_path / "run").patterns), patterns()[:1])
    for path in (tmp_path / "a.safetensors", tmp_path / "run"):
        for option in ({"axes": "head query key"}, {"names": "a.{}"}):
            with pytest.raises(ValueError, match="must be None for a cache of attncache, which knows its layers"):
                read_patterns(path, **option)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="must be None for a cache"):
                AttentionCache.load(path, **option)  # type: ignore[arg-type]
    cache.push_qk(np.ones((1, 1, 2, 2), "f4"), np.ones((1, 1, 2, 2), "f4"))
    cache.save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="must have patterns to be read, got queries and keys in layer 4"):
        read_patterns(tmp_path / "a.safetensors")


def test_a_cache_among_the_files_of_a_folder_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "layer_0.npy", patterns()[0])
    AttentionCache().save(tmp_path / "layer_1.safetensors")
    with pytest.raises(ValueError, match=r"layer_1\.safetensors: must be a file by others where there are several"):
        AttentionCache.load(tmp_path)


def test_verify_compares_an_archive_and_refuses_what_has_no_checksums(tmp_path: Path) -> None:
    path = npz(tmp_path, {"a": patterns()})
    assert AttentionCache.load(path, verify=True).n_layers == LAYERS
    np.save(tmp_path / "a.npy", patterns())
    with pytest.raises(ValueError, match=r"a\.npy: verify must be False for a file without checksums, got a npy file"):
        AttentionCache.load(tmp_path / "a.npy", verify=True)


def test_an_hdf5_file_may_not_promise_more_than_it_holds_nor_lead_out_of_itself(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "outside").write_bytes(b"secret" * 100)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("layer_0", (1, 1, 1 << 15, 1 << 15), "f4", chunks=(1, 1, 64, 64))
    with pytest.raises(
        ValueError, match=r"a\.h5: layer_0 must be whole, .* of which the file holds less than a thousandth"
    ):
        AttentionCache.load(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        outside = [(str(tmp_path / "outside"), 0, 64)]
        file.create_dataset("layer_0", (1, 1, 4, 4), "f4", external=outside)
        file["layer_1"] = h5py.ExternalLink(str(tmp_path / "a.h5"), "layer_0")
    with pytest.raises(ValueError, match=r"b\.h5: must hold arrays of floats .*; got no array"):
        read_patterns(tmp_path / "b.h5")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_does_not_look_like_attention_is_one_warning(dtype: str, tmp_path: Path) -> None:
    path = npz(
        tmp_path, {f"a_{n}": (layer if n < 2 else 8 - 9 * layer).astype(dtype) for n, layer in enumerate(patterns())}
    )
    for read in (read_patterns, AttentionCache.load):
        with pytest.warns(PatternWarning, match=rf"^{path}: layer 2 does not look like attention weights") as caught:
            read(path)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(path, check=False)
