"""Caches larger than the memory of the process that asks or writes them.

Covered on Linux, with 4 layers of 2 heads x 2048 positions in float16, 67 MB: which pages of the mapping are in the process
after opening, after one row, after a head mean; every question under a limit of private memory (RLIMIT_DATA) that is smaller
than the file, answered with the same bits as by a cache in memory; reading the file under it, which is a MemoryError; and
pushing to disk under it; the peak memory of ``attncache convert``. Pages are counted, not timed: the system brings in at most one large page of 2 MB around each
address that is touched.
Not covered: a limit that counts the pages of files too, which takes a control group: ``python -m
tests.proofs.larger_than_memory`` has one. How much the system reads ahead into its own cache is its own choice.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from attncache import AttentionCache

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages and limits are counted as Linux counts them")

SHAPE, LAYERS = (1, 2, 2048, 2048), 4
LAYER_BYTES = 2 * 2048 * 2048 * 2
PAGE, LARGE_PAGE = 4096, 2 << 20
ROOM = 48 << 20  # bytes of private memory beyond what the process has once it has imported everything


def pattern(layer: int) -> np.ndarray:
    """One layer; the weights are no softmax, which no query minds."""
    return np.random.default_rng(layer).random(SHAPE, np.float32).astype(np.float16)


@pytest.fixture(scope="module")
def cache() -> AttentionCache:
    """The layers in memory."""
    cache = AttentionCache(index="off")
    for layer in range(LAYERS):
        cache.push(pattern(layer))
    return cache


@pytest.fixture(scope="module")
def file(cache: AttentionCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layers in a file."""
    path = tmp_path_factory.mktemp("larger") / "run.safetensors"
    cache.save(path)
    return path


def touched(cache: AttentionCache, layer: int) -> int:
    """Bytes of a layer whose pages are in the memory of this process."""
    first = cache[layer].ctypes.data // PAGE
    last = (cache[layer].ctypes.data + LAYER_BYTES - 1) // PAGE
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
        pages.seek(8 * first)
        entries = np.frombuffer(pages.read(8 * (last + 1 - first)), np.uint64)
    return int((entries >> np.uint64(63)).sum()) * PAGE


def test_a_query_touches_the_pages_that_it_needs_and_opening_none(file: Path) -> None:
    cache = AttentionCache.load(file, index="off")
    assert [touched(cache, layer) for layer in range(LAYERS)] == [0] * LAYERS
    cache.attention_from_position(2, 1024)
    assert 2 * PAGE <= touched(cache, 2) <= 2 * LARGE_PAGE < LAYER_BYTES / 2
    assert [touched(cache, layer) for layer in (0, 1, 3)] == [0] * 3
    cache.head_mean(0)
    assert touched(cache, 0) >= LAYER_BYTES
    assert touched(cache, 3) == 0


LIMITED = """
import hashlib, resource, sys
import numpy as np
import attncache
from attncache import AttentionCache
from attncache.files import directory, opening
attncache.set_num_threads(1)  # the stack of each thread would count
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
now = int(status["VmData"].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (now + int(sys.argv[2]),) * 2)
path = sys.argv[1]
"""
QUESTIONS = """
for answer in (
    cache.rows(positions=100),
    cache.columns(positions=[5, 2047]),
    cache.top_k(10, positions=7, heads=None).weights,
    cache.top_k(10, layers=3).positions,
    cache.edges([1, 2000], [3, 30]),
    cache.head_mean(1),
):
    print(hashlib.sha256(np.ascontiguousarray(answer).tobytes()).hexdigest())
"""


def limited(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process that may have ROOM more bytes of private memory."""
    command = [sys.executable, "-c", LIMITED + code, str(path), str(ROOM)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_question_is_answered_with_less_memory_than_the_file(
    file: Path, cache: AttentionCache, capsys: pytest.CaptureFixture[str]
) -> None:
    assert file.stat().st_size > 1.3 * ROOM
    done = limited("cache = AttentionCache.load(path, index='off')" + QUESTIONS, file)
    assert done.returncode == 0, done.stderr
    exec(QUESTIONS, {"cache": cache, "hashlib": hashlib, "np": np})  # noqa: S102
    assert done.stdout == capsys.readouterr().out


def test_reading_a_file_that_memory_has_no_room_for_is_a_memory_error(file: Path) -> None:
    done = limited(
        "try:\n    AttentionCache.load(path, mmap=False)\n"
        "except MemoryError:\n    print('MemoryError, then', AttentionCache.load(path).n_layers, 'layers')",
        file,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "MemoryError, then 4 layers\n"


PUSHING = """
layer = np.zeros((1, 2, 2048, 2048), np.float16)
for number in range(4):
    layer[...] = number
    cache.push(layer)
"""


def test_pushing_to_disk_keeps_one_layer_in_memory(tmp_path: Path) -> None:
    in_memory = limited(f"cache = AttentionCache(){PUSHING}", tmp_path)
    assert "MemoryError" in in_memory.stderr, "the limit must be one that a cache in memory breaks"
    done = limited(
        f"cache = AttentionCache.create(path){PUSHING}\ncache.compact()\nprint(cache.rows(positions=0)[:, 0].tolist())",
        tmp_path / "run",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[0.0, 1.0, 2.0, 3.0]\n"


CONVERTING = """
import resource, sys
from attncache import cli
cli.main(["convert", "sample", sys.argv[2] + ".sample"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert cli.main(["convert", sys.argv[1], sys.argv[2], *sys.argv[3:]]) == 0
print("grew", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("kind", "options"), [("npz", []), ("npz", ["--dtype", "float16", "--index"]), ("npy", ["--mean-only"])]
)
def test_converting_keeps_one_layer_in_memory(tmp_path: Path, kind: str, options: list[str]) -> None:
    layers = np.zeros((24, 1, 8, 512, 512), np.float32)  # 201 MB
    layers[:, 0, :, :, 0] = 1
    if kind == "npz":
        np.savez_compressed(tmp_path / "a.npz", *layers)
    else:
        np.save(tmp_path / "a.npy", layers)
    del layers
    command = [sys.executable, "-c", CONVERTING, str(tmp_path / f"a.{kind}"), str(tmp_path / "b.safetensors"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout.split()[-1]) < 48_000  # kilobytes: a layer, what it is made of and of it, and room
