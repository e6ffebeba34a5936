"""The fuzz of ``load`` with two thousand inputs, always the same; ``python -m tests.fuzz`` runs it for long.

Covered: mutations of bytes, headers, shapes, tensors' names, inner JSON, data and manifests, each with and without right
checksums; every way of loading; a query of what was loaded; memory, hangs, crashes, and what Python's audit hooks see of
code, imports and other files. Also that the fuzz itself sees a crash, a hang, a wrong exception and an answer that fails.
Not covered: inputs that no mutation of ours makes.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attncache import AttentionCache
from tests.fuzz import campaign, trying

MADE_FROM = campaign.all_bases()


def test_two_thousand_inputs_are_loaded_or_refused() -> None:
    outcome = campaign.run(range(2000), MADE_FROM)
    assert outcome.findings == []
    assert outcome.inputs == 2000
    assert outcome.ways["loaded"] > 250
    assert outcome.ways["DamagedFileError"] > 1000
    assert outcome.ways.keys() <= {
        "loaded",
        "DamagedFileError",
        "ValueError",
        "MemoryError",
        "OSError",
        "FileNotFoundError",
    }


class Silent(AttentionCache):
    """A cache that was loaded and does not answer."""

    def rows(self, *_: Any, **__: Any) -> Any:
        raise ValueError("the pattern is gone")


def silent(_: Any) -> AttentionCache:
    cache = Silent()
    cache.push([[[[1.0]]]])
    return cache


KEPT: list[bytes] = []


def growing(_: Any) -> AttentionCache:
    KEPT.append(b"x" * (20 << 20))
    raise ValueError("a refusal that costs 20 MiB")


DEFECTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a wrong exception": (lambda _: {}["missing"], "KeyError"),
    "a crash": (lambda _: os.kill(os.getpid(), signal.SIGKILL), "input 0: the process ended with -9"),
    "a hang": (lambda _: time.sleep(5), "input 0: the process hung"),
    "executed code": (lambda _: eval("1 + 1"), "exec"),
    "another file": (lambda _: Path("/etc/hostname").read_bytes(), "open /etc/hostname"),
    "no answer": (silent, "a cache that was loaded does not answer"),
    "memory that grows": (growing, "the process has grown"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_the_fuzz_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    defect, words = DEFECTS[name]
    monkeypatch.setattr(trying.AttentionCache, "load", lambda path, **_: defect(path))
    monkeypatch.setattr(campaign, "HANGS_AFTER", 0.5 if name == "a hang" else 20.0)
    monkeypatch.setattr(campaign, "MOST_MEMORY", 64 << 20)
    assert words in "\n".join(campaign.run(range(3), MADE_FROM[:1]).findings)
