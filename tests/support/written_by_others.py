"""Attention as others write it, in every kind of file, and what both readers find in it; for the tests of files by others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.files import read_patterns
from tests.support.command_line import write_safetensors

Array = np.ndarray[Any, Any]
Writer = Callable[[Path, dict[str, Array]], Path]
LAYERS, HEADS, QUERIES, KEYS = 4, 3, 5, 6


def patterns(batch_size: int = 1, seed: int = 0) -> Array:
    """Softmax rows [layer, batch, head, query, key]."""
    random = np.random.default_rng(seed)
    return random.dirichlet(np.ones(KEYS), (LAYERS, batch_size, HEADS, QUERIES)).astype(np.float32)


def npz(path: Path, arrays: dict[str, Array]) -> Path:
    np.savez(path / "a.npz", **arrays)
    return path / "a.npz"


def safetensors(path: Path, arrays: dict[str, Array]) -> Path:
    return write_safetensors(path / "a.safetensors", {name: np.ascontiguousarray(a) for name, a in arrays.items()})


def torch_dict(path: Path, arrays: dict[str, Array]) -> Path:
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}, path / "a.pt")
    return path / "a.pt"


def hdf5(path: Path, arrays: dict[str, Array]) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path / "a.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path / "a.h5"


def folder(path: Path, arrays: dict[str, Array]) -> Path:
    (path / "folder").mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(path / "folder" / f"{name}.npy", array)
    (path / "folder" / "notes.txt").write_text("not an array")
    return path / "folder"


WRITERS = (npz, safetensors, torch_dict, hdf5, folder)
every_kind = pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)


def read_alike(path: Path, **options: Any) -> list[Array]:
    """What both readers find, which must be the same."""
    found = read_patterns(path, **options).patterns
    cache = AttentionCache.load(path, **options)
    assert [layer.tobytes() for layer in cache] == [np.ascontiguousarray(layer).tobytes() for layer in found]
    assert not any(layer.flags.writeable for layer in found)
    return list(found)


def assert_layers(found: Sequence[Array], expected: Array) -> None:
    assert [layer.shape for layer in found] == [layer.shape for layer in expected]
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
