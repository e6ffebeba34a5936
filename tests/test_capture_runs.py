"""``attncache.capture_runs``: each forward of a model is a run of its own, in memory or in a directory.

Covered: which forwards become runs, what each holds and is called, failing forwards, models that call themselves, other threads,
warnings, wrong arguments. Sizes: two layers of 2 heads over 3 to 6 positions. Results are exact.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, CaptureWarning, LayerSource, capture, capture_runs, map_runs, open_runs

torch = pytest.importorskip("torch", reason="capture needs torch")

pytestmark = pytest.mark.usefixtures("without_gradients")


class Model(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Two layers of attention without weights of their own; fails on input that is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer() for _ in range(2))

    def forward(self, x: Any, again: bool = False) -> Any:
        for layer in self.layers:
            x = layer(x)
            if not bool(x.isfinite().all()):
                raise RuntimeError("the model failed")
        return self(x) if again else x


class Layer(torch.nn.Module):  # type: ignore[misc, name-defined]
    def forward(self, x: Any) -> Any:
        heads = x.unflatten(-1, (2, -1)).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)


def text(length: int) -> Any:
    return torch.randn(1, length, 8, generator=torch.Generator().manual_seed(length))


def pattern(x: Any) -> Any:
    """The first layer's, by hand."""
    heads = x.double().unflatten(-1, (2, -1)).transpose(1, 2)
    return (heads @ heads.mT / 2).softmax(-1).numpy()


def test_each_forward_is_a_run_in_memory() -> None:
    model = Model()
    with capture_runs(model, dtype="float32") as runs:
        for number, length in enumerate((3, 5, 4)):
            model(text(length))
            assert len(runs) == number + 1
    assert [cache.shapes for cache in runs] == [((1, 2, n, n),) * 2 for n in (3, 5, 4)]
    for cache, length in zip(runs, (3, 5, 4), strict=True):
        assert np.abs(cache.edges(None, None, layers=0) - pattern(text(length))[0]).max() < 1e-6
    assert [cache.metadata["forward"] for cache in runs] == [0, 1, 2]
    assert runs[1].sources[1] == LayerSource("layers.1", layer=1, kind="self", seam="sdpa")


@pytest.mark.parametrize("store", ["pattern", "qk"])
def test_each_forward_is_a_run_in_a_directory(tmp_path: Path, store: Any) -> None:
    model = Model()
    with capture_runs(model, tmp_path / "new" / "runs", store=store, every=2) as runs:
        for length in (3, 4, 5, 6):
            model(text(length))
    assert runs.names == open_runs(tmp_path / "new" / "runs").names == ("forward-0", "forward-2")
    assert [cache.shapes[0][2] for cache in runs] == [3, 5]
    assert map_runs(lambda cache: (cache.metadata["forward"], cache.kinds), runs, progress=False) == [
        (0, ("factored" if store == "qk" else "dense",) * 2),
        (2, ("factored" if store == "qk" else "dense",) * 2),
    ]
    assert sorted(path.name for path in runs.directory.iterdir()) == ["forward-0", "forward-2"]


