"""What a careful user would write to keep patterns in files: with NumPy, safetensors, torch, and ``cp``.

Each library writes the layers of one cache in the way it is meant to: NumPy a file for each layer or one archive, the others
one file. ``synced`` puts any of them onto the disk, which none of them does by itself.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from attncache import AttentionCache
from benchmarks.core.case import NUMPY, OURS, TORCH
from benchmarks.core.machine import torch_or_none
from benchmarks.dense.contenders import mean_of_heads, torch_mean_of_heads

Array = npt.NDArray[Any]
ARCHIVE, SAFETENSORS, CP = f"{NUMPY}, .npz", "safetensors", "cp"
OURS_VERIFIED, FROM_FILE = f"{OURS}, mapped and verified", "np.fromfile"
FILES = {OURS: "ours.safetensors", ARCHIVE: "layers.npz", SAFETENSORS: "theirs.safetensors", TORCH: "layers.pt"}


def name_of(layer: int) -> str:
    """What every format calls a layer."""
    return f"layers.{layer}.pattern"


def installed() -> dict[str, bool]:
    """Which contenders can be measured here, by name."""
    try:
        importlib.import_module("safetensors.numpy")
        has_safetensors = True
    except ImportError:
        has_safetensors = False
    return {
        SAFETENSORS: has_safetensors,
        TORCH: torch_or_none() is not None,
        CP: os.name == "posix" and shutil.which("cp") is not None,
    }


# Writing into an empty folder


def save_ours(stored: AttentionCache, folder: Path) -> None:
    """The cache in one file, on the disk."""
    stored.save(folder / FILES[OURS])


def save_ours_without_sync(stored: AttentionCache, folder: Path) -> None:
    """The same without the disk, neither begun nor waited for, which attncache itself never leaves out."""
    with mock.patch.object(os, "fsync"), mock.patch.object(os, "posix_fadvise", create=True):
        stored.save(folder / FILES[OURS])


def numpy_file(folder: Path, layer: int) -> Path:
    """NumPy's file of one layer."""
    return folder / f"{name_of(layer)}.npy"


def save_numpy(patterns: Sequence[Array], folder: Path) -> None:
    """One .npy file for each layer."""
    for layer, pattern in enumerate(patterns):
        np.save(numpy_file(folder, layer), pattern)


def by_name(layers: Sequence[Any]) -> dict[str, Any]:
    """The layers as the formats with names want them."""
    return {name_of(layer): pattern for layer, pattern in enumerate(layers)}


def save_archive(patterns: Sequence[Array], folder: Path) -> None:
    """One uncompressed .npz archive."""
    np.savez(folder / FILES[ARCHIVE], **by_name(patterns))


def save_safetensors(patterns: Sequence[Array], folder: Path) -> None:
    """One safetensors file by the stock library."""
    importlib.import_module("safetensors.numpy").save_file(by_name(patterns), folder / FILES[SAFETENSORS])


def save_torch(tensors: Sequence[Any], folder: Path) -> None:
    """One file of torch's."""
    importlib.import_module("torch").save(by_name(tensors), folder / FILES[TORCH])


def copy_file(source: Path, folder: Path) -> None:
    """What ``cp`` does: a process that copies a file, whose data is in memory, block by block."""
    subprocess.run([*cp_command(), source, folder / source.name], check=True)


@cache
def cp_command() -> list[str]:
    """``cp`` told to copy the data, where it could share the blocks of the old file instead."""
    shares = b"--reflink" in subprocess.run(["cp", "--help"], capture_output=True, check=False).stdout
    return ["cp", "--reflink=never"] if shares else ["cp"]


def sync_file(path: Path) -> None:
    """Wait until a file or a folder is on the disk, as ``sync FILE`` does."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def synced(_written: object, folder: Path) -> None:
    """Wait until the files of a folder, and their names, are on the disk."""
    for file in folder.iterdir():
        sync_file(file)
    sync_file(folder)


def pushed_to_disk(patterns: Sequence[Array], folder: Path) -> None:
    """Layer by layer into a cache on disk, as while a model runs."""
    with AttentionCache.create(folder / "run", index="off") as run:
        for pattern in patterns:
            run.push(pattern)


def each_synced(save: Callable[[Sequence[Any], Path], object], layers: Sequence[Any], folder: Path) -> None:
    """Layer by layer, each on the disk before the next, in a folder of its own."""
    for layer, pattern in enumerate(layers):
        own = folder / str(layer)
        own.mkdir()
        synced(save([pattern], own), own)
        sync_file(folder)


# Reading whole layers


def load_ours(folder: Path, *, mmap: bool, verify: bool = False) -> AttentionCache:
    """The cache, mapped or in memory."""
    return AttentionCache.load(folder / FILES[OURS], mmap, verify=verify)


def load_numpy(folder: Path, n_layers: int, mmap_mode: Any = None) -> list[Array]:
    """The layers' files, read or mapped."""
    return [np.load(numpy_file(folder, layer), mmap_mode) for layer in range(n_layers)]


def load_archive(folder: Path, n_layers: int) -> list[Array]:
    """All layers of the archive; zipfile compares their checksums."""
    with np.load(folder / FILES[ARCHIVE]) as archive:
        return [archive[name_of(layer)] for layer in range(n_layers)]


def load_safetensors(folder: Path, n_layers: int, name: str = FILES[SAFETENSORS]) -> list[Array]:
    """All layers by the stock library."""
    found = importlib.import_module("safetensors.numpy").load_file(folder / name)
    return [found[name_of(layer)] for layer in range(n_layers)]


def load_torch(folder: Path, n_layers: int, *, mmap: bool) -> list[Any]:
    """All layers as tensors, read or mapped; nothing but tensors is unpickled."""
    found = importlib.import_module("torch").load(folder / FILES[TORCH], mmap=mmap, weights_only=True)
    return [found[name_of(layer)] for layer in range(n_layers)]


def open_safetensors(folder: Path, name: str = FILES[SAFETENSORS]) -> list[str]:
    """Open a file by the stock library without reading a layer; the names in it."""
    with importlib.import_module("safetensors").safe_open(folder / name, "np") as file:
        return [name for name in file.keys() if name.startswith("layers.")]  # noqa: SIM118 (it is no mapping)


# Opening to answer one question: the float32 mean over heads of one query's weights


def ask_ours(folder: Path, layer: int, position: int) -> Array:
    """Of a file that is opened for it."""
    return load_ours(folder, mmap=True).attention_from_position(layer, position)


def ask_numpy(folder: Path, layer: int, position: int) -> Array:
    """Of the one layer's file, mapped."""
    return mean_of_heads(np.load(numpy_file(folder, layer), "r")[0, :, position])


def ask_archive(folder: Path, layer: int, position: int) -> Array:
    """Of the one layer, which has to be read whole."""
    with np.load(folder / FILES[ARCHIVE]) as archive:
        return mean_of_heads(archive[name_of(layer)][0, :, position])


def ask_safetensors(folder: Path, layer: int, position: int) -> Array:
    """Of a slice, which reads only what is asked for."""
    with importlib.import_module("safetensors").safe_open(folder / FILES[SAFETENSORS], "np") as file:
        return mean_of_heads(file.get_slice(name_of(layer))[0, :, position])


def ask_torch(folder: Path, layer: int, position: int) -> Any:
    """Of the mapped file."""
    found = importlib.import_module("torch").load(folder / FILES[TORCH], mmap=True, weights_only=True)
    return torch_mean_of_heads(found[name_of(layer)][0, :, position])
