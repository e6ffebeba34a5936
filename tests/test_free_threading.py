"""Threads that ask, push, append, clear, build indexes and save at once; also the test to run on a free-threaded Python.

Sizes: layers [2, 3, 7, 8], some dozen of them, for a second and a half. Every answer must be, bit by bit, what a cache of
one thread answers about a layer that was pushed. Tolerance: none.
Not covered: layers so large that their queries use the pool (test_threads.py); races that no answer shows (the thread
sanitizer's job, on tests/cpp/stores_hold.cpp).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attncache import AttentionCache, LayerSource
from tests.support.calls import CASES
from tests.support.factored import normal
from tests.support.patterns import Array, Shape, make
from tests.support.processes import run_together

SHAPE: Shape = (2, 3, 7, 8)
SECONDS = 1.5
MORE = normal((2, 3, 1, 4), seed=8), normal((2, 1, 1, 4), seed=9)  # a position that append_qk adds
TOKENS = [None, [f"key {key}" for key in range(SHAPE[3])]]
JOBS = {*CASES, "push", "append", "forget", "describe", "look", "save"}
IS_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def push_dense(number: int, dtype: str) -> Callable[[AttentionCache], None]:
    pattern, source = make("soft", SHAPE, dtype, number), LayerSource(f"dense {number}", layer=number)
    return lambda cache: cache.push(pattern, source=source)


def push_factored(number: int) -> Callable[[AttentionCache], None]:
    query, key = normal((2, 3, 7, 4), seed=number), normal((2, 1, 8, 4), seed=number)
    source = LayerSource(f"factored {number}", layer=number)
    return lambda cache: cache.push_qk(query, key, source=source)


def longer(push: Callable[[AttentionCache], None]) -> Callable[[AttentionCache], None]:
    return lambda cache: (push(cache), cache.append_qk(0, *MORE))[0]


DENSE = [push_dense(number, dtype) for number, dtype in enumerate(("float32", "float16", "float32"))]
FACTORED = [push_factored(number) for number in range(2)]
PUSHES = DENSE + FACTORED


def quiet(push: Callable[[AttentionCache], None]) -> AttentionCache:
    """A cache of one layer for one thread."""
    cache = AttentionCache(index="off")
    push(cache)
    return cache


QUIET = [quiet(push) for push in [*PUSHES, *map(longer, FACTORED)]]
VIEWS = {(cache.sources[0].module, cache[0].tobytes()) for cache in QUIET if cache.sources[0]}  # source and pattern


def asks_of_one_layer(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[bool, Any, Any]:
    """Whether a query keeps the axis of its layers, and its arguments when it is asked of layer 0 alone."""
    if name in ("edges", "top_k"):
        keeps = not isinstance(options.get("layers"), int)
        return keeps, args, {**options, "layers": [0] if keeps else 0}
    keeps = not (args and isinstance(args[0], int))
    return keeps, ([0] if keeps else 0, *args[1:]), options


def of_each_layer(answer: Any, keeps: bool) -> list[Any]:
    """What an answer says of each layer, as something to compare and to hash."""
    if isinstance(answer, list):  # of top_attended_positions
        return [tuple(answer)]
    arrays: tuple[Array, ...] = answer if isinstance(answer, tuple) else (answer,)
    if not keeps:
        return [tuple(array.tobytes() for array in arrays)]
    return [tuple(array[layer].tobytes() for array in arrays) for layer in range(len(arrays[0]))]


def question(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Callable[[AttentionCache], None]:
    """Asks a cache, and compares what it says of each layer with what caches of one thread say of theirs."""
    keeps, args_alone, options_alone = asks_of_one_layer(name, args, options)
    right = {
        each for cache in QUIET for each in of_each_layer(getattr(cache, name)(*args_alone, **options_alone), keeps)
    }

    def ask(cache: AttentionCache) -> None:
        answer = of_each_layer(getattr(cache, name)(*args, **options), keeps)
        assert right.issuperset(answer), f"{name}{args}, {options}: no layer gives that"

    return ask


QUESTIONS = [(name, question(name, *call)) for name, cases in CASES.items() for call in cases(SHAPE)]


def is_due_to_others(error: Exception) -> bool:
    """Whether it says that a layer is not there, or that layers differ in shape, as between a clear and a push."""
    gone = ("out of range for n_layers=", "the cache has no layers", "by another thread")
    changed = ("must have one shape", "must be a factored one", "must be one string for each key")
    return any(words in str(error) for words in gone + changed)


def attempt(job: Callable[[random.Random], str], chance: random.Random) -> str:
    """What a job says it did, unless other threads came between."""
    try:
        return job(chance)
    except (IndexError, ValueError) as error:
        if is_due_to_others(error):
            return nothing()
        raise


def nothing() -> str:
    time.sleep(0.0001)  # so that others get on
    return "nothing"


def assert_sources_are_right(cache: AttentionCache) -> None:
    sources = [source and source.module for source in cache.sources]
    assert VIEWS.issuperset(zip(sources, [view.tobytes() for view in cache], strict=True))


class Crowd:
    """One cache that every thread uses, and what they do with it until their time is over."""

    def __init__(self, policy: Any, folder: Path) -> None:
        self.cache, self.folder = AttentionCache(index=policy), folder
        self.end = time.monotonic() + SECONDS
        self.done: set[str] = set()

    def each(self, job: Callable[[random.Random], str], seed: int) -> Callable[[], None]:
        """Does a job over and over, until the time is over and all kinds of jobs have been done."""

        def run() -> None:
            chance = random.Random(seed)
            while time.monotonic() < self.end or not self.done >= JOBS:
                self.done.add(attempt(job, chance))

        return run

    def ask(self, chance: random.Random) -> str:
        name, ask = chance.choice(QUESTIONS)
        ask(self.cache)
        return name

    def push(self, chance: random.Random) -> str:
        if self.cache.n_layers >= 12:
            return nothing()
        chance.choice(PUSHES)(self.cache)
        return "push"

    def append(self, chance: random.Random) -> str:
        """Appends to a layer that has not grown: only this thread makes layers grow."""
        number = chance.randrange(12)
        if self.cache.shapes[number : number + 1] != (SHAPE,):
            return nothing()
        self.cache.append_qk(number, *MORE)
        return "append"

    def forget(self, chance: random.Random) -> str:
        self.cache.drop_index()
        if chance.random() < 0.2:
            self.cache.clear()
        time.sleep(0.001)
        return "forget"

    def describe(self, chance: random.Random) -> str:
        self.cache.metadata = {"turn": chance.random()}
        self.cache.tokens = chance.choice(TOKENS)
        return "describe"

    def look(self, _: random.Random) -> str:
        """Every layer is whole, in all that shows layers."""
        patterns = {pattern for _, pattern in VIEWS}
        assert patterns.issuperset(view.tobytes() for view in self.cache)
        assert patterns.issuperset(view.tobytes() for view in self.cache.patterns)
        for copy in (self.cache.part(), self.cache.cpu()):
            assert_sources_are_right(copy)
        assert self.cache.index_nbytes % (8 * 7 * 8) == 0
        assert repr(self.cache).startswith("AttentionCache(")
        return "look"

    def save(self, chance: random.Random) -> str:
        path = self.folder / "saved.safetensors"
        self.cache.save(path, index=chance.random() < 0.5)
        assert_sources_are_right(AttentionCache.load(path, mmap=False))
        return "save"


@pytest.mark.parametrize("policy", ["off", "auto", "eager"])
def test_whatever_threads_do_at_once_every_answer_is_of_whole_layers(policy: str, tmp_path: Path) -> None:
    crowd = Crowd(policy, tmp_path)
    changes = [crowd.push, crowd.push, crowd.append, crowd.forget, crowd.describe]
    jobs = [*changes, crowd.ask, crowd.ask, crowd.ask, crowd.look, crowd.save]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        run_together(*(crowd.each(job, seed) for seed, job in enumerate(jobs)))
    finally:
        sys.setswitchinterval(before)


@pytest.mark.skipif(not IS_FREE_THREADED, reason="this Python has a GIL")
def test_importing_attncache_leaves_the_gil_off() -> None:
    code = "import sys, attncache; print(sys._is_gil_enabled())"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=clean, check=True
    )
    assert ran.stdout.strip() == "False"


if IS_FREE_THREADED:
    assert not sys._is_gil_enabled(), "these tests mean to run without the GIL, but another package switched it on"
