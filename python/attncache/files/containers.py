"""What kind of file or folder of arrays is at a path, by its first bytes and not its name, and the arrays in it.

Kinds: safetensors (ours too), .npz, .npy, what ``torch.save`` wrote, HDF5, and folders of these. Nothing in a file is executed.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from attncache.files.arrays import (
    NamedArray,
    dtype_name,
    imported,
    npy_array,
    npz_arrays,
    read_only,
    tokens_and_metadata,
    undamaged,
)
from attncache.files.bytes import Bytes, mapped, opened, read, read_header
from attncache.files.errors import in_file
from attncache.files.safetensors import Header, Tensor, is_safetensors
from attncache.files.torch_archive import torch_arrays
from attncache.text import natural_order

Kind: TypeAlias = Literal["safetensors", "npz", "npy", "torch", "hdf5", "folder"]
WITH_CHECKSUMS = ("npz", "torch")  # those of zip archives
SUFFIXES = (".npz", ".npy", ".safetensors", ".pt", ".pth", ".bin", ".h5", ".hdf5")  # of what may hold arrays
_NUMPY: dict[str, tuple[str, Any]] = {
    "F16": ("float16", np.float16),
    "BF16": ("bfloat16", np.uint16),
    "F32": ("float32", np.float32),
    "F64": ("float64", np.float64),
}
_KINDS: dict[bytes, Kind] = {
    b"PK\x03\x04": "npz",
    b"PK\x05\x06": "npz",
    b"\x93NUMPY": "npy",
    b"\x89HDF\r\n\x1a\n": "hdf5",
}
_OTHERS = {
    b"GGUF": "weights of a model (GGUF), not attention",
    b"%PDF": "a PDF",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": (  # a number that torch.save began with before it wrote zip archives
        "a file of torch.save in its old format, a pickle, which is never opened because it may run code; "
        "torch.save(torch.load(path, weights_only=True), path) writes it anew"
    ),
    b"\x80": "a pickle, which is never opened because it may run code",
}
_READABLE = "safetensors, .npz, .npy, .pt of torch.save, HDF5, or a folder of these"
_ZARR = ("zarr.json", ".zgroup", ".zarray")


@dataclass(frozen=True)
class Container:
    """The arrays at one path, of which only headers are read.

    Attributes:
        path, kind: where, and what it is.
        arrays: in the order of the file; none of a file of ours, whose layers are known.
        n_files, size: how many files that are, and their bytes.
        tokens, metadata: what the file says about itself.
        safetensors: the checked header of a safetensors file, and its bytes.
    """

    path: Path
    kind: Kind
    arrays: list[NamedArray]
    n_files: int
    size: int
    tokens: tuple[str, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    safetensors: tuple[Header, Bytes] | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is a file that attncache wrote, or says so."""
        return self.safetensors is not None and "attncache" in self.safetensors[0].metadata


def open_container(path: Path, *, is_mapped: bool = True) -> Container:
    """The arrays at a path.

    Args:
        path: a file, or a folder of files.
        is_mapped: whether a safetensors file is mapped; otherwise it is read now.

    Raises:
        OSError: it cannot be read, or is a folder without files of arrays. ValueError: it is no file of arrays, or damaged.
        ImportError: its reader is not installed.
    """
    if path.is_dir():
        return joined(files_in(path), path)
    with opened(path) as fd:
        kind = _kind(fd, path)
        size = os.fstat(fd).st_size
        if kind == "safetensors":
            header, size = read_header(fd)
            whole = mapped(fd, size) if is_mapped else read(fd, size)
            found = Container(path, kind, [], 1, size, None, dict(header.metadata), (header, whole))
            if not found.is_ours:
                found.arrays.extend(_tensor(tensor, whole, path) for tensor in header.tensors.values())
            return found
    readers: dict[str, Callable[[Path], list[NamedArray]]] = {
        "npz": npz_arrays,
        "npy": lambda path: [npy_array(path)],
        "torch": lambda path: torch_arrays(path, is_mapped=is_mapped),
        "hdf5": _hdf5_arrays,
    }
    with in_file(path):
        arrays = readers[kind](path)
        described = tokens_and_metadata(arrays) if kind == "npz" else (None, {})
    return Container(path, kind, arrays, 1, size, *described)


def kind_of(path: Path) -> Kind:
    """What is at a path; a file of ours is safetensors here.

    Raises:
        OSError: it cannot be read. ValueError: it is none of these.
    """
    if path.is_dir():
        return "folder"
    with opened(path) as fd:
        return _kind(fd, path)


