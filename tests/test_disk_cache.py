"""``AttentionCache.create``: a cache that lives in a directory.

Covered: every kind of change against the same change in memory, bit by bit, from this process, from a reader after each
change and after re-opening; what is in the directory; one writer at a time, across threads, processes and forks; replaced
and compacted layers; clearing; pickling; what is refused. Sizes: stored.py.
Not covered: kills and failing system calls (tests/faults), capture (test_capture_into.py).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, LayerSource
from attncache.files.directory import DiskCache
from tests.support.patterns import cache_of
from tests.support.stored import answers, factored_options, of_a_model, push_dense, push_factored, replace, state

ONE, HALVES = np.ones((1, 1, 1, 1), np.float32), np.full((2, 1, 3, 4), 0.5, np.float32)


def segments(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.safetensors"))


def lengthen(cache: AttentionCache) -> None:
    random = np.random.default_rng(5)
    query, key = random.random((2, 4, 3, 8), np.float32), random.random((2, 2, 3, 8), np.float32)
    cache.append_qk(3, query, key, key_mask=[[1, 0, 1], [1, 1, 1]])


def compact(cache: AttentionCache, *, index: bool = False) -> None:
    if isinstance(cache, DiskCache):
        cache.compact(index=index)


CHANGES: dict[str, Callable[[AttentionCache], object]] = {
    "push float16": lambda cache: push_dense(cache, "float16", source=LayerSource("a.0", layer=0)),
    "push bfloat16": lambda cache: push_dense(cache, "bfloat16"),
    "push float32": lambda cache: push_dense(cache, "float32"),
    "push_qk": lambda cache: push_factored(cache, source=LayerSource("a.3", layer=3, heads=(0, 1, 4, 5), kind="self")),
    "append_qk": lengthen,
    **{f"push_qk {sorted(each)}": lambda cache, each=each: push_factored(cache, **each) for each in factored_options()},
    "push with a source": lambda cache: push_dense(cache, "float16", source=LayerSource("a.1", 1, kind="cross")),
    "replace what has a source": lambda cache: replace(cache, -1, of_a_model().part(layers=2)),
    "replace": lambda cache: replace(cache, 1, cache_of([np.full((2, 1, 3, 4), 0.25, np.float16)])),
    "metadata": lambda cache: setattr(cache, "metadata", {"a": [1, {"b": None}]}),
    "no metadata": lambda cache: setattr(cache, "metadata", {}),
    "compact": compact,
    "push after compact": lambda cache: push_dense(cache, "float16"),
    "replace in a compacted file": lambda cache: replace(cache, 0, cache_of([HALVES])),
    "replace a factored layer": lambda cache: replace(cache, -2, cache_of([HALVES])),
    "compact again": lambda cache: compact(cache, index=True),
    "clear": lambda cache: cache.clear(),
    "compact nothing": compact,
    "tokens of an empty cache": lambda cache: setattr(cache, "tokens", ["a", "b", "c", "d", "e", "f", "g"]),
    "push once more": lambda cache: push_dense(cache, "float32"),
    "tokens": lambda cache: setattr(cache, "tokens", [["ab"] * 7, ["\n", "", "c", "d", "e", "f", "g"]]),
    "query tokens": lambda cache: setattr(cache, "query_tokens", [list("abcde"), list("fghij")]),
    "compact with query tokens": compact,
    "clear with query tokens": lambda cache: cache.clear(),
}


def test_each_change_leaves_the_bits_that_it_leaves_in_memory(tmp_path: Path) -> None:
    in_memory = AttentionCache()
    with AttentionCache.create(tmp_path / "run") as cache:
        for change in CHANGES.values():
            change(in_memory)
            change(cache)
            assert state(cache) == state(in_memory)
            assert answers(cache) == answers(in_memory)
            assert state(AttentionCache.load(tmp_path / "run", verify=True)) == state(in_memory)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_re_opening_after_each_change_continues(dtype: Any, tmp_path: Path) -> None:
    in_memory = AttentionCache(dtype)
    for change in CHANGES.values():
        change(in_memory)
        with AttentionCache.create(tmp_path / "run", dtype) as cache:
            change(cache)
            assert state(cache) == state(in_memory)
    assert state(AttentionCache.load(tmp_path / "run", mmap=False)) == state(in_memory)


def test_a_push_writes_one_segment_that_never_changes_and_that_any_reader_opens(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        for n in range(3):
            before = {name: (tmp_path / "run" / name).read_bytes() for name in segments(tmp_path / "run")}
            push_dense(cache, "float16")
            assert len(segments(tmp_path / "run")) == n + 1
            assert all((tmp_path / "run" / name).read_bytes() == raw for name, raw in before.items())
    reader = pytest.importorskip("safetensors.numpy", reason="needs safetensors")
    for n, name in enumerate(segments(tmp_path / "run")):
        (found,) = [t for key, t in reader.load_file(tmp_path / "run" / name).items() if key.startswith("layers.")]
        assert found.tobytes() == cache[n].tobytes()


def test_a_compacted_directory_has_one_file_that_is_a_whole_cache(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        for _ in range(3):
            push_dense(cache, "float16")
        push_factored(cache)
        view = cache[1]
        before, bits = state(cache)[0], view.tobytes()
        cache.compact(index=True)
        assert len(segments(tmp_path / "run")) == 1
        assert state(AttentionCache.load(tmp_path / "run" / segments(tmp_path / "run")[0], verify=True))[0] == before
        assert state(cache)[0] == before
        assert view.tobytes() == bits


def test_layers_are_mapped_from_their_files(tmp_path: Path) -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc/self/maps")
    with AttentionCache.create(tmp_path / "run") as cache:
        push_dense(cache, "float16")
        address = cache[0].ctypes.data
        segment = str(cache.directory / "segment-000000.safetensors")
        line = next(line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(segment))
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        assert begin <= address < end


def test_a_closed_cache_answers_and_takes_nothing(tmp_path: Path) -> None:
    cache = AttentionCache.create(tmp_path / "run")
    push_dense(cache, "float16")
    push_factored(cache)
    before = state(cache), answers(cache)
    cache.close()
    cache.close()
    for change in (
        lambda: cache.push(ONE),
        lambda: push_factored(cache),
        lambda: cache.append_qk(1, np.ones((2, 4, 1, 8), np.float32), np.ones((2, 2, 1, 8), np.float32)),
        lambda: setattr(cache, "tokens", None),
        lambda: setattr(cache, "metadata", {}),
        cache.clear,
        cache.compact,
    ):
        with pytest.raises(ValueError, match="the cache must be open to be changed"):
            change()
    assert (state(cache), answers(cache)) == before


def test_descriptions_larger_than_a_reader_takes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attncache.files.manifest._MOST_BYTES", 2000)
    with AttentionCache.create(tmp_path) as cache:
        cache.push(ONE)
        for name, value in (("metadata", {"text": "a" * 2000}), ("tokens", ["a" * 2000])):
            with pytest.raises(ValueError, match=r"with tokens and metadata must be at most 2,000 bytes, got 2,\d+"):
                setattr(cache, name, value)
        assert (cache.tokens, dict(cache.metadata)) == (None, {})
        cache.metadata = {"text": "a" * 1000}
        assert state(AttentionCache.load(tmp_path)) == state(cache)


def test_more_layers_than_a_reader_takes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attncache.files.manifest.MOST_LAYERS", 2)
    with AttentionCache.create(tmp_path) as cache:
        cache.push(ONE)
        cache.push(ONE)
        with pytest.raises(ValueError, match="a cache on disk must have at most 2 layers"):
            cache.push(ONE)
        assert state(AttentionCache.load(tmp_path)) == state(cache)
        assert segments(tmp_path) == ["segment-000000.safetensors", "segment-000001.safetensors"]


@pytest.mark.parametrize("index", ["off", "auto", "eager"])
def test_writing_an_index_leaves_none_in_memory(index: Any, tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run", index=index) as cache:
        for _ in range(3):
            cache.push(np.full((1, 2, 64, 64), 1 / 64, np.float32))
        before = cache.index_nbytes
        cache.save(tmp_path / "run.safetensors", index=True)
        assert cache.index_nbytes == before
        cache.compact(index=True)
        assert cache.index_nbytes == (0 if index == "off" else 3 * 2 * 64 * 64 * 4)  # that of the file, mapped
    assert AttentionCache.load(tmp_path / "run.safetensors").index_nbytes == 3 * 2 * 64 * 64 * 4


def test_a_bad_layer_leaves_the_directory_as_it_was(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        push_factored(cache)
        before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        bad: list[tuple[Any, type[Exception], str]] = [
            (lambda: cache.push([[1.0]]), ValueError, "pattern"),
            (lambda: cache.push("x"), TypeError, "pattern"),
            (lambda: cache.push(ONE, copy=False), ValueError, "copy=False cannot borrow"),
            (lambda: cache.push_qk(ONE, ONE, window=0), ValueError, "window must be at least 1"),
            (lambda: cache.push(ONE, source=LayerSource(heads=(0, 1))), ValueError, "n_heads=1, got 2"),
            (lambda: cache.push_qk(ONE, ONE, source=LayerSource(heads=(0, 1))), ValueError, "n_heads=1, got 2"),
            (lambda: cache.append_qk(5, ONE, ONE), IndexError, "layer 5 is out of range for n_layers=1"),
            (lambda: cache.append_qk("x", ONE, ONE), TypeError, "layer must be an int, got str"),
            (lambda: cache.append_qk(0, ONE, ONE), ValueError, "query"),
            (lambda: setattr(cache, "tokens", ["a"]), ValueError, "tokens"),
            (lambda: setattr(cache, "metadata", {"a": {1}}), TypeError, "metadata"),
        ]
        for change, kind, words in bad:
            with pytest.raises(kind, match=words):
                change()
            assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_cache_on_disk_pickles_and_comes_back_as_a_reader(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        push_dense(cache, "float16")
        pickled = pickle.dumps(cache)
        again = pickle.loads(pickled)
        assert type(again) is AttentionCache
        assert state(again) == state(cache)
        push_dense(cache, "float16")
        with pytest.raises(ValueError, match="must be as it was when the cache was pickled"):
            pickle.loads(pickled)
