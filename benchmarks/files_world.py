"""The cache that cases about files run on: the same layers in memory and in the files of every contender."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from attncache import AttentionCache, reference
from benchmarks import files_contenders as contenders
from benchmarks.answers import Expected, is_right, same
from benchmarks.files_contenders import ARCHIVE, CP, FILES, FROM_FILE, NUMPY, OURS, SAFETENSORS, TORCH
from benchmarks.pages import CAN_EVICT, evict, resident
from benchmarks.worlds import Size, World

SPARE = 1.3  # of the bytes of a cache
SUFFICIENTLY_COLD = 0.01  # of the bytes: pages of the header may be in memory again before they are counted


class FilesWorld:
    """One float16 cache, and a folder: ``kept`` has its files, ``fresh`` is empty before a contender writes."""

    def __init__(self, size: Size, threads: int, folder: Path) -> None:
        self.size = size
        self.world = World(size, "float16", threads)
        self.kept, self.fresh = folder / "kept", folder / "fresh"
        self.kept.mkdir()
        self.fresh.mkdir()
        self.without = {name for name, is_here in contenders.installed().items() if not is_here}
        patterns, tensors = self.world.patterns, self.world.tensors
        contenders.save_ours(self.world.cache, self.kept)
        contenders.save_numpy(patterns, self.kept)
        contenders.save_archive(patterns, self.kept)
        if SAFETENSORS not in self.without:
            contenders.save_safetensors(patterns, self.kept)
        if tensors is not None:
            contenders.save_torch(tensors, self.kept)
        os.sync()

    @property
    def n_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(pattern.nbytes for pattern in self.world.patterns)

    @property
    def names(self) -> dict[str, Any]:
        """What a contender's expression can refer to."""
        return {
            **vars(contenders),
            "cache": self.world.cache,
            "patterns": self.world.patterns,
            "tensors": self.world.tensors,
            "n_layers": self.size.layers,
            "kept": self.kept,
            "source": self.kept / FILES[OURS],
            "np": np,
        }

    def draw(self) -> tuple[int, int]:
        """A random layer and position."""
        return int(self.world.rng.integers(self.size.layers)), int(self.world.rng.integers(self.size.seq))

    def empty_fresh(self) -> None:
        """Empty the folder that contenders write to, and wait until the disk has nothing more to do."""
        shutil.rmtree(self.fresh)
        self.fresh.mkdir()
        os.sync()
        self.have_memory()

    def cool(self) -> None:
        """Get all kept files out of memory."""
        evict(self.kept.iterdir())
        self.have_memory()

    def have_memory(self) -> None:
        """Touch as much free memory as a call will need: a virtual machine that gave it back to its host gets it again
        page by page, which took four times as long as the writing itself where this was written."""
        np.ones(int(SPARE * self.n_bytes), np.uint8)

    @property
    def can_cool(self) -> bool:
        """Whether the kept files can be got out of memory, which a file system in memory does not allow."""
        if not CAN_EVICT:
            return False
        self.cool()
        left = [resident(file) for file in self.kept.iterdir()]
        return all(found is not None and found <= SUFFICIENTLY_COLD * self.n_bytes for found in left)

    def holds(self, layers: Sequence[Any]) -> bool:
        """Whether these are the layers, bit for bit."""
        patterns = self.world.patterns
        return len(layers) == len(patterns) and all(
            same(np.asarray(found), right) for found, right in zip(layers, patterns, strict=True)
        )

    def is_saved(self, contender: str, folder: Path) -> bool:
        """Whether a folder has all layers as this contender writes them, read back; ours also by the stock reader."""
        n_layers = self.size.layers
        if contender == CP:
            return (folder / FILES[OURS]).read_bytes() == (self.kept / FILES[OURS]).read_bytes()
        if contender == NUMPY:
            return self.holds(contenders.load_numpy(folder, n_layers))
        if contender == ARCHIVE:
            return self.holds(contenders.load_archive(folder, n_layers))
        if contender == SAFETENSORS:
            return self.holds(contenders.load_safetensors(folder, n_layers))
        if contender == TORCH:
            return self.holds(contenders.load_torch(folder, n_layers, mmap=False))
        if not self.holds(contenders.load_ours(folder, mmap=True, verify=True)[:]):
            return False
        return SAFETENSORS in self.without or self.holds(contenders.load_safetensors(folder, n_layers, FILES[OURS]))

    def is_pushed(self, contender: str, folder: Path) -> bool:
        """Whether a folder has all layers, written one by one."""
        if contender == CP:
            return self.is_saved(contender, folder)
        if contender == OURS:
            return self.holds(AttentionCache.load(folder / "run", verify=True)[:])
        readers: dict[str, Callable[..., list[Any]]] = {
            NUMPY: contenders.load_numpy,
            SAFETENSORS: contenders.load_safetensors,
            TORCH: partial(contenders.load_torch, mmap=False),
        }
        read_one = readers[contender]
        return self.holds([read_one(folder / str(layer), 1)[0] for layer in range(self.size.layers)])

    def is_loaded(self, contender: str, answer: Any) -> bool:
        """Whether this is all that the kept files hold."""
        if contender == FROM_FILE:
            return bool(answer.tobytes() == (self.kept / FILES[OURS]).read_bytes())
        return self.holds(answer[:])

    def is_answer(self, contender: str, answer: Any, layer: int, position: int) -> bool:
        """Whether this is the head mean of one query's weights: ours bit for bit."""
        right = Expected(reference.attention_from_position(self.world.queries(layer, [position]), 0, 0))
        return is_right(answer, right, exact=contender.startswith(OURS), heads=self.size.heads)


@contextmanager
def folder_for(parent: Path | None) -> Iterator[Path]:
    """A new folder that is gone afterwards, with whatever is in it."""
    with TemporaryDirectory(prefix="attncache-benchmark-", dir=parent) as name:
        yield Path(name)
