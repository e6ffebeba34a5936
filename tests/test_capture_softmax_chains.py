"""Random chains of what may lie between a softmax and its product: what is captured is what multiplies, told by NumPy."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncache import CaptureWarning, capture

pytest.importorskip("torch", reason="capture needs torch")

import torch

from tests.support.attending import Array, Attends, Model, drawn, patterns

LINKS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[Array], Array]]] = {
    "transpose": (lambda w: w.transpose(1, 2), lambda w: w.swapaxes(1, 2)),
    "permute": (lambda w: w.permute(1, 0, *range(2, w.ndim)), lambda w: w.swapaxes(0, 1)),
    "mT": (lambda w: w.mT, lambda w: w.swapaxes(-1, -2)),
    "fold": (lambda w: w.flatten(0, 1) if w.ndim > 3 else w, lambda w: w.reshape(-1, *w.shape[2:]) if w.ndim > 3 else w),
    "unsqueeze": (lambda w: w.unsqueeze(1), lambda w: w[:, None]),
    "none": (lambda w: w[:, None], lambda w: w[:, None]),
    "first": (lambda w: w[:1], lambda w: w[:1]),
    "all but the last": (lambda w: w[..., :-1], lambda w: w[..., :-1]),
    "every other": (lambda w: w[:, ::2], lambda w: w[:, ::2]),
    "half": (lambda w: w * 0.5, lambda w: w * 0.5),
    "clone": (lambda w: w.clone(), lambda w: w),
    "double": (lambda w: w.double(), lambda w: w),
    "expand": (lambda w: w[None].expand(2, *w.shape), lambda w: np.broadcast_to(w, (2, *w.shape))),
}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(LINKS)), max_size=6),
    st.lists(st.integers(1, 4), min_size=3, max_size=4),
    st.integers(0, 3),
)
def test_any_chain_of_views_and_numbers_gives_what_multiplies(links: list[str], shape: list[int], axis: int) -> None:
    axis = axis % len(shape)
    shape[axis] += 1  # two keys or more, so that the axis is told by what is summed
    scores = drawn(*shape)
    expected = scores.double().softmax(axis).numpy()
    marks = np.zeros(shape)  # which key each weight is of
    marks += np.arange(shape[axis]).reshape([-1 if each == axis else 1 for each in range(len(shape))])
    for link in links:
        expected, marks = LINKS[link][1](expected), LINKS[link][1](marks) if link != "half" else marks
    is_over_keys = marks.shape[-1] > 1 and marks.size and (np.diff(marks, axis=-1) != 0).all()

    def attend() -> None:
        weights = scores.softmax(axis)
        for link in links:
            weights = LINKS[link][0](weights)
        weights @ torch.ones(*weights.shape[:-2], weights.shape[-1], 2, dtype=weights.dtype)

    model = Model(attn=Attends(attend))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the capture saw no attention", CaptureWarning)
        with capture(model, dtype="float32", n_heads=1) as cache:
            model(torch.zeros(1))
    found = patterns(cache)
    if is_over_keys:
        (pattern,) = found
        np.testing.assert_allclose(pattern.reshape(expected.shape), expected, rtol=0, atol=2e-7)
    elif marks.size and marks.shape[-1] > 1:
        assert not found