def test_a_forward_that_fails_leaves_no_run(tmp_path: Path) -> None:
    model = Model()
    bad = text(3) * torch.nan
    for directory in (None, tmp_path):
        with capture_runs(model, directory, check=False) as runs:  # type: ignore[call-overload]
            model(text(3))
            with pytest.raises(RuntimeError, match="the model failed"):
                model(bad)
            try:
                raise KeyError
            except KeyError:
                model(text(4))  # an error that is being handled is none of this forward
        assert [cache.metadata["forward"] for cache in runs] == [0, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forward-0", "forward-2"]


def test_a_run_that_cannot_be_captured_leaves_nothing(tmp_path: Path) -> None:
    model = Model()
    with capture_runs(model, tmp_path, layers=[0, 7]) as runs, pytest.raises(ValueError, match="got none of layer 7"):
        model(text(3))
    assert len(runs) == 0
    assert not list(tmp_path.iterdir())
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_what_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    class Interrupted(Layer):
        def forward(self, _: Any) -> Any:
            raise KeyboardInterrupt

    model = Model()
    model.layers[1] = Interrupted()
    with pytest.raises(KeyboardInterrupt), capture_runs(model, tmp_path):
        model(text(3))
    assert not list(tmp_path.iterdir())
    assert not torch._C._len_torch_function_stack()


def test_a_model_that_calls_itself_is_one_run() -> None:
    model = Model()
    with capture_runs(model) as runs:
        model(text(3), again=True)
    assert [(source.module, source.call) for source in runs[0].sources if source] == [
        ("layers.0", 0),
        ("layers.1", 0),
        ("layers.0", 1),
        ("layers.1", 1),
    ]


def test_a_model_that_was_not_called_itself_says_so() -> None:
    model = Model()
    words = "no forward of this Model ran: capture_runs counts calls"
    with pytest.warns(CaptureWarning, match=words) as seen, capture_runs(model) as runs:
        model.layers[0](text(3))
    assert runs == []
    assert seen[0].filename == __file__


def test_forwards_of_other_threads_are_none_of_its_runs() -> None:
    model = Model()
    with capture_runs(model) as runs:
        model(text(3))
        thread = threading.Thread(target=model, args=(text(4),))
        thread.start()
        thread.join()
    assert [cache.shapes[0] for cache in runs] == [(1, 2, 3, 3)]


def test_a_directory_with_earlier_runs_is_refused_and_one_with_others_is_not(tmp_path: Path) -> None:
    model = Model()
    AttentionCache.create(tmp_path / "prompt-1").close()
    with capture_runs(model, tmp_path) as runs:
        model(text(3))
    assert runs.names == ("forward-0",)
    with pytest.raises(FileExistsError, match="must hold no runs of an earlier call, got forward-0"):
        capture_runs(model, tmp_path).__enter__()
    assert open_runs(tmp_path).names == ("forward-0", "prompt-1")


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"every": 0}, ValueError, "every must be 1 or more, got 0"),
        ({"every": 1.0}, TypeError, "every must be an int, got float"),
        ({"directory": 3}, TypeError, "directory must be None, a string or a path, got int"),
        ({"store": "dense"}, ValueError, "store must be 'pattern' or 'qk', got 'dense'"),
        ({"layers": "*.attn"}, ValueError, "layers must name modules of the model, got '\\*.attn', which is none"),
    ],
)
def test_a_wrong_argument_is_named(arguments: Any, kind: type[Exception], words: str) -> None:
    model = Model()
    with pytest.raises(kind, match=words), capture_runs(model, **arguments):
        pass
    assert not model._forward_hooks


def test_runs_without_with_say_how_they_are_used() -> None:
    with pytest.raises(AttributeError, match=r"before it begins: with attncache\.capture_runs\(model\) as runs"):
        capture_runs(Model()).append(3)  # type: ignore[attr-defined]


def test_a_second_forward_in_a_plain_capture_names_capture_runs() -> None:
    model = Model()
    with capture(model):
        model(text(3))
        with pytest.raises(ValueError, match=r"or attncache\.capture_runs, which keeps each as a run"):
            model(text(3) + 1)


def test_runs_name_what_they_do_not_hear() -> None:
    class Talks(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            heads = x.unflatten(-1, (2, -1)).transpose(1, 2)
            return (heads @ heads.mT).softmax(-1).flip(1).add(0.5) @ heads

    model = Model()
    model.layers[1] = Talks()
    words = r"layers\.1 passes its softmax through flip before it multiplies"
    with pytest.warns(CaptureWarning, match=words), capture_runs(model) as runs:
        model(text(3))
    assert [source.module for source in runs[0].sources if source] == ["layers.0"]
