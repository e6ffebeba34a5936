"""What inputs are made from: whole caches of every form, as the bytes of their files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np

from attncache import AttentionCache, LayerSource

Files: TypeAlias = dict[str, bytes]  # by name; a directory has several


def dense(dtype: str = "float16") -> AttentionCache:
    """Two dense layers with tokens and metadata."""
    random = np.random.default_rng(1)
    cache = AttentionCache(dtype=dtype)
    for heads in (2, 3):
        cache.push(random.random((2, heads, 3, 5), np.float32), check=False)
    cache.tokens = [["a", "b", "c", "d", "e"], ["f", "g", "h", "i", "j"]]
    cache.metadata = {"prompt": "the cat", "numbers": [1, 2.5, None, True, {"a": -1}]}
    return cache


def factored() -> AttentionCache:
    """A factored layer of each form, and a dense one."""
    random = np.random.default_rng(2)
    query, key = (
        random.normal(size=(1, 4, 3, 4)).astype(np.float32),
        random.normal(size=(1, 2, 5, 4)).astype(np.float32),
    )
    cache = AttentionCache()
    cache.push_qk(query, key, lse=random.random((1, 4, 3)).astype(np.float32))
    cache.push_qk(query, key, key_mask=[[1, 1, 0, 1, 1]], sinks=np.ones(4, np.float32), window=3, softcap=2.0)
    cache.push_qk(query.astype(np.float16), key.astype(np.float16), causal=False, scale=0.7)
    source = LayerSource("decoder.layers.1", layer=1, heads=(0, 1, 2, 5), kind="cross", stack="decoder", call=1)
    cache.push(random.random((1, 4, 3, 5), np.float32), source=source, check=False)
    cache.lse(1)
    cache.tokens = list("abcde")
    return cache


def foreign() -> bytes:
    """A file by somebody else."""
    data = np.arange(8, dtype=np.float32).tobytes()
    entry = {"dtype": "F32", "shape": [1, 1, 2, 4], "data_offsets": [0, 32]}
    text = json.dumps({"__metadata__": {"format": "pt"}, "layers.0.pattern": entry}).encode()
    return len(text).to_bytes(8, "little") + text + data


def bases(folder: Path) -> Iterator[Files]:
    """Each base; the folder is for their making."""
    made = (("dense", dense(), False), ("bfloat16", dense("bfloat16"), True), ("factored", factored(), True))
    for name, cache, index in made:
        cache.save(folder / name, index=index)
        yield {"cache.safetensors": (folder / name).read_bytes()}
    yield {"cache.safetensors": foreign()}
    with AttentionCache.create(folder / "run") as run:
        run.push(np.ones((1, 1, 2, 2), np.float32), check=False)
        run.push_qk(np.ones((1, 1, 2, 2), np.float32), np.ones((1, 1, 2, 2), np.float32))
        run.tokens = ["a", "b"]
        run.metadata = {"n": 1}
        other = AttentionCache()
        other.push(np.zeros((1, 1, 2, 2), np.float32))
        run._take(other._layer(0), None, 0)
    yield {path.name: path.read_bytes() for path in sorted((folder / "run").iterdir()) if path.name != "lock"}
