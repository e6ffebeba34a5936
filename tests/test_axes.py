"""How arrays of others are read by their axes: what ``axes=`` says, what is read without it, and what is refused.

Covered: every order of named axes, views of NumPy and torch alike, the refusals. Not covered here: the
functions that take ``axes=``, which have tests of their own.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from attncache.axes import WORDS, of_one_array, of_one_layer


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
