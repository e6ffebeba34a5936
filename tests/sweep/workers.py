"""Judges model types in processes of their own, so that none can stop the others; __main__.py uses it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
TYPES_OF_A_PROCESS = 50  # then a fresh one: classes and memory pile up
START = 90.0  # seconds more for the first type, which waits for imports

Record = dict[str, Any]


def judge_all(types: list[str], jobs: int, seconds: float, done: Callable[[Record], None]) -> list[Record]:
    """Judge every type.

    Args:
        types: model types.
        jobs: how many processes work at once.
        seconds: how long one type may take.
        done: called with each record as it comes, from any thread.

    Returns:
        A record for each type, as ``Judged.as_json`` gives it, in the order of ``types``.
    """
    waiting: SimpleQueue[str] = SimpleQueue()
    for name in types:
        waiting.put(name)
    records: dict[str, Record] = {}

    def work() -> None:
        while not waiting.empty():
            for record in _one_process(waiting, seconds):
                records[record["model_type"]] = record
                done(record)

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [records[name] for name in types]


def _one_process(waiting: SimpleQueue[str], seconds: float) -> Iterator[Record]:
    """Judge types until there are none, the process has had its share, or one breaks it."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.sweep.worker"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            for number in range(TYPES_OF_A_PROCESS):
                name = waiting.get_nowait()
                record = _ask(process, name, seconds + START * (number == 0))
                yield record
                if record.get("broke"):
                    break
        except Empty:
            pass
        finally:
            process.kill()


def _ask(process: subprocess.Popen[str], name: str, seconds: float) -> Record:
    assert process.stdin is not None
    assert process.stdout is not None
    broken: Record = {"model_type": name, "model": "", "level": "", "inputs": [], "outcomes": [], "seconds": seconds}
    try:
        process.stdin.write(f"{name}\n")
        process.stdin.flush()
    except OSError:
        return broken | {"reason": "its process ended", "broke": True}
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    if not ready:
        return broken | {"reason": f"it took more than {seconds:.0f} seconds", "broke": True}
    line = process.stdout.readline()
    if not line:
        return broken | {"reason": f"its process ended ({process.wait()})", "broke": True}
    answer: Record = json.loads(line)
    return answer
