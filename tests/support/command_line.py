"""What the tests of the command line share: ``attncache`` in a process of its own, and the files it is asked about."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attncache import AttentionCache
from tests.support.patterns import cache_of

Run = Callable[..., list[str]]


def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A process of its own, warnings as errors."""
    command = [sys.executable, "-W", "error", "-m", "attncache", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=120, **options)


def write_safetensors(path: Path, tensors: dict[str, np.ndarray[Any, Any]], **metadata: str) -> Path:
    """A safetensors file as others write it: no alignment, no checksums, in the order given."""
    names = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "bool": "BOOL"}
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, tensor in tensors.items():
        offsets = [at, at + tensor.nbytes]
        header[name] = {"dtype": names[tensor.dtype.name], "shape": tensor.shape, "data_offsets": offsets}
        at = offsets[1]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensor.tobytes() for tensor in tensors.values()))
    return path


def every_kind(
    folder: Path, patterns: Sequence[np.ndarray[Any, Any]], tokens: Sequence[str] | None = None
) -> dict[str, Path]:
    """The same patterns in every kind of file; .npy and safetensors by others have no tokens."""
    cache = cache_of(patterns)
    cache.tokens = tokens
    cache.save(folder / "run.safetensors")
    cache.save(folder / "indexed.safetensors", index=True)
    with AttentionCache.create(folder / "run") as stored:
        for pattern in patterns:
            stored.push(pattern)
        stored.tokens = tokens
    described = {} if tokens is None else {"tokens": np.array(tokens)}
    np.savez(folder / "a.npz", **{f"attentions.{n}": pattern for n, pattern in enumerate(patterns)}, **described)
    np.savez_compressed(folder / "b.npz", *patterns, **described)
    np.save(folder / "a.npy", np.array(patterns))
    write_safetensors(folder / "others.safetensors", {f"model.layers.{n}.attn": p for n, p in enumerate(patterns)})
    names = ("run.safetensors", "indexed.safetensors", "run", "a.npz", "b.npz", "a.npy", "others.safetensors")
    return {name: folder / name for name in names}


def flipped(path: Path, at: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1 << bit
    path.write_bytes(raw)
