"""The processes of ``tests.proofs.larger_than_memory`` that run under the limit: each plays one role and reports as JSON."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attncache import AttentionCache
from benchmarks.dense.world import SEED, Size, causal_softmax
from benchmarks.files.pages import resident

Array = npt.NDArray[Any]
RUN, ANSWERS, SAME_BYTES = "run", "answers.npz", "same.npy"
LAYER, POSITION = 40, 700  # of the first questions; modulo what there is


def layer_of(size: Size, layer: int) -> Array:
    """One layer, the same whenever it is made."""
    return causal_softmax(size, "float16", (SEED, layer), 1)


def hashed(mean: Array) -> Array:
    """The SHA-256 of a head mean, which is compared in place of its 4 MB."""
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(mean).tobytes()).digest(), np.uint8)


def segment(folder: Path) -> Path:
    """The one file of the compacted cache."""
    (file,) = (folder / RUN).glob("*.safetensors")
    return file


def status(field: str) -> int | None:
    """A size from what the system knows of this process."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def mapped_and_touched(file: Path) -> int | None:
    """Bytes of a file that this process has mapped and that are in its memory; None where the system does not tell."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        return None
    total, is_of_file = 0, False
    for line in smaps.read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and ":" not in first:  # the range of addresses that begins the next mapping
            is_of_file = rest.endswith(str(file))
        elif is_of_file and first == "Rss:":
            total += int(rest.split()[0]) * 1024
    return total


def write(folder: Path, size: Size) -> dict[str, Any]:
    """Push layer after layer to disk and make one file of them."""
    with AttentionCache.create(folder / RUN, index="off") as cache:
        for layer in range(size.layers):
            cache.push(layer_of(size, layer))
        cache.compact()
    return {}


def ask(folder: Path, size: Size) -> dict[str, Any]:
    """Map the file and ask; without an index, which would keep 8 bytes of memory for each pair of positions."""
    file, steps, answers = segment(folder), [], {}
    layer, position = LAYER % size.layers, POSITION % size.seq

    def step(what: str, action: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        answer = action()
        took = time.perf_counter() - start
        steps.append({"what": what, "seconds": took, "touched": mapped_and_touched(file), "resident": resident(file)})
        return answer

    cache = step("open", lambda: AttentionCache.load(file, index="off"))
    answers["first_row"] = step("one row of one layer", lambda: cache.attention_from_position(layer, position))
    answers["rows"] = step("one row of every layer", lambda: cache.rows(positions=position))
    found = step("ten heaviest keys of every row of every head of one layer", lambda: cache.top_k(10, layers=layer))
    answers["columns"] = step("one column of every layer", lambda: cache.columns(positions=position))
    means = step("the head mean of every layer", lambda: [hashed(cache.head_mean(each)) for each in range(size.layers)])
    answers["means"] = np.stack(means)
    np.savez(folder / ANSWERS, **answers, top_positions=found.positions, top_weights=found.weights)
    return {"steps": steps}


# Other ways to open the same bytes, by name.
CONTENDERS: dict[str, Callable[[Path], Any]] = {
    "attncache, load(mmap=False)": lambda folder: AttentionCache.load(segment(folder), mmap=False),
    "NumPy, np.load": lambda folder: np.load(folder / SAME_BYTES),
    "safetensors.numpy.load_file": lambda folder: importlib.import_module("safetensors.numpy").load_file(
        segment(folder)
    ),
}


def play(role: str, folder: Path, size: Size) -> dict[str, Any]:
    """Play a role; what it reports."""
    if role in CONTENDERS:
        CONTENDERS[role](folder)
        return {}
    return {"write": write, "ask": ask}[role](folder, size)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the role, and print what it reports with time and memory as the last line."""
    role, folder, size = sys.argv[1:] if arguments is None else arguments
    start = time.perf_counter()
    report = play(role, Path(folder), Size(**json.loads(size)))
    took = time.perf_counter() - start
    print(json.dumps(report | {"seconds": took, "peak": status("VmHWM"), "private": status("RssAnon")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
