"""The proofs of tests/proofs/, small: they run to their end, and a wrong answer is found.

Covered: of a cache larger than memory, its comparison and the limit itself; of the long context, its comparison with
float64 (with torch). Not covered: their sizes, and the model of the long context.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from attncache import AttentionCache
from benchmarks.files import pages
from tests.proofs import larger_than_memory, limited_process, memory_limit


@pytest.mark.parametrize("is_wrong", [False, True])
def test_long_context_compares_all_layers_with_float64(is_wrong: bool, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="the long context is compared in torch")
    from tests.proofs import long_context

    rng = np.random.default_rng(7)
    cache = AttentionCache()
    for _ in range(3):
        cache.push_qk(*(rng.standard_normal((1, heads, 40, 8)).astype("f2") for heads in (4, 2)))
    positions, keys, report = np.array([11, 20, 39]), np.array([0, 5, 30]), long_context.Report()
    answers = long_context.asked(cache, positions, keys, report)
    if is_wrong:
        answers["columns"] = answers["columns"] * np.float32(1.001)
    long_context.compare(cache, positions, keys, answers, report)
    assert report.is_right is not is_wrong
    assert [row[0] for row in report.rows] == ["rows", "columns, at those rows", "top_k, k=10"]
    assert "the same bits" in capsys.readouterr().out


def test_pages_of_a_file_are_counted_and_evicted(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 4096)
    if pages.resident(file) is None or not pages.CAN_EVICT:
        pytest.skip("this system does not tell which pages of a file are in memory")
    assert pages.resident(file) == 1 << 20
    mapping = np.memmap(file, np.uint8, "r")
    assert limited_process.mapped_and_touched(file) in (None, 0)
    assert mapping[4096] == 0
    assert limited_process.mapped_and_touched(file) in (None, *range(4096, (1 << 20) + 1, 4096))
    del mapping
    pages.evict([file])
    if pages.file_system(tmp_path).startswith(("ext", "xfs", "btrfs")):
        assert pages.resident(file) == 0


def test_a_process_over_its_memory_limit_does_not_survive() -> None:
    with memory_limit.limited(96 << 20) as limit:
        assert limit.run([sys.executable, "-c", "bytearray(16 << 20)"]).returncode == 0
        assert limit.run([sys.executable, "-c", "bytearray(160 << 20)"]).returncode != 0
    assert limit.group is None or not limit.group.exists()


def test_larger_than_memory_runs_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert larger_than_memory.main(["--quick"]) == 0
    printed = capsys.readouterr().out
    assert "answers: the same bits as the reference" in printed
    assert "one row of one layer" in printed


def test_larger_than_memory_finds_a_wrong_answer(tmp_path: Path) -> None:
    limited_process.write(tmp_path, larger_than_memory.QUICK)
    limited_process.ask(tmp_path, larger_than_memory.QUICK)
    assert larger_than_memory.wrong_answers(tmp_path, larger_than_memory.QUICK) == []
    with np.load(tmp_path / limited_process.ANSWERS) as archive:
        answers = dict(archive)
    answers["rows"] = np.nextafter(answers["rows"], np.float32(2))
    np.savez(tmp_path / limited_process.ANSWERS, **answers)
    assert larger_than_memory.wrong_answers(tmp_path, larger_than_memory.QUICK) == ["rows"]
