"""Captures one model of the matrix in both stores, and says what came out; __main__.py and tests/test_matrix.py call it."""

from __future__ import annotations

import importlib.metadata
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch

import attncache
from tests.matrix.entry import BATCH, Built, Entry
from tests.matrix.hand import computing_by_hand
from tests.sweep.comparing import Source, compared
from tests.sweep.oracle import Heard, listening_to
from tests.sweep.verdicts import line, tensors, verdict_of

SAME = 1e-5  # of an output's largest number: what another order of addition may change, over all layers


@dataclass
class Row:
    """One model, and what came of it; the verdicts are the sweep's."""

    library: str
    version: str
    name: str
    torch: str = ""  # its version
    verdict: str = ""
    reason: str = ""  # of anything but "right"
    layers: int = 0
    heard: dict[str, int] = field(default_factory=dict)  # layers by seam and kind
    worst: float = 0.0  # the largest difference of a weight from the truth, in either store
    by_hand: int = 0  # layers whose truth was computed by hand; of the others, at the seam
    changed: float = 0.0  # the largest difference of the output from that without a capture; 0: the same bits
    factored: int | None = None  # layers that store="qk" holds as queries and keys; None if it refused
    seconds: float = 0.0


class _Truth(NamedTuple):
    """What a forward gives without a capture."""

    output: list[Any]
    heard: list[Heard]
    doubts: list[str]


def judge(entry: Entry) -> Row:
    """Build a model, and compare what is captured of it with the truth, and its output with that without a capture."""
    began = time.perf_counter()
    row = Row(entry.library, importlib.metadata.version(entry.library), entry.name, torch.__version__)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        built = entry.build()
        truth = _truth(built, entry)
        row.verdict, row.reason = _outcome(row, entry, built, "pattern", truth)
        if row.verdict in {"right", "partly"}:
            verdict, reason = _outcome(row, entry, built, "qk", truth)
            if verdict in {"wrong", "silent"}:
                row.verdict, row.reason = verdict, f"store qk: {reason}"
    row.by_hand = sum(one.through == "hand" for one in truth.heard)
    row.seconds = round(time.perf_counter() - began, 1)
    return row


def _truth(built: Built, entry: Entry) -> _Truth:
    """Every attention of a forward: by hand where a module's formula is known, otherwise as it was heard at the seam."""
    model, call = built
    output = tensors(call())
    torch.compiler.set_stance("force_eager")
    try:
        with computing_by_hand(model) as by_hand, listening_to(model) as oracle:
            call()
    finally:
        torch.compiler.set_stance("default")
    known: dict[str, list[Heard]] = {}
    for one in by_hand:
        known.setdefault(one.module, []).append(one)
    heard = [known[one.module].pop(0) if known.get(one.module) else one for one in oracle.heard]
    missed = [f"the oracle missed {path}" for path, rest in known.items() if rest and path not in entry.unheard]
    return _Truth(output, heard, oracle.doubts + missed)


def _outcome(row: Row, entry: Entry, built: Built, store: Literal["pattern", "qk"], truth: _Truth) -> tuple[str, str]:
    """Capture a forward; the verdict, and the reason of anything but "right"."""
    model, call = built
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with attncache.capture(model, store, dtype="float32") as cache:
                output = tensors(call())
    except Exception as error:
        return "refused", line(error)
    sources: Sequence[Any] = cache.sources
    comparison = compared(cache, [Source(_path(source, model), source.call) for source in sources], truth.heard)
    row.worst = max(row.worst, comparison.worst)
    row.changed = max(row.changed, _difference(output, truth.output))
    if store == "pattern":
        row.layers, row.heard = len(sources), dict(Counter(map(_words, sources)))
    else:
        row.factored = sum(_is_factored(cache, number) for number in range(len(sources)))
    wrong = (*comparison.wrong, *_misplaced(cache, model, truth.heard))
    comparison = replace(comparison, wrong=wrong, absent=(*comparison.absent, *entry.unheard))
    words = " ".join(str(one.message) for one in told if one.category.__name__ == "CaptureWarning")
    verdict, reason = verdict_of(comparison, row.changed <= (SAME if entry.fused else 0), truth.doubts, words)
    return "partly" if verdict == "right" and reason else verdict, reason


def _difference(output: list[Any], plain: list[Any]) -> float:
    """The largest difference, as a part of the largest number; infinite where the outputs are of other shapes."""
    if [one.shape for one in output] != [one.shape for one in plain]:
        return float("inf")
    pairs = zip(output, plain, strict=True)
    return max((float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs), default=0.0)


def _misplaced(cache: Any, model: Any, heard: list[Heard]) -> list[str]:
    """Layers whose batch, heads and windows are not those of the truth; the sweep compares batch times heads alone."""
    axes: dict[str, set[tuple[int, ...]]] = {}
    for one in heard:
        if one.weights.dim() == 4:
            axes.setdefault(one.module, set()).add(tuple(one.weights.shape[:2]))
    wrong = []
    for number, source in enumerate(cache.sources):
        shape = cache.edges(None, None, layers=number, heads=None, batch=slice(None)).shape[:2]
        windows = shape[0] // BATCH if shape[0] > BATCH else None
        if shape not in axes.get(_path(source, model), {shape}):
            wrong.append(f"layer {number} ({source.module}) has batch and heads {list(shape)}")
        elif source.windows != windows:
            wrong.append(
                f"layer {number} ({source.module}) has windows={source.windows}, where {windows} were computed"
            )
    return wrong[:2]


def _is_factored(cache: Any, layer: int) -> bool:
    try:
        cache.get_queries(layer)
    except ValueError:
        return False
    return True


def _path(source: Any, model: Any) -> str:
    """The path of a module; the model itself, whose path is "", is called by its class."""
    return "" if source.module == type(model).__name__ else str(source.module)


def _words(source: Any) -> str:
    return " ".join(filter(None, (source.seam, source.kind, "in windows" if source.windows else "")))
