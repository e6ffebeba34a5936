"""Times the three questions against the NumPy that a good user would write: the end of ``attncache demo``.

The answers of both are compared first. Then they take turns, round by round, so that whatever else the machine does
disturbs both; every round asks at new random layers and positions, so that neither finds its bytes in a processor
cache because the other has just read them. A number is the median round.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

import attncache
from attncache import AttentionCache
from attncache.text import paragraph, table

Pattern = npt.NDArray[Any]
Place = tuple[int, int]
Ask = Callable[[int, int], Any]

K = 5
QUESTIONS_PER_ROUND = 64
ROUNDS = 15
SEED = 20260815
LARGE = (4, 1, 32, 1024, 1024)  # 268 MB of float16: more than most processor caches hold


@dataclass(frozen=True)
class Question:
    """One question, put to NumPy and to the cache."""

    name: str
    numpy: Ask
    cache: Ask
    same: Callable[[Any, Any], bool]


@dataclass(frozen=True)
class Timing:
    """Seconds per question: the median round of each side, and the cache's very first answer about a layer."""

    question: str
    numpy: float
    first: float
    cache: float


def compare(patterns: Sequence[Pattern]) -> list[Timing]:
    """Check and time every question on these patterns.

    Raises:
        RuntimeError: an answer of the cache differs from NumPy's.
    """
    rng = np.random.default_rng(SEED)

    def draw() -> list[Place]:
        layers = rng.integers(len(patterns), size=QUESTIONS_PER_ROUND).tolist()
        positions = rng.integers(patterns[0].shape[-1], size=QUESTIONS_PER_ROUND).tolist()
        return list(zip(layers, positions, strict=True))

    return [compare_one(question(patterns, filled(patterns)), draw) for question in (rows, columns, tops)]


def compare_one(question: Question, draw: Callable[[], list[Place]]) -> Timing:
    """One question, to a cache that nobody has asked anything yet."""
    a_place_per_layer = dict(draw()).items()
    first = median(seconds(question.cache, [place]) for place in a_place_per_layer)
    for layer, position in draw():
        if not question.same(question.cache(layer, position), question.numpy(layer, position)):
            raise RuntimeError(f"{question.name} must equal NumPy's answer, got another at {layer=}, {position=}")
    rounds = [(seconds(question.numpy, draw()), seconds(question.cache, draw())) for _ in range(ROUNDS)]
    return Timing(
        question=question.name,
        numpy=median(numpy for numpy, _ in rounds) / QUESTIONS_PER_ROUND,
        first=first,
        cache=median(cache for _, cache in rounds) / QUESTIONS_PER_ROUND,
    )


def rows(patterns: Sequence[Pattern], cache: AttentionCache) -> Question:
    """What does a position attend to?"""

    def with_numpy(layer: int, position: int) -> Any:
        return patterns[layer][0, :, position].mean(0, dtype=np.float32)

    return Question("attention_from_position", with_numpy, cache.attention_from_position, np.array_equal)


def columns(patterns: Sequence[Pattern], cache: AttentionCache) -> Question:
    """Who attends to a position?"""

    def with_numpy(layer: int, position: int) -> Any:
        return patterns[layer][0, :, :, position].mean(0, dtype=np.float32)

    return Question("attention_to_position", with_numpy, cache.attention_to_position, np.array_equal)


def tops(patterns: Sequence[Pattern], cache: AttentionCache) -> Question:
    """Which keys does a position attend to most?"""
    k = min(K, patterns[0].shape[3])

    def with_numpy(layer: int, position: int) -> Any:
        weights = patterns[layer][0, :, position].mean(0, dtype=np.float32)
        heaviest = np.argpartition(weights, -k)[-k:]
        heaviest = heaviest[np.argsort(-weights[heaviest], kind="stable")]
        return list(zip(heaviest.tolist(), weights[heaviest].tolist(), strict=True))

    def with_cache(layer: int, position: int) -> Any:
        return cache.top_attended_positions(layer, position, k)

    return Question(f"top_attended_positions, k={k}", with_numpy, with_cache, same_weights)


def same_weights(ours: list[tuple[int, float]], theirs: list[tuple[int, float]]) -> bool:
    """Whether two top-k lists agree; of equal weights NumPy may pick any, so there positions do not count."""
    if [weight for _, weight in ours] != [weight for _, weight in theirs]:
        return False
    weights = [weight for _, weight in ours]
    certain = [weight for weight in weights[:-1] if weights.count(weight) == 1]
    return all(mine == other for mine, other in zip(ours, theirs, strict=True) if mine[1] in certain)


def seconds(ask: Ask, places: Sequence[Place]) -> float:
    """How long it takes to ask this at all these places."""
    start = perf_counter()
    for layer, position in places:
        ask(layer, position)
    return perf_counter() - start


def filled(patterns: Sequence[Pattern]) -> AttentionCache:
    """A fresh cache of these patterns."""
    cache = AttentionCache()
    for pattern in patterns:
        cache.push(pattern)
    return cache


def synthetic(shape: tuple[int, int, int, int, int] = LARGE) -> list[Pattern]:
    """Causal rows that sum to one, float16, read-only: [batch, head, query, key] for each layer."""
    rng = np.random.default_rng(SEED)
    n_layers, *pattern_shape = shape
    visible = np.tri(*pattern_shape[2:], dtype=np.float32)
    patterns = []
    for _ in range(n_layers):
        pattern = np.empty(pattern_shape, np.float16)
        for batch, head in np.ndindex(*pattern_shape[:2]):
            weights = rng.standard_exponential(visible.shape, np.float32) * visible
            pattern[batch, head] = weights / weights.sum(axis=-1, keepdims=True)
        pattern.flags.writeable = False
        patterns.append(pattern)
    return patterns


def report(sample: Sequence[Pattern]) -> list[str]:
    """Both comparisons as lines to print."""
    lines = ["", "── How long does one question take? ".ljust(100, "─")]
    lines += ["", *described("The sample", sample), "", *timing_table(compare(sample))]
    large = synthetic()
    lines += ["", *described("Made up", large)]
    lines += ["", *timing_table(compare(large)), ""]
    return lines + paragraph(
        f"Mean over heads, one batch item, random layers and positions. The answers of both were compared first "
        f"and are equal. Median of {ROUNDS} interleaved rounds of {QUESTIONS_PER_ROUND} questions, each including "
        f"the Python call; 'first' is the cache's very first answer about a layer. Level {attncache.simd.active()}, "
        f"threads {attncache.get_num_threads()}, NumPy {np.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}.",
        "   ",
    )


def described(name: str, patterns: Sequence[Pattern]) -> list[str]:
    """What was measured on."""
    _, n_heads, seq_q, seq_k = patterns[0].shape
    megabytes = sum(pattern.nbytes for pattern in patterns) / 1e6
    shape = f"{len(patterns)} layers x {n_heads} heads x {seq_q} x {seq_k}"
    return [f"   {name}: {shape} {patterns[0].dtype}, {megabytes:.1f} MB"]


def timing_table(timings: Sequence[Timing]) -> list[str]:
    """One line per question, in microseconds."""
    header = ["µs per question", "NumPy", "attncache, first", "attncache", "NumPy / attncache"]
    rows = [
        [
            timing.question,
            *map(microseconds, (timing.numpy, timing.first, timing.cache)),
            f"{timing.numpy / timing.cache:.1f}x",
        ]
        for timing in timings
    ]
    return table(header, rows)


def microseconds(value: float) -> str:
    """Seconds as microseconds, two decimals."""
    return f"{value * 1e6:.2f}"
