"""Asks caches everything amid a long call of the same thread; test_amid_calls.py runs it as a process of its own."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import attncache
from attncache import AttentionCache
from tests.support.calls import CASES, LARGE_CALLS, large, two_layers
from tests.support.patterns import Array, assert_same, cache_of
from tests.support.processes import run_together

SECONDS = 60  # after which a call that hangs ends the process
random = np.random.default_rng(1)
LONG = [random.standard_normal((1, 4, 4000, 64), dtype=np.float32) for _ in range(2)]
SHORT = [each[:, :, :300].copy() for each in LONG]
LARGE, SMALL = large(), two_layers("soft", (2, 3, 7, 8), "float32")  # a question about the first uses several threads


def long() -> AttentionCache:
    """A layer whose sums take a tenth of a second or more, and are not known."""
    cache = AttentionCache()
    cache.push_qk(*LONG, copy=False)
    return cache


def sums_of_long() -> Array:
    """The sums of a layer that is made so long first."""
    while True:
        begin = time.process_time()
        sums = long().lse(0)
        if time.process_time() - begin > 0.25:  # of two threads
            return sums
        LONG[:] = [np.concatenate([each, each[:, :, : each.shape[2] // 2]], axis=2) for each in LONG]


def factored() -> AttentionCache:
    cache = AttentionCache()
    cache.push_qk(*SHORT)
    return cache


def saved_and_loaded(index: bool) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cache.safetensors")
        both = cache_of([LARGE])
        both.push_qk(*SHORT)
        both.save(path, index=index)
        return AttentionCache.load(path, mmap=False).rows(0, 5), AttentionCache.load(path).rows(1, 5)


def created() -> Any:
    with tempfile.TemporaryDirectory() as folder, AttentionCache.create(folder) as cache:
        cache.push(LARGE)
        cache.push_qk(*SHORT)
        cache.append_qk(1, *SHORT)
        cache.metadata = {"n": 1}
        cache.compact()
        return cache.rows(0, 5), cache.lse(1)


def appended() -> Any:
    cache = factored()
    cache.append_qk(0, *SHORT)
    return cache.rows(0, -1)


def described() -> Any:
    cache = cache_of([LARGE[..., :3]], index="eager")
    cache.tokens, cache.metadata = ["a", "b", "c"], {"n": [1]}
    answers = cache.top_k(2, layers=0, positions=0), cache.nbytes, cache.kinds, len(cache), repr(cache)
    cache.drop_index()
    cache.clear()
    return answers, cache.is_empty


ASKS: dict[str, Callable[[], Any]] = {
    **{
        f"{name} of a large layer": lambda call=call: [call(each) for each in [cache_of([LARGE])] * 3]
        for name, call in LARGE_CALLS.items()
    },
    **{
        f"{name} of small layers": lambda name=name, calls=calls: [
            getattr(cache_of(SMALL), name)(*args, **options) for args, options in calls(SMALL[0].shape)
        ]
        for name, calls in CASES.items()
    },
    "views": lambda: [
        (cache.get_layer(0), cache.patterns, cache.cpu().patterns) for cache in (cache_of([LARGE]), cache_of(SMALL))
    ],
    "eager push": lambda: cache_of([LARGE], index="eager").head_mean(0),
    "push in another dtype": lambda: cache_of([LARGE.transpose(0, 1, 3, 2).astype(np.float64)])[0],
    "push_qk": lambda: factored().rows(0, 3),
    "append_qk": appended,
    "lse": lambda: factored().lse(0),
    "lse with progress": lambda: factored().lse(0, progress=lambda *_: None),
    "columns of a factored layer": lambda: factored().columns(0, 2),
    "top_k of a factored layer": lambda: factored().top_k(3, layers=0),
    "the pattern of a factored layer": lambda: factored()[0],
    "its queries and keys": lambda: (factored().get_queries(0), factored().get_keys(0)),
    "pattern_from_qk": lambda: attncache.pattern_from_qk(*SHORT),
    "save and load": lambda: saved_and_loaded(False),
    "save and load with index": lambda: saved_and_loaded(True),
    "create": created,
    "what describes it": described,
}


def ask_everything(expected: dict[str, Any]) -> None:
    for name, ask in ASKS.items():
        assert bits(ask()) == bits(expected[name]), name


def bits(answer: Any) -> Any:
    """An answer as something that is equal if it is the same to the bit."""
    if isinstance(answer, np.ndarray):
        return answer.shape, answer.tobytes()
    return [bits(each) for each in answer] if isinstance(answer, list | tuple) else answer


def ask_the_same(cache: AttentionCache, expected: Array) -> None:
    """What needs the sums that are just being made."""
    assert_same(cache.lse(0), expected)
    cache.columns(0, 3)
    cache.rows(0, 3)


class Garbage:
    """Garbage that lies until the collector finds it."""

    def __init__(self, finalise: Callable[[], None]) -> None:
        self.finalise, self.me = finalise, self

    def __del__(self) -> None:
        self.finalise()


def collect_soon(*_: int) -> Callable[[], None]:
    """Makes the collector run, not here but when the long call looks for signals next."""
    gc.set_threshold(1)
    gc.enable()
    return lambda: None  # a new object, and no bytecode after it that could run the collector


def asked_amid(way: str, ask: Callable[[AttentionCache], None], call: Callable[..., Any] = AttentionCache.lse) -> None:
    """Asks once amid the call on a layer without sums, which is made anew until it has come to that."""
    asked, failed = [], []
    gc.disable()

    def amid(cache: AttentionCache) -> None:
        if not asked and cache._layer(0).row_sums is None:
            asked.append(way)
            try:
                ask(cache)
            except BaseException as error:  # noqa: BLE001 (a finaliser may raise nothing)
                failed.append(error)

    while not asked:
        cache = long()

        def handle(_signal: int, _frame: FrameType | None, cache: AttentionCache = cache) -> None:
            amid(cache)

        if way == "handler":
            signal.signal(signal.SIGALRM, handle)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            call(cache, 0)
        elif way == "progress":
            cache.lse(0, progress=lambda _done, _total, cache=cache: amid(cache))
        else:
            Garbage(lambda cache=cache: amid(cache))  # type: ignore[misc]
            cache.lse(0, progress=collect_soon)
            gc.disable()
    if failed:
        raise failed[0]


def with_others(way: str, expected: dict[str, Any], sums: Array) -> None:
    """The thread that asks amid a call, beside threads that ask the same layer and others all the time."""
    shared: list[AttentionCache] = []
    ended = threading.Event()

    def other() -> None:
        while not ended.is_set():
            for cache in shared[-1:]:
                assert_same(cache.lse(0), sums)
            ask_everything(expected)

    def ask(cache: AttentionCache) -> None:
        shared.append(cache)
        ask_everything(expected)
        ask_the_same(cache, sums)
        ended.set()

    def main() -> None:
        asked_amid(way, ask)

    if way == "handler":  # of the main thread
        others = [threading.Thread(target=other, daemon=True) for _ in range(2)]
        for thread in others:
            thread.start()
        main()
        for thread in others:
            thread.join()
    else:
        run_together(main, other, other)


def crosswise(sums: Array) -> None:
    """Two threads that each ask, amid a pass, for the sums that the other makes."""
    both = threading.Barrier(2)
    caches = [long(), long()]

    def ask(mine: int) -> None:
        met: list[int] = []

        def progress(_done: int, _total: int) -> None:
            if not met:
                met.append(both.wait())
                assert_same(caches[1 - mine].lse(0), sums)

        assert_same(caches[mine].lse(0, progress=progress), sums)

    run_together(lambda: ask(0), lambda: ask(1))


def waits_for_another(sums: Array) -> None:
    """Progress waits for a thread that asks for the sums that are just being made."""
    asked_amid("progress", lambda cache: run_together(lambda: ask_the_same(cache, sums)))


def forks(expected: dict[str, Any], sums: Array) -> None:
    """A child that is forked amid a call asks everything, and what it was forked from ends with an answer or an error."""
    parent = os.getpid()
    asked: list[int] = []

    def progress(_done: int, _total: int) -> None:
        if not asked:
            asked.append(os.fork())
            if asked == [0]:
                signal.alarm(SECONDS)  # faulthandler's thread is not here
                ask_everything(expected)

    while not asked:
        cache = long()
        try:
            found = cache.lse(0, progress=progress)
        except RuntimeError as error:
            if os.getpid() == parent or "forks amid a call" not in str(error):
                raise
            found = cache.lse(0)
        assert_same(found, sums)
    if os.getpid() != parent:
        os._exit(0)
    assert os.waitpid(asked[0], 0)[1] == 0


def main(cases: list[str]) -> None:
    attncache.set_num_threads(2)
    sums = sums_of_long()
    expected = {name: ask() for name, ask in ASKS.items()}
    for case in cases:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        print(case, file=sys.stderr, flush=True)
        way, _, what = case.partition(" ")
        {
            "everything": lambda way=way: asked_amid(way, lambda _cache: ask_everything(expected)),
            "the same": lambda way=way: asked_amid(way, lambda cache: ask_the_same(cache, sums)),
            "columns": lambda way=way: asked_amid(way, lambda _: ask_everything(expected), AttentionCache.columns),
            "threads": lambda way=way: with_others(way, expected, sums),
            "crosswise": lambda: crosswise(sums),
            "waits": lambda: waits_for_another(sums),
            "forks": lambda: forks(expected, sums),
        }[what]()
    print("done")


main(sys.argv[1:])
