"""How arrays of others are read by their axes: what ``axes=`` says, what is read without it, and what is refused.

Covered: every order of named axes, views of NumPy and torch alike, the refusals; from_attentions with one array and
with several, in memory and in files of h5py and zarr. Not covered here: files and TransformerLens, which have tests of
their own.
"""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache
from attncache.axes import WORDS, of_one_array, of_one_layer
from tests.support.patterns import Array, assert_same, make


@pytest.mark.parametrize("n_axes", [2, 3, 4, 5])
def test_named_axes_are_found_in_any_order(n_axes: int) -> None:
    sizes = dict(zip(WORDS, (2, 3, 4, 5, 6), strict=True))
    names = WORDS[-n_axes:]
    weights = np.arange(np.prod([sizes[name] for name in names])).reshape([sizes[name] for name in names])
    whole = weights.reshape([sizes[name] if name in names else 1 for name in WORDS])
    for order in permutations(names):
        array = weights.transpose([names.index(name) for name in order])
        arrangement = of_one_array(array.shape, order)
        assert arrangement.n_layers == len(whole)
        for layer in range(len(whole)):
            view = arrangement.layer(array, layer)
            assert view.shape == arrangement.layer_shape
            assert np.shares_memory(view, weights)
            np.testing.assert_array_equal(view, whole[layer])


def test_axes_are_named_in_a_string_or_a_sequence() -> None:
    same = ("layer head query key", "layer, head, query, key", ["layer", "head", "query", "key"])
    assert {of_one_array((6, 3, 8, 8), axes).names for axes in same} == {("layer", "head", "query", "key")}


def test_without_names_arrays_are_read_as_documented() -> None:
    assert of_one_array((6, 2, 3, 8, 8)).n_layers == 6
    assert of_one_array((1, 1, 3, 8, 8)).layer_shape == (1, 3, 8, 8)
    assert of_one_array((1, 3, 8, 8)).layer_shape == (1, 3, 8, 8)
    assert of_one_array((3, 8, 8)).layer_shape == (1, 3, 8, 8)
    assert of_one_layer((2, 3, 8, 8)).layer_shape == (2, 3, 8, 8)
    assert of_one_layer((3, 8, 8)).layer_shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("shape", "ways_out"),
    [
        ((6, 3, 8, 8), ['axes="layer head query key"', 'axes="batch head query key"']),
        ((1, 6, 3, 8, 8), ['axes="batch layer head query key"', 'axes="layer batch head query key"']),
        ((8, 8), ["axes="]),
        ((1, 1, 6, 3, 8, 8), ["axes="]),
    ],
)
def test_an_array_of_unclear_axes_is_refused_with_the_ways_out(shape: tuple[int, ...], ways_out: list[str]) -> None:
    with pytest.raises(ValueError, match="axes") as error:
        of_one_array(shape)
    assert str(list(shape)) in str(error.value)
    assert all(way in str(error.value) for way in ways_out)


