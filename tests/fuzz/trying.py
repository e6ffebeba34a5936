"""Loads an input in every way and asks whatever was loaded; anything but a cache or an honest refusal is a finding."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from attncache import AttentionCache, PatternWarning
from tests.fuzz.mutations import Case

WAYS = tuple((mmap, verify) for mmap in (True, False) for verify in (True, False))
REFUSALS = (ValueError, OSError, MemoryError)
_MOST = 1 << 22  # weights of an answer that is asked for

_FORBIDDEN = frozenset(
    ["exec", "import", "compile", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"]
)

_watched: list[str] = []
_seen: list[str] = []


def watch() -> None:
    """From here on notice what Python does that no reader of data may do, while an input is tried."""
    sys.addaudithook(_audit)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    if event in _FORBIDDEN or event.startswith(("pickle.", "ctypes.", "marshal.")):
        _seen.append(f"{event} {str(arguments)[:200]}")
    if event == "open" and not str(arguments[0]).startswith(_watched[0]):
        _seen.append(f"open {arguments[0]}")


def try_case(case: Case, folder: Path) -> tuple[Counter[str], list[str]]:
    """Put an input into an empty folder and load it.

    Returns:
        How often it was loaded and how often refused, by the kind of the exception; and the findings.
    """
    for name, raw in case.files.items():
        (folder / name).write_bytes(raw)
    path = folder if "manifest.json" in case.files else folder / "cache.safetensors"
    outcomes: Counter[str] = Counter()
    findings = []
    for mmap, verify in WAYS:
        way = f"mmap={mmap}, verify={verify}"
        _watched.append(str(folder))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PatternWarning)  # of many inputs, and rightly
                cache = AttentionCache.load(path, mmap=mmap, verify=verify)
            outcomes["loaded"] += 1
            _ask(cache)
        except REFUSALS as error:
            outcomes[type(error).__name__] += 1
            if len(str(error)) > 2000:
                findings.append(f"{way}: a message of {len(str(error))} characters")
        except Exception:
            findings.append(f"{way}: {traceback.format_exc()[-3000:]}")
        finally:
            _watched.clear()
        findings += [f"{way}: {each}" for each in _seen]
        _seen.clear()
    for name in case.files:
        (folder / name).unlink()
    return outcomes, findings


def _ask(cache: AttentionCache) -> None:
    """Ask a cache that was loaded. It must answer: no exception here is a refusal.

    Raises:
        AssertionError: it does not.
    """
    try:
        repr(cache), cache.tokens, dict(cache.metadata), cache.nbytes
        for layer, (batch, heads, seq_q, seq_k) in enumerate(cache.shapes):
            if not batch * heads * seq_q * seq_k or batch * heads * (seq_q + seq_k) > _MOST:
                continue
            cache.rows(layer, -1, batch=-1)
            cache.columns(layer, 0, batch=0)
            cache.rows(layer, 0, heads="mean", batch=0)
            cache.top_k(2, layers=layer, heads="mean", batch=0)
    except Exception as error:
        raise AssertionError("a cache that was loaded does not answer") from error
