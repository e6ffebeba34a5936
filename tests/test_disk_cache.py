"""``AttentionCache.create``: a cache that lives in a directory.

Covered: every kind of change against the same change in memory, bit by bit, from this process, from a reader after each
change and after re-opening; what is in the directory; one writer at a time, across threads, processes and forks; replaced
and compacted layers; clearing; pickling; what is refused. Sizes: support/stored.py.
Not covered: kills and failing system calls (tests/faults), capture (test_capture_into.py).
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, LayerSource
from attncache.files import DamagedFileError, InUseError
from attncache.files import directory as disk
from attncache.files.containers import open_container
from attncache.files.contents import contents_of, read_patterns
from attncache.files.directory import DiskCache
from attncache.files.manifest import MANIFEST
from attncache.files.verifying import verify
from tests.support.patterns import cache_of
from tests.support.stored import answers, factored_options, of_a_model, push_dense, push_factored, state

ONE = np.ones((1, 1, 1, 1), np.float32)


def segments(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.safetensors"))


def lengthen(cache: AttentionCache) -> None:
    random = np.random.default_rng(5)
    query, key = random.random((2, 4, 3, 8), np.float32), random.random((2, 2, 3, 8), np.float32)
    cache.append_qk(3, query, key, key_mask=[[1, 0, 1], [1, 1, 1]])


CHANGES: dict[str, Callable[[AttentionCache], object]] = {
    "push float16": lambda cache: push_dense(cache, "float16", source=LayerSource("a.0", layer=0)),
    "push bfloat16": lambda cache: push_dense(cache, "bfloat16"),
    "push float32": lambda cache: push_dense(cache, "float32"),
    "push_qk": lambda cache: push_factored(cache, source=LayerSource("a.3", layer=3, heads=(0, 1, 4, 5), kind="self")),
    "append_qk": lengthen,
    **{f"push_qk {sorted(each)}": lambda cache, each=each: push_factored(cache, **each) for each in factored_options()},
    "push with a source": lambda cache: push_dense(cache, "float16", source=LayerSource("a.1", 1, kind="cross")),
    "replace what has a source": lambda cache: cache._replace_layer(-1, of_a_model().part(layers=2)),
    "replace": lambda cache: cache._replace_layer(1, cache_of([np.full((2, 1, 3, 4), 0.25, np.float16)])),
    "metadata": lambda cache: setattr(cache, "metadata", {"a": [1, {"b": None}]}),
    "no metadata": lambda cache: setattr(cache, "metadata", {}),
    "compact": lambda cache: cache.compact() if isinstance(cache, DiskCache) else None,
    "push after compact": lambda cache: push_dense(cache, "float16"),
    "replace in a compacted file": lambda cache: cache._replace_layer(
        0, cache_of([np.full((2, 1, 3, 4), 0.5, np.float32)])
    ),
    "replace a factored layer": lambda cache: cache._replace_layer(
        -2, cache_of([np.full((2, 1, 3, 4), 0.5, np.float32)])
    ),
    "compact again": lambda cache: cache.compact(index=True) if isinstance(cache, DiskCache) else None,
    "clear": lambda cache: cache.clear(),
    "tokens of an empty cache": lambda cache: setattr(cache, "tokens", ["a", "b", "c", "d", "e", "f", "g"]),
    "push once more": lambda cache: push_dense(cache, "float32"),
    "tokens": lambda cache: setattr(cache, "tokens", [["ab"] * 7, ["\n", "", "c", "d", "e", "f", "g"]]),
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


def test_compacting_nothing_is_nothing(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        cache.compact()
        assert segments(tmp_path / "run") == []


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


# ---- one writer


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run"):
        with pytest.raises(InUseError, match=f"process {os.getpid()} writes this cache.*run"):
            AttentionCache.create(tmp_path / "run")
        code = f"from attncache import AttentionCache as C; C.create({str(tmp_path / 'run')!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
        assert f"process {os.getpid()} writes this cache" in other.stderr
    AttentionCache.create(tmp_path / "run").close()


def test_a_writer_that_is_forgotten_lets_the_next_one_in(tmp_path: Path) -> None:
    cache = AttentionCache.create(tmp_path / "run")
    del cache
    AttentionCache.create(tmp_path / "run").close()


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_change_amid_a_change_is_refused_and_both_ends_stay_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        write = disk.write_file
        refused = []

        def amid(*args: Any, **options: Any) -> Any:
            try:
                cache.push(np.ones((1, 1, 2, 2), np.float32), check=False)
            except RuntimeError as error:
                refused.append(str(error))
            return write(*args, **options)

        monkeypatch.setattr(disk, "write_file", amid)
        cache.push(np.zeros((1, 1, 2, 2), np.float32))
        monkeypatch.undo()
        cache.push(np.full((1, 1, 2, 2), 0.5, np.float32))
        assert len(refused) == 1
        assert "must not be changed amid a change of it" in refused[0]
        assert [layer.flat[0] for layer in cache] == [0, 0.5]
    assert [layer.flat[0] for layer in AttentionCache.load(tmp_path / "run")] == [0, 0.5]


def test_a_forked_child_may_read_but_not_write(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        push_dense(cache, "float16")
        child = os.fork()
        if child == 0:
            try:
                cache.rows(0, 0)
                cache.push(ONE)
            except InUseError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        push_dense(cache, "float16")
        assert AttentionCache.load(tmp_path / "run").n_layers == 2


def test_threads_push_into_one_directory_and_readers_see_whole_layers(tmp_path: Path) -> None:
    n_each, seen = 10, []
    with AttentionCache.create(tmp_path / "run") as cache:

        def write(number: int) -> None:
            for _ in range(n_each):
                cache.push(np.full((1, 1, 2, 2), number, np.float32))

        writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            found = AttentionCache.load(tmp_path / "run", verify=True)
            seen.append(found.n_layers)
            assert all(np.ptp(view) == 0 for view in found)
        for writer in writers:
            writer.join()
        values = sorted(view[0, 0, 0, 0] for view in cache)
    assert values == [number for number in range(3) for _ in range(n_each)]
    assert seen == sorted(seen)


def test_a_reader_meets_a_writer_that_replaces_and_compacts(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        for _ in range(3):
            cache.push(np.zeros((1, 1, 2, 2), np.float32))
        stop = threading.Event()

        def write() -> None:
            for number in range(40):
                cache._replace_layer(number % 3, cache_of([np.full((1, 1, 2, 2), number, np.float32)]))
                if number % 5 == 0:
                    cache.compact()
            stop.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not stop.is_set():
            found = AttentionCache.load(tmp_path / "run")
            assert (found.n_layers, [np.ptp(view) for view in found]) == (3, [0, 0, 0])
        writer.join()


# ---- what it is and what it refuses


def test_the_folders_above_are_made(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "a" / "b" / "run") as cache:
        assert cache.directory == tmp_path / "a" / "b" / "run"
        assert cache.path == cache.directory


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"directory must be empty or a cache, got one with thesis\.tex"):
        AttentionCache.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_layers_without_their_manifest_are_refused_and_left_alone(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path) as cache:
        cache.push(ONE)
        cache.push(ONE)
    (tmp_path / MANIFEST).rename(tmp_path.parent / "moved")
    words = r"must have the manifest\.json of its layers, got segment-000000\.safetensors without one"
    with pytest.raises(ValueError, match=words):
        AttentionCache.create(tmp_path)
    (tmp_path.parent / "moved").rename(tmp_path / MANIFEST)
    assert AttentionCache.load(tmp_path, verify=True).n_layers == 2


def test_a_directory_that_is_no_cache_says_what_may_open_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for path in (tmp_path, tmp_path / "run"):
        words = (
            r"must be a cache, which has manifest\.json, or hold a file of arrays per layer, got a folder with neither"
        )
        with pytest.raises(
            FileNotFoundError, match=rf"^{path}: {words}; attncache\.open_runs opens a folder of caches"
        ):
            AttentionCache.load(path)


@pytest.mark.parametrize("left", [[], ["lock"], ["lock", ".manifest.json.saving"]])
def test_a_reader_finds_nothing_until_a_directory_is_created(left: list[str], tmp_path: Path) -> None:
    for name in left:
        (tmp_path / name).write_bytes(b"7")
    for read in (AttentionCache.load, read_patterns, contents_of, verify):
        with pytest.raises(FileNotFoundError, match="got a folder with neither"):
            read(tmp_path)
    AttentionCache.create(tmp_path).close()
    assert AttentionCache.load(tmp_path).is_empty


def test_a_directory_that_is_created_while_a_reader_looks_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked_at(path: Path, **options: Any) -> Any:
        with AttentionCache.create(path) as cache:
            if cache.is_empty:
                cache.push([[[[1.0]]]])
        return open_container(path, **options)

    monkeypatch.setattr("attncache.files.opening.open_container", looked_at)
    assert AttentionCache.load(tmp_path / "a").n_layers == 1
    assert len(read_patterns(tmp_path / "b").patterns) == 1
    assert len(contents_of(tmp_path / "c").layers) == 1


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
    monkeypatch.setattr("attncache.files.manifest._MOST_LAYERS", 2)
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


def test_other_files_beside_a_cache_are_left_alone(tmp_path: Path) -> None:
    AttentionCache.create(tmp_path).close()
    (tmp_path / "notes.txt").write_text("x")
    with AttentionCache.create(tmp_path) as cache:
        cache.push(ONE)
    assert (tmp_path / "notes.txt").read_text() == "x"


def test_a_file_in_the_place_of_the_directory_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(FileExistsError):
        AttentionCache.create(tmp_path / "run")


def test_a_bad_layer_leaves_the_directory_as_it_was(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        push_factored(cache)
        before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        bad: list[tuple[Any, type[Exception]]] = [
            (lambda: cache.push([[1.0]]), ValueError),
            (lambda: cache.push("x"), TypeError),
            (lambda: cache.push(ONE, copy=False), ValueError),
            (lambda: cache.push_qk(ONE, ONE, window=0), ValueError),
            (lambda: cache.append_qk(5, ONE, ONE), IndexError),
            (lambda: cache.append_qk("x", ONE, ONE), TypeError),
            (lambda: cache.append_qk(0, ONE, ONE), ValueError),
            (lambda: setattr(cache, "tokens", ["a"]), ValueError),
            (lambda: setattr(cache, "metadata", {"a": {1}}), TypeError),
        ]
        for change, kind in bad:
            with pytest.raises(kind):
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


def test_a_missing_or_exchanged_segment_is_said_with_its_name(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        push_dense(cache, "float16")
        push_dense(cache, "float32")
    first, second = ((tmp_path / "run" / name) for name in segments(tmp_path / "run"))
    raw = second.read_bytes()
    second.unlink()
    with pytest.raises(DamagedFileError, match=f"segments must be in the directory.*{second.name}"):
        AttentionCache.load(tmp_path / "run")
    with pytest.raises(OSError, match=second.name):
        AttentionCache.create(tmp_path / "run")
    first.write_bytes(raw)
    second.write_bytes(raw)
    with pytest.raises(DamagedFileError, match=first.name):
        AttentionCache.load(tmp_path / "run")


def test_the_manifest_is_json_that_anyone_reads(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        push_dense(cache, "float16")
        cache.metadata = {"model": "m"}
    manifest = json.loads((tmp_path / "run" / MANIFEST).read_text())
    assert (manifest["attncache"], manifest["metadata"]) == (1, {"model": "m"})
    assert [segment["file"] for segment in manifest["segments"]] == segments(tmp_path / "run")


def test_tokens_of_the_queries_are_in_the_manifest_and_come_back(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        push_dense(cache, "float16")
        cache._query_tokens = (("a", "b", "c", "d", "e"), ("f", "g", "h", "i", "j"))
        cache.metadata = {"n": 1}
        cache.compact()
        expected = state(cache)
    manifest = json.loads((tmp_path / "run" / MANIFEST).read_text())
    assert manifest["query_tokens"] == [["a", "b", "c", "d", "e"], ["f", "g", "h", "i", "j"]]
    assert state(AttentionCache.load(tmp_path / "run", verify=True)) == expected
    with AttentionCache.create(tmp_path / "run") as cache:
        assert state(cache) == expected
        cache.clear()
        assert cache._query_tokens is None
    assert AttentionCache.load(tmp_path / "run")._query_tokens is None


def test_a_layer_refused_for_its_source_leaves_the_directory_as_it_was(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        wrong = LayerSource(heads=(0, 1))
        for push in (lambda: cache.push(ONE, source=wrong), lambda: cache.push_qk(ONE, ONE, source=wrong)):
            with pytest.raises(ValueError, match="n_heads=1, got 2"):
                push()
        assert segments(tmp_path / "run") == []
        assert cache.is_empty