def files_in(folder: Path) -> list[Path]:
    """The files of a folder that may hold arrays, by their suffixes, in the natural order of their names.

    Raises:
        FileNotFoundError: there are none, as in a cache that is being created. OSError: it cannot be read. ValueError: it
            is a zarr store.
    """
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if not found:
        if any((folder / name).exists() for name in _ZARR):
            raise ValueError(
                f"{folder}: is a zarr store, which attncache does not open, because it may name code to be run; "
                "AttentionCache.from_attentions(zarr.open(path)[name] for name in names).save(target) takes it in"
            )
        raise FileNotFoundError(
            f"{folder}: must be a cache, which has manifest.json, or hold a file of arrays per layer, got a folder with "
            "neither; attncache.open_runs opens a folder of caches"
        )
    return sorted((path for path in found if path.is_file()), key=lambda path: natural_order(path.name))


def joined(files: Sequence[Path], path: Path) -> Container:
    """Several files as one container, whose arrays have the names of the files, and their own where a file has several.

    Raises:
        As ``open_container``; ValueError also if a file is a cache.
    """
    parts = [open_container(file) for file in files]
    ours = next((part for part in parts if part.is_ours), None)
    if ours is not None:
        raise ValueError(f"{ours.path}: must be a file by others where there are several, got a cache of attncache")
    arrays = []
    for part in parts:
        alone = len(part.arrays) == 1
        arrays += [replace(a, name=part.path.stem if alone else f"{part.path.stem}/{a.name}") for a in part.arrays]
    return Container(path, "folder", arrays, len(parts), sum(part.size for part in parts))


def _kind(fd: int, path: Path) -> Kind:
    """What an open file is, by its first bytes; it is then at its beginning.

    Raises:
        ValueError: it is nothing that is known.
    """
    beginning = os.read(fd, 64)
    os.lseek(fd, 0, os.SEEK_SET)
    kind = next((kind for magic, kind in _KINDS.items() if beginning.startswith(magic)), None)
    if kind is not None:
        return "torch" if kind == "npz" and _is_of_torch(path) else kind
    if is_safetensors(beginning):
        return "safetensors"
    begins = f"one that begins with {beginning[:16]!r}" if beginning else "an empty file"
    what = next((what for magic, what in _OTHERS.items() if beginning.startswith(magic)), begins)
    raise ValueError(f"must be a cache of attncache or a file of arrays ({_READABLE}), got {what}")


def _tensor(tensor: Tensor, whole: Bytes, path: Path) -> NamedArray:
    """A tensor of a safetensors file, over its bytes."""
    name, dtype = _NUMPY.get(tensor.dtype, (tensor.dtype, None))

    def items(key: Any) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = whole[tensor.begin : tensor.end].view(dtype)
        part: npt.NDArray[Any] = found.reshape(tensor.shape)[key]
        return part

    return NamedArray(tensor.name, name, tensor.shape, items, path)


def _hdf5_arrays(path: Path) -> list[NamedArray]:
    """The datasets of an HDF5 file, by their paths in it; links out of the file are not followed."""
    h5py = imported("h5py", f"{path}: an HDF5 file")
    found: list[NamedArray] = []

    def dataset(path_in_file: str | bytes, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual or item.shape is None:
            return
        name = path_in_file if isinstance(path_in_file, str) else path_in_file.decode(errors="backslashreplace")
        n_bytes = item.nbytes
        is_holey = n_bytes > 1 << 20 and item.id.get_storage_size() < n_bytes // 1000

        def items(key: Any) -> npt.NDArray[Any]:
            with undamaged(name, "must be whole, in HDF5's format"), h5py.File(path, "r") as again:
                if is_holey:
                    raise ValueError(f"{n_bytes} bytes of which the file holds less than a thousandth")
                return read_only(np.array(again[path_in_file][key]))

        found.append(NamedArray(name, dtype_name(item.dtype), tuple(item.shape), items, path))

    with undamaged("the file", "must be whole, in HDF5's format"), h5py.File(path, "r") as file:
        file.visititems(dataset)
    return found


def _is_of_torch(path: Path) -> bool:
    """Whether a zip archive is one that torch.save wrote."""
    with suppress(ValueError), undamaged("the file", "must be whole"), zipfile.ZipFile(path) as archive:
        return any(name == "data.pkl" or name.endswith("/data.pkl") for name in archive.namelist())
    return False
