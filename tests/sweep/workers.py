"""Judges model types in processes of their own, so that none can stop the others; __main__.py uses it.

They are forked from one that has imported torch and transformers.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

MEMORY = 7 << 30  # bytes of address space: a type that is not small after all fails alone
START = 90.0  # seconds more, for the imports that a first type waits for

Record = dict[str, Any]


def judge_all(types: list[str], jobs: int, seconds: float, done: Callable[[Record], None]) -> list[Record]:
    """Judge every type, in at most ``seconds`` each; ``done`` gets each record as it comes, from any thread."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.sweep.judging"])

    def judged(name: str) -> Record:
        broken: Record = {
            "model_type": name,
            "model": "",
            "level": "",
            "inputs": [],
            "outcomes": [],
            "seconds": seconds,
        }
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(name, theirs))
        process.start()
        theirs.close()
        try:
            record: Record = (
                ours.recv()
                if ours.poll(seconds + START * (name in types[:jobs]))
                else {**broken, "reason": f"it took more than {seconds:.0f} seconds"}
            )
        except EOFError:
            process.join()
            record = {**broken, "reason": f"its process ended ({process.exitcode})"}
        process.kill()
        process.join()
        done(record)
        return record

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(judged, types))


def _work(name: str, answer: Connection) -> None:
    """Judge one type in a process of its own, silently."""
    import torch
    import transformers

    from tests.sweep.judging import Judged, judge

    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    try:
        judged = judge(name)
    except Exception as error:
        judged = Judged(name, reason=f"the sweep itself failed: {type(error).__name__}: {error}")
    answer.send(asdict(judged))
    sys.exit()