@pytest.mark.parametrize(
    ("axes", "kind", "message"),
    [
        (5, TypeError, "axes must be a string or a sequence of strings"),
        (["layer", 3], TypeError, "axes must be a string or a sequence of strings"),
        ("layer head query position", ValueError, "got 'position'"),
        ("query query key", ValueError, "no axis twice"),
        ("layer head query", ValueError, "must name query and key"),
        ("head query key", ValueError, "each of the 4 axes"),
    ],
)
def test_wrong_names_of_axes_are_refused(axes: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        of_one_array((6, 3, 8, 8), axes)  # type: ignore[arg-type]


# What takes them.

LAYERS = np.stack([make("causal", (2, 3, 4, 4), "float32", layer) for layer in range(5)])  # [layer, batch, head, ..]


@pytest.mark.parametrize(
    ("array", "axes", "expected"),
    [
        (LAYERS[:, 0], "layer head query key", LAYERS[:, :1]),
        (LAYERS[:, 0].transpose(1, 0, 3, 2), ("head", "layer", "key", "query"), LAYERS[:, :1]),
        (LAYERS[0], "batch head query key", LAYERS[:1]),
        (LAYERS.swapaxes(0, 1), "batch layer head query key", LAYERS),
        (LAYERS[0, 0, 0], "query key", LAYERS[:1, :1, :1]),
        (LAYERS[:, 0, 0], "layer, query, key", LAYERS[:, :1, :1]),
        (LAYERS, None, LAYERS),
        (LAYERS[0, :1], None, LAYERS[:1, :1]),
        (LAYERS[0, 0], None, LAYERS[:1, :1]),
    ],
    ids=lambda value: str(value) if isinstance(value, str | tuple) else "",
)
@pytest.mark.parametrize("kind", ["numpy", "torch", "torch with gradient", "h5py", "zarr"])
def test_one_array_gives_its_layers(array: Array, axes: Any, expected: Array, kind: str, tmp_path: Path) -> None:
    given = handed_in(array, kind, tmp_path)
    assert_same(AttentionCache.from_attentions(given, axes=axes).patterns, tuple(expected))


def handed_in(array: Array, kind: str, folder: Path) -> Any:
    """The array as that library has it."""
    if kind.startswith("torch"):
        torch = pytest.importorskip("torch", reason="needs torch")
        return torch.from_numpy(array.copy()).requires_grad_(kind == "torch with gradient")
    if kind == "h5py":
        h5py = pytest.importorskip("h5py", reason="needs h5py")
        return h5py.File(folder / "a.h5", "w").create_dataset("a", data=array)
    if kind == "zarr":
        zarr = pytest.importorskip("zarr", reason="needs zarr")
        return zarr.array(array, store=str(folder / "a.zarr"))
    return array


def test_a_file_of_h5py_gives_its_layers_by_name(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number in (10, 9):
            file[f"layer_{number}"] = LAYERS[number - 9]
        cache = AttentionCache.from_attentions(file)
    assert_same(cache.patterns, tuple(LAYERS[:2]))
    assert [source and source.layer for source in cache.sources] == [9, 10]


@pytest.mark.parametrize("kind", [list, dict], ids=["list", "mapping"])
def test_several_arrays_count_the_axis_that_is_not_named(kind: Any) -> None:
    def given(arrays: list[Array]) -> Any:
        return arrays if kind is list else dict(enumerate(arrays))

    of_layers = given([layer.transpose(2, 3, 1, 0) for layer in LAYERS])
    of_items = given([LAYERS[:, item].transpose(1, 0, 2, 3) for item in range(2)])
    flat = given([layer[0] for layer in LAYERS])
    for attentions, axes, expected in (
        (of_layers, "query key head batch", LAYERS),
        (of_items, "head layer query key", LAYERS),
        (flat, "head query key", LAYERS[:, :1]),
    ):
        assert_same(AttentionCache.from_attentions(attentions, axes=axes).patterns, tuple(expected))


@pytest.mark.parametrize(
    ("attentions", "axes", "words"),
    [
        ([LAYERS, LAYERS], "layer batch head query key", "axes must leave out layer or batch .* for 2 arrays"),
        (
            [LAYERS[:, 0], LAYERS[:3, 0]],
            "layer head query key",
            r"attentions\[1\] must have the shape of attentions\[0\]",
        ),
        (
            [LAYERS[:, 0], LAYERS[:, 0].astype(np.float16)],
            "layer head query key",
            r"attentions\[1\] must have the dtype of attentions\[0\], float32, got float16",
        ),
        ([LAYERS[0]], "head query key", r"attentions\[0\]: axes must name each of the 4 axes"),
        (LAYERS, "head query key", "axes must name each of the 5 axes"),
    ],
)
def test_axes_that_do_not_fit_the_arrays_are_refused(attentions: Any, axes: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AttentionCache.from_attentions(attentions, axes=axes)
