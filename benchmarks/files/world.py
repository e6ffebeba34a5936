"""The caches that cases about files run on: the same layers in memory and in the files of every contender."""

from __future__ import annotations

import importlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from attncache import AttentionCache
from benchmarks.core.answers import same
from benchmarks.core.case import NUMPY, OURS, TORCH, Case, Way, World
from benchmarks.core.table import bytes_text
from benchmarks.core.timing import QUICK, Plan
from benchmarks.dense.contenders import fresh
from benchmarks.dense.world import DenseWorld, Size, causal_softmax
from benchmarks.files import contenders
from benchmarks.files.contenders import ARCHIVE, CP, FILES, FROM_FILE, SAFETENSORS
from benchmarks.files.pages import CAN_EVICT, evict, resident

WARM = Plan(sample=20e-3, budget=0.6, least=5, most=15)
ONE_BY_ONE, QUICK_ONE_BY_ONE = Plan(0, 2.0, 7, 21), Plan(0, 1e-3, 2, 2)
SPARE = 1.3  # of the bytes of a cache
SUFFICIENTLY_COLD = 0.01  # of the bytes: pages of the header may be in memory again before they are counted


class FolderWorld(World):
    """One float16 cache of some layers, and a folder ``kept`` with its files; gone when the world is closed."""

    dtype = "float16"

    def __init__(self, size: Size, parent: Path | None, *, quick: bool) -> None:
        self.size, self.plan = size, QUICK if quick else WARM
        self.one_by_one = QUICK_ONE_BY_ONE if quick else ONE_BY_ONE
        self.n_bytes = size.layers * size.weights * 2
        self.shape = f"{size.layers} x {size}, {bytes_text(self.n_bytes)}"
        self.without = frozenset(name for name, is_here in contenders.installed().items() if not is_here)
        self.torch = None if TORCH in self.without else importlib.import_module("torch")
        self._folder = folder_for(parent)
        self.folder = self._folder.__enter__()
        self.kept = self.folder / "kept"
        self.kept.mkdir()

    @property
    def names(self) -> dict[str, Any]:
        """What a contender's expression can refer to."""
        kept = {"kept": self.kept, "n_layers": self.size.layers}
        return {**vars(contenders), **kept, "source": self.kept / FILES[OURS], "np": np}

    def close(self) -> None:
        """Remove the folder."""
        self._folder.__exit__(None, None, None)


class FilesWorld(FolderWorld):
    """The files of every contender; ``fresh`` is a folder that is empty before a contender writes."""

    def __init__(self, size: Size, threads: int, parent: Path | None, *, quick: bool) -> None:
        super().__init__(size, parent, quick=quick)
        self.world = DenseWorld(size, "float16", threads, self.plan)
        self.fresh = self.folder / "fresh"
        self.fresh.mkdir()
        contenders.save_ours(self.world.cache, self.kept)
        contenders.save_numpy(self.world.patterns, self.kept)
        contenders.save_archive(self.world.patterns, self.kept)
        if SAFETENSORS not in self.without:
            contenders.save_safetensors(self.world.patterns, self.kept)
        if self.world.tensors is not None and TORCH not in self.without:
            contenders.save_torch(self.world.tensors, self.kept)
        os.sync()

    @property
    def names(self) -> dict[str, Any]:
        """What a contender's expression can refer to."""
        world = self.world
        return {**super().names, "cache": world.cache, "patterns": world.patterns, "tensors": world.tensors}

    def ways(self, case: Case) -> Iterable[Way]:
        """Calls that leave the world as it is take turns in batches, the others one by one; cold ones only if that can be."""
        codes = self.runnable(case)
        if case.before is FilesWorld.cool and not self.can_cool:
            codes = {}
        yield Way("", codes, self.plan if case.before is None else self.one_by_one)

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
        if contender == CP:
            return (folder / FILES[OURS]).read_bytes() == (self.kept / FILES[OURS]).read_bytes()
        if contender != OURS:
            return self.holds(READERS[contender](folder, self.size.layers))
        if not self.holds(contenders.load_ours(folder, mmap=True, verify=True)[:]):
            return False
        by_others = partial(contenders.load_safetensors, folder, self.size.layers, FILES[OURS])
        return SAFETENSORS in self.without or self.holds(by_others())

    def is_pushed(self, contender: str, folder: Path) -> bool:
        """Whether a folder has all layers, written one by one."""
        if contender == CP:
            return self.is_saved(contender, folder)
        if contender == OURS:
            return self.holds(AttentionCache.load(folder / "run", verify=True)[:])
        return self.holds([READERS[contender](folder / str(layer), 1)[0] for layer in range(self.size.layers)])

    def is_loaded(self, contender: str, answer: Any) -> bool:
        """Whether this is all that the kept files hold."""
        if contender == FROM_FILE:
            return bool(answer.tobytes() == (self.kept / FILES[OURS]).read_bytes())
        return self.holds(answer[:])


READERS: dict[str, Callable[[Path, int], list[Any]]] = {
    NUMPY: contenders.load_numpy,
    ARCHIVE: contenders.load_archive,
    SAFETENSORS: contenders.load_safetensors,
    TORCH: partial(contenders.load_torch, mmap=False),
}


class OpeningWorld(FolderWorld):
    """Files of one pattern again and again; safetensors opens ours, and NumPy's files are one under many names."""

    def __init__(self, size: Size, parent: Path | None, *, quick: bool) -> None:
        super().__init__(size, parent, quick=quick)
        self.pattern = causal_softmax(size, "float16", [size.seq], 1)
        fresh([self.pattern] * size.layers, "off").save(self.kept / FILES[OURS])
        contenders.save_numpy([self.pattern], self.kept)
        for layer in range(1, size.layers):
            os.link(contenders.numpy_file(self.kept, 0), contenders.numpy_file(self.kept, layer))
        if self.torch is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # nobody writes into these tensors
                views = [self.torch.from_numpy(layer) for layer in AttentionCache.load(self.kept / FILES[OURS])]
            contenders.save_torch(views, self.kept)  # of mappings, so that the cache need not fit into memory

    def is_opened(self, contender: str, answer: Any) -> bool:
        """Whether all layers are there and the last one is right; of safetensors there are only names."""
        n_layers = self.size.layers
        if contender == SAFETENSORS:
            return sorted(answer) == sorted(map(contenders.name_of, range(n_layers)))
        return len(answer) == n_layers and same(np.asarray(answer[n_layers - 1]), self.pattern)


@contextmanager
def folder_for(parent: Path | None) -> Iterator[Path]:
    """A new folder that is gone afterwards, with whatever is in it."""
    with TemporaryDirectory(prefix="attncache-benchmark-", dir=parent) as name:
        yield Path(name)
