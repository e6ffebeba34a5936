"""The write paths under test: each a few steps from one state of a folder to the next."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attncache import AttentionCache
from tests.faults.states import State, read

NAME = "cache.safetensors"
DIRECTORY = "run"
LARGE = (1, 3, 50, 50)  # several pages


class Session:
    """One process's work on a folder: the steps leave here what the next ones need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache: Any = None

    @property
    def file(self) -> Path:
        return self.folder / NAME

    @property
    def directory(self) -> Path:
        return self.folder / DIRECTORY


Step = Callable[[Session], None]


class WritePath(NamedTuple):
    """A way of writing: what is there before, the steps, and where a reader looks."""

    name: str
    prepare: Step
    steps: Sequence[Step]
    target: str
    opens: bool = False  # whether the first step opens a writer that the others need

    def read(self, folder: Path) -> State:
        """What a reader of the folder finds."""
        return read(folder / self.target)

    def run(self, session: Session, begin: int = 0) -> None:
        """The steps from ``begin`` on, by a process that starts there."""
        if self.opens and begin > 0:
            self.steps[0](session)
        for step in self.steps[begin:]:
            step(session)

    def open_next(self, folder: Path) -> None:
        """What the next writer or reader does first, and what must clean up: open it."""
        if self.opens:
            session = Session(folder)
            self.steps[0](session)
            session.cache.close()
        else:
            self.read(folder)


def litter_of(folder: Path) -> list[str]:
    """What lies in a folder and is neither a cache nor a part of one."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    named = {folder / NAME}
    for manifest in folder.rglob("manifest.json"):
        with suppress(ValueError, KeyError, OSError):  # a damaged manifest: its readers are judged elsewhere
            segments = json.loads(manifest.read_bytes())["segments"]
            named |= {manifest, manifest.parent / "lock", *(manifest.parent / segment["file"] for segment in segments)}
    return sorted(str(path.relative_to(folder)) for path in found if path not in named)


def pattern(seed: int, shape: tuple[int, ...] = (1, 2, 5, 7), dtype: str = "float32") -> npt.NDArray[Any]:
    """A pattern of its own for each seed."""
    return np.random.default_rng(seed).random(shape, np.float32).astype(dtype)


def push_factored(cache: AttentionCache, seed: int) -> None:
    """Push a factored layer with everything that may be stored beside it."""
    query, key = pattern(seed, (1, 2, 5, 4)) - 0.5, pattern(seed + 1, (1, 1, 7, 4)) - 0.5
    mask = np.array([[True] * 6 + [False]])
    if seed % 2:
        cache.push_qk(query, key, window=3, softcap=2.0, key_mask=mask, sinks=np.array([0.5, -1.0], np.float32))
    else:
        cache.push_qk(query, key, scale=0.7, causal=False, lse=pattern(seed + 2, (1, 2, 5)))


def made(seed: int) -> AttentionCache:
    """A cache in memory with dense and factored layers, tokens and metadata."""
    cache = AttentionCache()
    cache.push(pattern(seed, dtype="float16"), check=False)
    push_factored(cache, seed)
    push_factored(cache, seed + 1)
    cache.tokens = [f"t{seed}.{position}" for position in range(7)]
    cache.push(pattern(seed + 1, LARGE), check=False)
    cache.metadata = {"prompt": f"number {seed}", "nested": {"is": [1, 2.5, None, True]}}
    return cache


def _nothing(session: Session) -> None:
    """There is nothing before."""


def _save(seed: int, **options: Any) -> Step:
    return lambda session: made(seed).save(session.file, **options)


def _create(session: Session) -> None:
    session.cache = AttentionCache.create(session.directory)


def _on_cache(change: Callable[[Any], object]) -> Step:
    """A change of the cache that is open."""

    def step(session: Session) -> None:
        change(session.cache)

    return step


def _push(seed: int, shape: tuple[int, ...] = (1, 2, 5, 7)) -> Step:
    return _on_cache(lambda cache: cache.push(pattern(seed, shape), check=False))


def _push_factored(seed: int) -> Step:
    return _on_cache(lambda cache: push_factored(cache, seed))


def _replace_second(cache: Any) -> None:
    replacement = AttentionCache()
    replacement.push(pattern(77), check=False)
    cache._take(replacement._layer(0), None, 1)


_set_tokens = _on_cache(lambda cache: setattr(cache, "tokens", [f"token {position}" for position in range(7)]))
_set_metadata = _on_cache(lambda cache: setattr(cache, "metadata", {"prompt": "the cat sat", "seed": 7}))
_close = _on_cache(lambda cache: cache.close())
_clear = _on_cache(lambda cache: cache.clear())
_compact = _on_cache(lambda cache: cache.compact())
_replace = _on_cache(_replace_second)


def _directory_of_five(session: Session) -> None:
    pushes = (_push(1), _push_factored(2), _push_factored(3), _push(4), _set_tokens, _push(5, LARGE))
    for step in (_create, *pushes, _close):
        step(session)


SAVES = (
    WritePath("save over a file", _save(1), [_save(2)], NAME),
    WritePath("save over a file, with an index", _save(1), [_save(2, index=True)], NAME),
    WritePath("save to a new name", _nothing, [_save(2)], NAME),
)
DIRECTORY_STEPS: dict[str, tuple[Step, Sequence[Step]]] = {
    "create and push": (
        _nothing,
        [_push(1), _push_factored(2), _push_factored(3), _set_tokens, _set_metadata, _push(4, LARGE)],
    ),
    "open again and push": (_directory_of_five, [_push(6, LARGE), _push_factored(8), _set_metadata]),
    "replace a layer": (_directory_of_five, [_replace]),
    "compact": (_directory_of_five, [_compact, _push(6), _compact]),
    "clear": (_directory_of_five, [_clear, _push(6)]),
}
DIRECTORIES = tuple(
    WritePath(name, prepare, [_create, *steps, _close], DIRECTORY, opens=True)
    for name, (prepare, steps) in DIRECTORY_STEPS.items()
)
ALL = SAVES + DIRECTORIES


def states(path: WritePath, folder: Path) -> list[State]:
    """The states that a write path goes through when nothing goes wrong: before its first step and after each."""
    session = Session(folder)
    path.prepare(session)
    found = [path.read(folder)]
    session = Session(folder)
    for step in path.steps:
        step(session)
        found.append(path.read(folder))
    return found
