"""Each kind of file that others keep attention in: what is in it, what is refused, and what needs a package.

Covered: torch.save in both of its formats, every dtype and every nesting, generations; bfloat16 in NumPy's files; HDF5; zarr;
pickles, weights of models, folders and caches; what checksums say. Nothing is executed.
Sizes and values as in test_files_by_others.py, which has names and axes. Not covered: damaged files (test_archives.py,
test_fuzz_load.py), the commands (test_convert.py, test_info.py).
"""

from __future__ import annotations

import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attncache import AttentionCache
from attncache.files import read_patterns
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


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_what_torch_saves_is_read(legacy: bool, dtype: str, tmp_path: Path) -> None:
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
        torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
        found = read_alike(path) if dtype != "float64" else read_patterns(path).patterns
        assert [layer.dtype.name for layer in found] == [dtype] * LAYERS
        assert all(np.array_equal(mine.astype("f8"), theirs) for mine, theirs in zip(found, expected, strict=True))
    assert [file.state for file in verify(path)] == ["no checksums" if legacy else "whole"]


def test_the_steps_of_a_generation_become_one_pattern_per_layer(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    steps = [tuple(torch.rand(1, 2, *shape) for _ in range(3)) for shape in ((4, 4), (1, 5), (1, 6))]
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


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save([Bomb()], tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=r"a\.pt: the file must hold tensors, .*weights_only=True\), got: .*eights.only"
    ):
        read_patterns(tmp_path / "a.pt")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="got a pickle, which is never opened because it may run code"):
        read_patterns(tmp_path / "a.pkl")
    assert not (tmp_path / "exploded").exists()


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


@pytest.mark.parametrize(
    ("write", "module", "what"), [(torch_dict, "torch", "a file of torch.save"), (hdf5, "h5py", "an HDF5 file")]
)
def test_a_file_whose_reader_is_not_installed_says_so(
    write: Writer, module: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, {"a": patterns()})
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"a\.(pt|h5): {what} needs {module} to be read: pip install {module}"):
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


def test_a_folder_that_is_no_cache_says_what_it_must_be(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"must be a cache, which has manifest\.json, or hold a file of arrays per layer"
    ):
        AttentionCache.load(tmp_path)
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
