"""Captures one model of the matrix in both stores, and says what came out; __main__.py and tests/test_matrix.py call it."""

from __future__ import annotations

import importlib.metadata
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

import attncache
from tests.matrix.entry import BATCH, Entry
from tests.matrix.hand import computing_by_hand
from tests.sweep.comparing import Comparison, Source, compared
from tests.sweep.oracle import Heard, listening_to
from tests.sweep.outputs import line, tensors

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
    worst: float = 0.0  # the largest difference of a weight from the truth
    by_hand: int = 0  # layers whose truth was computed by hand; of the others, at the seam
    changed: float = 0.0  # the largest difference of the output from that without a capture; 0: the same bits
    factored: int = 0  # layers that store="qk" holds as queries and keys
    seconds: float = 0.0


@dataclass
class _Captured:
    cache: Any
    output: list[Any]
    words: str  # the warnings


def judge(entry: Entry) -> Row:
    """Build a model, and compare what is captured of it with the truth, and its output with that without a capture."""
    began = time.perf_counter()
    row = Row(entry.library, importlib.metadata.version(entry.library), entry.name, torch.__version__)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        model, call = entry.build()
        plain = tensors(call())
        truth, row.by_hand, doubts = _truth(model, call, entry.unheard)
        try:
            captured = _capture(model, call, "pattern")
        except Exception as error:
            row.verdict, row.reason = "refused", line(error)
        else:
            _fill(row, captured.cache.sources)
            row.changed = _difference(captured.output, plain)
            row.verdict, row.reason = _verdict(row, entry, captured, truth, doubts)
            if row.verdict in {"right", "partly"}:
                _judge_factored(row, partial(_capture, model, call, "qk"), truth)
    row.seconds = round(time.perf_counter() - began, 1)
    return row


def _truth(model: Any, call: Any, unheard: tuple[str, ...]) -> tuple[list[Heard], int, list[str]]:
    """Every attention of a forward: by hand where a module's formula is known, otherwise as it was heard at the seam."""
    torch.compiler.set_stance("force_eager")
    try:
        with computing_by_hand(model) as by_hand, listening_to(model) as oracle:
            call()
    finally:
        torch.compiler.set_stance("default")
    known = {module: [one for one in by_hand if one.module == module] for module in {one.module for one in by_hand}}
    truth = [known[one.module].pop(0) if known.get(one.module) else one for one in oracle.heard]
    never = [f"{path} was not heard by the oracle" for path, rest in known.items() if rest and path not in unheard]
    return truth, sum(one.through == "hand" for one in truth), oracle.doubts + never


def _capture(model: Any, call: Any, store: Literal["pattern", "qk"]) -> _Captured:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with attncache.capture(model, store, dtype="float32") as cache:
            output = tensors(call())
    return _Captured(cache, output, " ".join(str(one.message) for one in told if "Capture" in one.category.__name__))


def _compared(cache: Any, truth: list[Heard]) -> Comparison:
    return compared(cache, [Source(_path(source.module), source.call) for source in cache.sources], truth)


def _path(module: str) -> str:
    return module.removeprefix("_orig_mod.")


def _fill(row: Row, sources: Any) -> None:
    row.layers = len(sources)
    words = ((source.seam, source.kind, "in windows" if source.windows else "") for source in sources)
    row.heard = dict(Counter(" ".join(filter(None, each)) for each in words))


def _difference(output: list[Any], plain: list[Any]) -> float:
    """The largest difference, as a part of the largest number; infinite where the outputs are of other shapes."""
    if [one.shape for one in output] != [one.shape for one in plain]:
        return float("inf")
    pairs = zip(output, plain, strict=True)
    return max((float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs), default=0.0)


def _verdict(row: Row, entry: Entry, captured: _Captured, truth: list[Heard], doubts: list[str]) -> tuple[str, str]:
    comparison = _compared(captured.cache, truth)
    row.worst = comparison.worst
    allowed = SAME if entry.fused else 0.0
    wrong = [*doubts[:1], *comparison.wrong[:3], *_misplaced(captured.cache, truth)]
    if not row.changed <= allowed:
        wrong.append(f"the output differs by {row.changed:.0e}")
    if wrong:
        return "wrong", "; ".join(wrong)
    left_out = [*comparison.absent, *entry.unheard]
    unnamed = [path for path in left_out if path not in captured.words]
    if unnamed:
        return "silent", f"no layer and no word of {', '.join(unnamed[:3])}"
    return ("partly", f"told that it leaves out {_few(left_out)}") if left_out else ("right", "")


def _misplaced(cache: Any, truth: list[Heard]) -> list[str]:
    """Layers whose batch, heads and windows are not those of the truth; the sweep compares batch times heads alone."""
    axes: dict[str, set[tuple[int, ...]]] = {}
    for one in truth:
        if one.weights.dim() == 4:
            axes.setdefault(one.module, set()).add(tuple(one.weights.shape[:2]))
    wrong = []
    for number, source in enumerate(cache.sources):
        shape = cache.edges(None, None, layers=number, heads=None, batch=slice(None)).shape[:2]
        if shape not in axes.get(_path(source.module), {shape}):
            wrong.append(f"layer {number} ({source.module}) has batch and heads {list(shape)}")
        windows = shape[0] // BATCH if shape[0] > BATCH else None
        if source.windows != windows:
            wrong.append(
                f"layer {number} ({source.module}) has windows={source.windows}, where {windows} were computed"
            )
    return wrong[:2]


def _few(paths: list[str]) -> str:
    return ", ".join(paths[:2]) + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")


def _judge_factored(row: Row, capture: Any, truth: list[Heard]) -> None:
    """The same in queries and keys; a layer that they cannot carry may be refused."""
    try:
        cache = capture().cache
    except Exception as error:
        row.reason = row.reason or f"store qk: {line(error)}"
        return
    comparison = _compared(cache, truth)
    row.worst = max(row.worst, comparison.worst)
    row.factored = sum(_is_factored(cache, number) for number in range(len(cache.sources)))
    if comparison.wrong:
        row.verdict, row.reason = "wrong", f"store qk: {'; '.join(comparison.wrong[:3])}"


def _is_factored(cache: Any, layer: int) -> bool:
    try:
        cache.get_queries(layer)
    except ValueError:
        return False
    return True
