"""Many prompts on disk, opened one at a time: ``open_runs``.

Covered: which entries of a directory are runs and in which order, choosing them, that a run is open only while it is held,
everything refused. Sizes: up to 12 runs of one 2 x 2 layer; once, every kind of layer. Results are exact.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, map_runs, open_runs
from tests.support.asked_of_runs import Opened, number
from tests.support.stored import everything, state, tokened


def test_runs_come_in_the_natural_order_of_their_names(tmp_path: Path) -> None:
    cache = tokened()
    names = ["2", "10", "a2b3", "a2b20", "a10b1", "a-2.safetensors", "a-10.safetensors", "b", "b-02", "b-2", "ü"]
    for name in reversed(names):
        cache.save(tmp_path / name)
        if not name.endswith(".safetensors"):
            (tmp_path / name).unlink()
            AttentionCache.create(tmp_path / name).close()
    assert open_runs(tmp_path).names == tuple(names)


def test_what_is_not_a_run_is_passed_over(folder: Path) -> None:
    names = open_runs(folder).names
    cache = tokened()
    cache.save(folder / ".hidden.safetensors")
    cache.save(folder / "other")
    AttentionCache.create(folder / ".hidden").close()
    AttentionCache.create(folder / "nested" / "run").close()
    (folder / ".run-9.safetensors.saving").write_bytes(b"")
    (folder / "notes.txt").write_text("not a run")
    (folder / "named.safetensors").mkdir()
    (folder / "nowhere.safetensors").symlink_to(folder / "nothing")
    (folder / "manifest").mkdir()
    assert open_runs(folder).names == names


def test_a_directory_without_runs_has_none(tmp_path: Path) -> None:
    runs = open_runs(tmp_path)
    assert len(runs) == 0
    assert list(runs) == []
    assert runs.names == ()
    assert map_runs(number, tmp_path) == []


def test_runs_are_those_that_were_there_when_the_directory_was_looked_at(folder: Path) -> None:
    runs = open_runs(folder)
    tokened().save(folder / "run-6.safetensors")
    (folder / "run-1.safetensors").unlink()
    assert len(runs) == 5
    with pytest.raises(FileNotFoundError, match=r"run-1\.safetensors"):
        runs[0]
    assert open_runs(folder).names == ("run-2", "run-3.safetensors", "run-4", "run-5.safetensors", "run-6.safetensors")


def test_runs_are_chosen_by_number_slice_and_name(folder: Path) -> None:
    runs = open_runs(str(folder))
    assert [number(runs[at]) for at in (0, 4, -1, np.int64(-5))] == [1, 5, 5, 1]
    assert [number(cache) for cache in runs[1:4]] == [2, 3, 4]
    assert [number(cache) for cache in runs[::-2]] == [5, 3, 1]
    assert [number(cache) for cache in reversed(runs)] == [5, 4, 3, 2, 1]
    assert number(runs["run-2"]) == 2
    assert number(runs[2:]["run-3.safetensors"]) == 3
    assert "run-2" in runs
    assert "run-2" not in runs[2:]
    assert runs.path("run-2") == folder / "run-2"
    assert runs.directory == folder
    assert repr(runs) == f"Runs(5 runs in {folder})"
    assert repr(runs[:1]) == f"Runs(1 run in {folder})"


def test_a_run_is_the_cache_that_was_saved(tmp_path: Path) -> None:
    saved = {"all.safetensors": everything(), "few.safetensors": tokened()}
    for name, cache in saved.items():
        cache.save(tmp_path / name)
    runs = open_runs(tmp_path)
    assert [state(run) for run in runs] == [state(cache) for cache in saved.values()]
    assert [run.path for run in runs] == [tmp_path / name for name in runs.names]


def test_a_run_is_opened_when_it_is_reached_and_open_only_while_it_is_held(folder: Path, opened: Opened) -> None:
    runs = open_runs(folder)
    assert len(runs[1:]) == 4
    assert "run-2" in runs
    assert (opened.names, opened.n_alive) == ([], 0)
    steps = iter(runs)
    assert opened.names == []
    held = next(steps)
    assert (opened.names, opened.n_alive) == (["run-1.safetensors"], 1)
    del held
    assert opened.n_alive == 0
    for n, cache in enumerate(steps, start=2):
        assert number(cache) == n
        assert len(opened.names) == n
        assert opened.n_alive == 1
    assert runs["run-2"].n_layers == 1
    assert opened.names[-1] == "run-2"


def test_an_index_error_while_a_run_is_opened_does_not_look_like_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path) -> AttentionCache:
        raise IndexError("while opening")

    monkeypatch.setattr(AttentionCache, "load", load)
    with pytest.raises(IndexError, match="while opening"):
        list(open_runs(folder))


def test_runs_pickle_as_names(folder: Path) -> None:
    runs = open_runs(folder)[1:3]
    raw = pickle.dumps(runs)
    assert len(raw) < 1000
    again = pickle.loads(raw)
    assert (again.names, [number(cache) for cache in again]) == (runs.names, [2, 3])


def test_a_relative_directory_is_found_from_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    runs = open_runs("runs")
    monkeypatch.chdir("/")
    assert number(runs[-1]) == 5
    assert map_runs(number, runs) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("which", "error", "message"),
    [
        (5, IndexError, "run 5 is out of range for 5 runs in "),
        (-6, IndexError, "run -6 is out of range for 5 runs in "),
        ("run-6", KeyError, "'run-6' is not the name of a run in "),
        ("run-1", KeyError, "'run-1' is not the name of a run in "),
        (1.0, TypeError, "a run is chosen by an int, a slice or its name, got float"),
        (None, TypeError, "a run is chosen by an int, a slice or its name, got NoneType"),
    ],
)
def test_what_chooses_no_run_is_refused(folder: Path, which: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        open_runs(folder)[which]


@pytest.mark.parametrize("call", [open_runs, lambda directory: map_runs(number, directory)], ids=["open", "map"])
def test_what_is_no_directory_of_runs_is_refused(folder: Path, call: Callable[[Any], object]) -> None:
    with pytest.raises(FileNotFoundError, match=r"^/.*nothing: directory must exist; capture or save runs"):
        call(folder / "nothing")
    with pytest.raises(
        NotADirectoryError, match=r"^/.*run-1\.safetensors: directory .*, got a file; AttentionCache\.load"
    ):
        call(folder / "run-1.safetensors")
    with pytest.raises(
        ValueError, match=r"run-2: directory must hold runs, got one that is a run; AttentionCache\.load"
    ):
        call(folder / "run-2")
    with pytest.raises(TypeError, match="directory must be a string or a path, got int"):
        call(3)
