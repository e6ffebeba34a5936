"""``attncache.capture`` straight into a directory.

Covered: both stores, one forward and a generation, models with padding, windows and sinks; compared bit by bit with the
same capture in memory; what is on disk while the model runs; refusals and failures. Sizes: those of support/capturing.py.
Not covered: memory while a large model runs (tests/proofs/long_context.py measures captures in memory).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

pytest.importorskip("torch", reason="capture needs torch")
pytest.importorskip("transformers", reason="capture needs transformers")


from attncache import AttentionCache, capture
from attncache.files import InUseError
from tests.support.capturing import CAUSAL, MAKERS, N_LAYERS, inputs, make

pytestmark = pytest.mark.usefixtures("without_gradients")


def run(model: Any, is_generation: bool) -> None:
    if is_generation:
        model.generate(**inputs("left"), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    else:
        model(**inputs("left"))


def assert_same(one: AttentionCache, other: AttentionCache) -> None:
    assert (one.shapes, one.dtypes, one.kinds) == (other.shapes, other.dtypes, other.kinds)
    every = slice(None)
    for layer in range(one.n_layers):
        mine, theirs = (each.edges(None, None, layers=layer, heads=None, batch=every) for each in (one, other))
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("store", ["pattern", "qk"])
@pytest.mark.parametrize("is_generation", [False, True], ids=["forward", "generation"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_capture_leaves_the_same_bits_on_disk_as_in_memory(
    name: str, is_generation: bool, store: Any, tmp_path: Path
) -> None:
    if is_generation and name not in CAUSAL:
        return
    model = make(name)
    with capture(model, store) as in_memory:
        run(model, is_generation)
    with capture(model, store, into=tmp_path / "run") as on_disk:
        run(model, is_generation)
    assert_same(on_disk, in_memory)
    assert_same(AttentionCache.load(tmp_path / "run", verify=True), in_memory)
    assert len(list((tmp_path / "run").glob("*.safetensors"))) == N_LAYERS  # steps are joined at the end


def test_a_reader_sees_each_layer_as_soon_as_it_has_run(tmp_path: Path) -> None:
    model, seen = make(CAUSAL[0]), []
    layers = model.model.layers
    hook = layers[-1].register_forward_pre_hook(lambda *_: seen.append(AttentionCache.load(tmp_path / "run").n_layers))
    try:
        with capture(model, into=tmp_path / "run"):
            run(model, False)
    finally:
        hook.remove()
    assert seen == [N_LAYERS - 1]


def test_tokens_and_metadata_may_follow_after_the_capture(tmp_path: Path) -> None:
    model = make(CAUSAL[0])
    with capture(model, into=tmp_path / "run") as cache:
        run(model, False)
    cache.tokens = [str(number) for number in range(cache.shapes[0][3])]
    cache.metadata = {"model": "tiny"}
    found = AttentionCache.load(tmp_path / "run")
    assert (found.tokens, found.metadata["model"]) == (cache.tokens, "tiny")


def test_a_directory_with_layers_is_refused_and_let_go(tmp_path: Path) -> None:
    model = make(CAUSAL[0])
    with AttentionCache.create(tmp_path / "run") as cache:
        cache.push(np.ones((1, 1, 1, 1), np.float32))
    with (
        pytest.raises(ValueError, match=r"into must be a directory without layers, got .* with 1"),
        capture(model, into=tmp_path / "run"),
    ):
        raise AssertionError("not reached")
    AttentionCache.create(tmp_path / "run").close()


def test_a_directory_that_another_writer_has_open_is_refused(tmp_path: Path) -> None:
    model = make(CAUSAL[0])
    with AttentionCache.create(tmp_path / "run"), pytest.raises(InUseError), capture(model, into=tmp_path / "run"):
        raise AssertionError("not reached")


def test_after_a_failure_the_directory_has_what_came_before_and_another_writer_may_go_on(tmp_path: Path) -> None:
    model = make(CAUSAL[0])

    def captured() -> None:
        with capture(model, into=tmp_path / "run"):
            run(model, False)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        captured()
    with AttentionCache.create(tmp_path / "run") as cache:
        assert cache.n_layers == N_LAYERS


@pytest.mark.parametrize("store", ["pattern", "qk"])
def test_generation_is_captured_in_bfloat16_without_ml_dtypes(
    store: Literal["pattern", "qk"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    model = make("llama: grouped heads")
    with capture(model, store, dtype="bfloat16") as cache:
        output = model.generate(**inputs(), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert set(cache.dtypes) == {"bfloat16"}
    assert {shape[2:] for shape in cache.shapes} == {(output.shape[1] - 1,) * 2}
