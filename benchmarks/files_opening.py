"""How long it takes to open a file against how large it is: it should not matter."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attncache import AttentionCache
from benchmarks import files_contenders as contenders
from benchmarks import timing
from benchmarks.answers import WrongAnswerError, same
from benchmarks.contenders import fresh
from benchmarks.drawing import bytes_text
from benchmarks.files_contenders import FILES, NUMPY, OURS, SAFETENSORS, TORCH
from benchmarks.files_world import folder_for
from benchmarks.table import MISSING, aligned, timing_text
from benchmarks.timing import Timing
from benchmarks.worlds import Size, causal_softmax

LAYERS, QUICK_LAYERS = 30, 3
FULL_SEQS, QUICK_SEQS = (118, 373, 833, 1667), (8, 16)  # 12 heads of float16: 10 MB, 100 MB, 500 MB, 2 GB
PLAN = timing.Plan(sample=20e-3, budget=0.6, least=5, most=15)
CONTENDERS = (OURS, NUMPY, SAFETENSORS, TORCH)


@dataclass(frozen=True)
class Opened:
    """What opening a file of so many bytes took."""

    layers: int
    n_bytes: int
    timings: dict[str, Timing]


def opened_by_size(parent: Path | None, *, quick: bool) -> list[Opened]:
    """The times of all sizes, the files in the page cache; the space of two files of the largest is needed.

    The layers of a cache are one pattern again and again.

    Raises:
        WrongAnswerError: a contender opened something else than what was written.
    """
    layers, seqs = (QUICK_LAYERS, QUICK_SEQS) if quick else (LAYERS, FULL_SEQS)
    found = []
    for seq in seqs:
        print(f"opening {layers} layers of 12 x {seq}", file=sys.stderr)
        pattern = causal_softmax(Size(12, seq, layers), "float16", [seq], 1)
        with folder_for(parent) as folder:
            found.append(opened(pattern, layers, folder, timing.QUICK if quick else PLAN))
    return found


def opened(pattern: Any, layers: int, folder: Path, plan: timing.Plan) -> Opened:
    """Write the files, check what each contender finds in the last layer, and time it."""
    write(pattern, layers, folder)
    openers: dict[str, Callable[[], Any]] = {
        OURS: partial(contenders.load_ours, folder, mmap=True),
        NUMPY: partial(contenders.load_numpy, folder, layers, "r"),
        SAFETENSORS: partial(contenders.open_safetensors, folder, FILES[OURS]),
        TORCH: partial(contenders.load_torch, folder, layers, mmap=True),
    }
    without = {name for name, is_here in contenders.installed().items() if not is_here}
    openers = {name: opener for name, opener in openers.items() if name not in without}
    for name, opener in openers.items():
        if not is_right(name, opener(), layers, pattern):
            raise WrongAnswerError(f"{name} opens something else than was written")
    sweeps = {name: partial(repeated, opener) for name, opener in openers.items()}
    return Opened(layers, layers * pattern.nbytes, timing.interleaved(sweeps, [()], plan))


def is_right(contender: str, answer: Any, layers: int, pattern: Any) -> bool:
    """Whether all layers are there and the last one is right; of safetensors there are only names."""
    if contender == SAFETENSORS:
        return sorted(answer) == sorted(map(contenders.name_of, range(layers)))
    return len(answer) == layers and same(np.asarray(answer[layers - 1]), pattern)


def repeated(opener: Any, calls: timing.Calls) -> None:
    """Open once for each call."""
    for _ in calls:
        opener()


def write(pattern: Any, layers: int, folder: Path) -> None:
    """The files of every contender; safetensors opens ours, and NumPy's files are one under many names."""
    fresh([pattern] * layers, "off").save(folder / FILES[OURS])
    contenders.save_numpy([pattern], folder)
    for layer in range(1, layers):
        os.link(contenders.numpy_file(folder, 0), contenders.numpy_file(folder, layer))
    if contenders.installed()[TORCH]:
        torch = importlib.import_module("torch")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nobody writes into these tensors
            views = [torch.from_numpy(layer) for layer in AttentionCache.load(folder / FILES[OURS])]
        contenders.save_torch(views, folder)  # of mappings, so that the cache need not fit into memory


def opening_text(found: Sequence[Opened], *, markdown: bool) -> str:
    """The table."""
    rows = [["file", *CONTENDERS]]
    for each in found:
        texts = [timing_text(each.timings[name]) if name in each.timings else MISSING for name in CONTENDERS]
        rows.append([f"{each.layers} layers, {bytes_text(each.n_bytes)}", *texts])
    title = "## open, against the size of the file" if markdown else "OPEN, AGAINST THE SIZE OF THE FILE"
    about = "All layers, nothing read but headers; the files are in the page cache."
    return "\n\n".join([title, about, aligned(rows, markdown=markdown)])
