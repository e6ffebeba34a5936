"""The fault matrix on one small write path, and that it finds what it is there to find.

Covered: that every fault is reached and that the matrix passes on ``save``, and on ``create`` that is killed; that planted
defects (a file written in place, one not flushed before its rename, a folder not flushed, litter that stays, an error that
is swallowed) are each found by the faults that must find them. Not covered: the other write paths, which
``python -m tests.faults`` tries.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the fault matrix is for Linux", allow_module_level=True)

import attncache
from attncache.files import atomic
from tests.faults import matrix, power_loss, short_writes, strace
from tests.faults.matrix import ERRORS, KILL, Row
from tests.faults.write_paths import DIRECTORIES, NAME, SAVES, WritePath, made

if not strace.works():
    pytest.skip("strace is missing or may not trace here", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
OVER = SAVES[0]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = attncache.get_num_threads()
    attncache.set_num_threads(1)
    yield
    attncache.set_num_threads(threads)


def failures(path: WritePath, work: Path, rows: Callable[[matrix.Bench, list], list[Row]]) -> str:
    """What some rows of the matrix find wrong with a write path."""
    bench = matrix.prepared(path, work)
    found = rows(bench, matrix.listed(bench, work / "list"))
    assert sum(row.points for row in found) > 0
    return "\n".join(failure for row in found for failure in row.failures)


def kills(bench: matrix.Bench, calls: list) -> list[Row]:
    return list(matrix.injected(bench, calls, bench.folder.parent / "log", [KILL]))


def power(bench: matrix.Bench, calls: list) -> list[Row]:
    return [power_loss.row(bench, calls)]


def shortened(bench: matrix.Bench, calls: list) -> list[Row]:
    return list(short_writes.rows(bench, [1]))


def failing(name: str) -> Callable[[matrix.Bench, list], list[Row]]:
    """All errors at all calls of one name."""

    def rows(bench: matrix.Bench, calls: list) -> list[Row]:
        chosen = [call for call in calls if call.name == name]
        assert chosen, f"no {name} among the calls"
        return list(matrix.injected(bench, chosen, bench.folder.parent / "log", ERRORS))

    return rows


@functools.cache
def good() -> bytes:
    """The file that the planted ways of writing write."""
    with tempfile.TemporaryDirectory() as folder:
        made(2).save(Path(folder, NAME))
        return Path(folder, NAME).read_bytes()


def saving(save: Callable[[bytes, Path], None]) -> WritePath:
    """``save`` over a file, by another way of writing."""
    raw = good()
    return OVER._replace(name="planted", steps=[lambda session: save(raw, session.file)])


def in_place(raw: bytes, path: Path) -> None:
    path.write_bytes(raw)


def unflushed(raw: bytes, path: Path) -> None:
    hidden = atomic.hidden_name(path)
    hidden.write_bytes(raw)
    hidden.replace(path)
    atomic.flush_folder(path.parent)


def folder_unflushed(raw: bytes, path: Path) -> None:
    with atomic.hidden_name(path).open("wb") as stream:
        stream.write(raw)
        stream.flush()
        os.fsync(stream.fileno())
    atomic.hidden_name(path).replace(path)


def littering(raw: bytes, path: Path) -> None:
    unflushed(raw, path.with_name("other.tmp"))
    path.with_name("other.tmp").replace(path)


def swallowing(raw: bytes, path: Path) -> None:
    hidden = atomic.hidden_name(path)
    try:
        hidden.write_bytes(raw)
        hidden.replace(path)
    except OSError:
        hidden.unlink(missing_ok=True)


def once(raw: bytes, path: Path) -> None:
    """One write, however much of it the system does."""
    with atomic.replacing(path) as fd:
        os.pwrite(fd, raw, 0)


@pytest.mark.parametrize(
    ("save", "rows", "words"),
    [
        (in_place, kills, "a reader fails"),
        (in_place, failing("write"), "after the error"),
        (unflushed, power, "a reader fails"),
        (folder_unflushed, power, "a reader finds neither state 1 nor the next, but [0]"),
        (littering, kills, "after the next open there lies other.tmp"),
        (swallowing, failing("rename"), "a reader finds neither state 1 nor the next, but [0]"),
        (once, shortened, "a reader fails"),
    ],
    ids=["in place, killed", "in place, failing", "not flushed", "folder not flushed", "litter", "swallowed", "short"],
)
def test_the_matrix_finds(save: Callable[[bytes, Path], None], rows: Callable, words: str, tmp_path: Path) -> None:
    assert words in failures(saving(save), tmp_path, rows)


def test_the_matrix_passes_on_a_save_at_every_call(tmp_path: Path) -> None:
    bench = matrix.prepared(OVER, tmp_path)
    calls = matrix.listed(bench, tmp_path / "list")
    assert {"openat", "flock", "fallocate", "pwrite64", "fsync", "rename", "close"} <= {call.name for call in calls}
    row = kills(bench, calls)[0]
    assert (row.failures, row.points, row.old + row.new) == ([], len(calls), len(calls))
    assert row.old > 0
    assert row.new > 0
    for name in ("openat", "fallocate", "fsync", "rename"):
        assert failures(OVER, tmp_path, failing(name)) == ""


def test_a_directory_whose_creation_is_killed_is_there_or_is_not(tmp_path: Path) -> None:
    created = DIRECTORIES[0]._replace(steps=DIRECTORIES[0].steps[:1])
    assert failures(created, tmp_path, kills) == ""


def test_the_writes_that_are_shortened_are_all_there_are(tmp_path: Path) -> None:
    bench = matrix.prepared(OVER, tmp_path)
    calls = matrix.listed(bench, tmp_path / "list")
    last = sum(call.name in ("pwrite64", "write") for call in calls)
    rows = {row.fault: row for row in short_writes.rows(bench, [last])}
    assert all(row.failures == [] for row in rows.values())
    beyond = list(short_writes.rows(bench, [last + 1]))
    assert all("the write was not reached" in "\n".join(row.failures) for row in beyond)


def test_the_command_prints_its_figures() -> None:
    command = [sys.executable, "-m", "tests.faults", "--quick", "--only", "a new name"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)  # it takes a mount namespace
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    for word in ("save to a new name", "SIGKILL", "ENOSPC", "EIO", "EINTR", "short write", "power loss", "failures"):
        assert word in done.stdout
    assert "full disk" in done.stdout or "SKIPPED" in done.stdout
