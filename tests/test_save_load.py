"""``cache.save`` and ``AttentionCache.load``: one cache, one file.

Covered: every dtype, kind and option of layer, empty axes, tokens, metadata and indexes, mapped and read, bit by bit; the
stock safetensors reader on every file; alignment, zero copy, laziness and read-only memory; pickling; arguments. Sizes: stored.py; 3 MB where a mapping must be seen to stay unread.
Not covered: damage (test_damage.py), failing writes (test_writes.py), speed (benchmarks/files).
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from tests.support.patterns import DTYPES, cache_of
from tests.support.stored import SHAPES, answers, everything, of_a_model, push_dense, replace, state, tokened

WAYS: dict[str, dict[str, Any]] = {"mapped": {}, "mapped and verified": {"verify": True}, "read": {"mmap": False}}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    return WAYS[request.param]


@pytest.mark.parametrize("index", [False, True], ids=["without index", "with index"])
@pytest.mark.parametrize("make", [everything, tokened, of_a_model, AttentionCache])
def test_a_loaded_cache_has_every_bit_of_the_saved_one(make: Any, index: bool, way: Any, tmp_path: Path) -> None:
    cache = make()
    cache.save(tmp_path / "a.safetensors", index=index)
    found = AttentionCache.load(tmp_path / "a.safetensors", **way)
    assert state(found) == state(cache)
    assert answers(found) == answers(cache)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_comes_back(shape: Any, dtype: str, way: Any, tmp_path: Path) -> None:
    cache = AttentionCache()
    push_dense(cache, dtype, shape)
    cache.save(tmp_path / "a.safetensors", index=True)
    found = AttentionCache.load(tmp_path / "a.safetensors", **way)
    assert state(found) == state(cache)
    assert answers(found) == answers(cache)


def test_tokens_of_one_text_and_of_several_come_back(tmp_path: Path) -> None:
    cache = AttentionCache()
    push_dense(cache, "float32")
    for tokens in ([f"t{n}" for n in range(7)], [[f"{b}-{n}\n" for n in range(7)] for b in range(2)], None):
        cache.tokens = tokens
        cache.save(tmp_path / "a.safetensors")
        assert AttentionCache.load(tmp_path / "a.safetensors").tokens == cache.tokens


def test_an_index_in_the_file_is_used_at_once_and_left_alone_if_off(tmp_path: Path) -> None:
    cache = AttentionCache(index="off")
    push_dense(cache, "float16")
    cache.save(tmp_path / "a.safetensors", index=True)
    for policy in ("auto", "eager"):
        found = AttentionCache.load(tmp_path / "a.safetensors", index=policy)
        assert (found.index, found.index_nbytes) == (policy, 2 * 2 * 5 * 7 * 4)
        assert not found.attention_from_position(0, 1).flags.owndata
    found = AttentionCache.load(tmp_path / "a.safetensors", index="off")
    assert (found.index, found.index_nbytes) == ("off", 0)
    assert answers(found) == answers(cache)


def test_an_eager_cache_builds_what_the_file_does_not_have(tmp_path: Path) -> None:
    cache = AttentionCache(index="off")
    push_dense(cache, "float16")
    cache.save(tmp_path / "a.safetensors")
    assert AttentionCache.load(tmp_path / "a.safetensors", index="eager").index_nbytes > 0


def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path: Path) -> None:
    everything().save(tmp_path / "a.safetensors")
    AttentionCache.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_saving_over_the_file_that_is_mapped_leaves_both_caches_whole(tmp_path: Path) -> None:
    everything().save(tmp_path / "a.safetensors")
    first = AttentionCache.load(tmp_path / "a.safetensors")
    before = state(first)
    first.save(tmp_path / "a.safetensors", index=True)
    assert state(first) == before
    assert state(AttentionCache.load(tmp_path / "a.safetensors", verify=True)) == before


@pytest.mark.parametrize("index", [False, True])
def test_the_stock_safetensors_reader_opens_every_file(index: bool, tmp_path: Path) -> None:
    numpy_reader = pytest.importorskip("safetensors.numpy", reason="needs safetensors")
    cache = everything()
    cache.save(tmp_path / "a.safetensors", index=index)
    found = numpy_reader.load_file(tmp_path / "a.safetensors")
    for layer, (kind, dtype) in enumerate(zip(cache.kinds, cache.dtypes, strict=True)):
        names = ("pattern",) if kind == "dense" else ("query", "key")
        for name, rows in zip(names, cache._layer(layer).memory, strict=True):
            tensor = found[f"layers.{layer}.{name}"]
            assert (tensor.dtype.name, tensor.shape, tensor.tobytes()) == (dtype, rows.shape, rows.tobytes())


def header_of(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    found: dict[str, Any] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return found


def test_every_tensor_begins_at_a_multiple_of_64_in_the_file_and_in_memory(way: Any, tmp_path: Path) -> None:
    cache = everything()
    cache.save(tmp_path / "a.safetensors", index=True)
    header = header_of(tmp_path / "a.safetensors")
    begins = 8 + int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little")
    ours = [entry for name, entry in header.items() if name.startswith("layers.")]
    assert len(ours) > 20
    assert all((begins + entry["data_offsets"][0]) % 64 == 0 for entry in ours)
    found = AttentionCache.load(tmp_path / "a.safetensors", **way)
    assert all(rows.ctypes.data % 64 == 0 for layer in range(found.n_layers) for rows in found._layer(layer).memory)


def mapping_of(path: Path) -> range:
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    begin, end = next(line.split()[0].split("-") for line in lines if line.endswith(str(path)))
    return range(int(begin, 16), int(end, 16))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
def test_the_views_of_a_mapped_file_lie_in_the_mapping(tmp_path: Path) -> None:
    everything().save(tmp_path / "a.safetensors", index=True)
    found = AttentionCache.load(tmp_path / "a.safetensors")
    mapping = mapping_of(tmp_path / "a.safetensors")
    views = [rows for layer in range(found.n_layers) for rows in found._layer(layer).memory]
    views += [found[0], found.attention_from_position(0, 1), found.attention_to_position(0, 1)]
    assert all(view.ctypes.data in mapping for view in views)
    assert not any(view.flags.writeable for view in views)


def test_views_outlive_the_cache_and_the_file_name(tmp_path: Path) -> None:
    cache = everything()
    cache.save(tmp_path / "a.safetensors")
    view = AttentionCache.load(tmp_path / "a.safetensors")[0]
    (tmp_path / "a.safetensors").unlink()
    assert view.tobytes() == cache[0].tobytes()


def test_a_change_in_memory_never_reaches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    everything().save(path)
    before = path.read_bytes()
    found = AttentionCache.load(path)
    push_dense(found, "float32")
    found.tokens, found.metadata = None, {"changed": True}
    assert found.path is None
    found.clear()
    assert path.read_bytes() == before


def test_one_file_is_open_in_many_processes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    cache = everything()
    cache.save(path)
    code = f"from attncache import AttentionCache as C; print(C.load({str(path)!r}).rows(0, 1).tobytes().hex())"
    found = AttentionCache.load(path)
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == [found.rows(0, 1).tobytes().hex()] * 3


# ---- pickling


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "read"])
def test_a_cache_from_disk_pickles_as_its_path_and_hash(mapped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    of_a_model().save(path)
    cache = AttentionCache.load(path, mapped, index="off")
    pickled = pickle.dumps(cache)
    assert len(pickled) < 300 + len(str(path))
    again = pickle.loads(pickled)
    assert state(again) == state(cache)
    assert (again.path, again.index) == (path, "off")


def test_a_pickle_of_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    everything().save(path)
    pickled = pickle.dumps(AttentionCache.load(path))
    tokened().save(path)
    with pytest.raises(ValueError, match=r"a\.safetensors: must be as it was when the cache was pickled"):
        pickle.loads(pickled)


def test_a_cache_in_memory_or_changed_since_is_not_pickled(tmp_path: Path) -> None:
    cache = everything()
    with pytest.raises(TypeError, match="a cache in memory cannot be pickled"):
        pickle.dumps(cache)
    cache.save(tmp_path / "a.safetensors")
    changes: list[Any] = [
        lambda found: push_dense(found, "float32"),
        lambda found: found.push_qk(np.ones((1, 1, 1, 1), np.float32), np.ones((1, 1, 1, 1), np.float32)),
        lambda found: found.append_qk(3, np.ones((2, 4, 1, 8), np.float32), np.ones((2, 2, 1, 8), np.float32)),
        lambda found: setattr(found, "tokens", None),
        lambda found: setattr(found, "metadata", {}),
        lambda found: replace(found, 0, cache_of([np.ones((1, 1, 1, 1), np.float32)])),
        lambda found: found.clear(),
    ]
    for change in changes:
        found = AttentionCache.load(tmp_path / "a.safetensors")
        pickle.dumps(found)
        change(found)
        assert found.path is None
        with pytest.raises(TypeError, match="not changed since"):
            pickle.dumps(found)


# ---- arguments


def test_paths_may_be_strings_and_paths_and_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokened().save("a.safetensors")
    tokened().save(Path("b"))
    assert AttentionCache.load("a.safetensors").path == tmp_path / "a.safetensors"
    assert AttentionCache.load(Path("b")).tokens == tokened().tokens


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: AttentionCache().save(3), "path must be a string or a path, got int"),
        (lambda _: AttentionCache().save(b"a"), "path must be a string or a path, got bytes"),
        (lambda path: AttentionCache().save(path, index=1), "index must be True or False, got int"),
        (lambda _: AttentionCache.load(None), "path must be a string or a path, got NoneType"),
        (lambda path: AttentionCache.load(path, "r"), "mmap must be True or False, got str"),
        (lambda path: AttentionCache.load(path, verify=0), "verify must be True or False, got int"),
        (lambda path: AttentionCache.load(path, index=1), "index must be a str, got int"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_a_type_error(call: Any, message: str, tmp_path: Path) -> None:
    AttentionCache().save(tmp_path / "a")
    with pytest.raises(TypeError, match=message):
        call(tmp_path / "a")


def test_a_missing_file_and_a_pipe_are_os_errors_that_name_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        AttentionCache.load(tmp_path / "none")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match=r"not a regular file.*pipe"):
            AttentionCache.load(tmp_path / "pipe")


def test_readers_never_disturb_a_writer_nor_see_anything_but_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    caches = [everything(), tokened()]
    states = [state(cache) for cache in caches]
    caches[0].save(path)
    stop = threading.Event()

    def read() -> int:
        n_reads = 0
        while not stop.is_set():
            assert state(AttentionCache.load(path, verify=True)) in states
            n_reads += 1
        return n_reads

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for number in range(60):
                caches[number % 2].save(path)
        finally:
            stop.set()
        assert all(reader.result(60) > 0 for reader in readers)
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]
