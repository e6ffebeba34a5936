"""Hypothesis strategies: shapes, selectors and heads arguments, in every form the contract names.

Covered: None, integers of both signs (Python's and NumPy's), slices of any step, lists, tuples, ranges and integer
arrays with duplicates, out of order and empty. Not covered: wrong kinds and values; test_contracts.py has those.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.support.patterns import KINDS, Shape

shapes: st.SearchStrategy[Shape] = st.tuples(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 40)
)
kinds = st.sampled_from(sorted(KINDS))


def indices(size: int) -> st.SearchStrategy[Any]:
    """One index of an axis of `size`, negative ones and NumPy's integers included; nothing for an empty axis."""
    if size == 0:
        return st.nothing()
    plain = st.integers(-size, size - 1)
    return plain | plain.map(np.int64) | plain.map(np.int32) | st.integers(0, size - 1).map(np.uint8)


def sequences(size: int) -> st.SearchStrategy[Any]:
    """A sequence of indices: list, tuple, integer array or range."""
    lists = st.lists(st.integers(-size, size - 1) if size else st.nothing(), max_size=2 * size + 1)
    integers = st.sampled_from([np.int64, np.int32, np.int8, np.intp])
    arrays = st.tuples(lists, integers).map(lambda drawn: np.array(*drawn))
    ranges = st.integers(0, size).flatmap(lambda stop: st.integers(0, stop).map(lambda start: range(start, stop)))
    return lists | lists.map(tuple) | arrays | ranges | ranges.map(lambda r: r[::-1])


def slices(size: int) -> st.SearchStrategy[slice]:
    """Any slice, also one that reaches past the axis."""
    bound = st.none() | st.integers(-size - 3, size + 3)
    return st.builds(slice, bound, bound, st.none() | st.sampled_from([1, 2, 3, -1, -2, size + 5]))


def selectors(size: int) -> st.SearchStrategy[Any]:
    """Whatever may select along an axis of `size`."""
    return st.none() | indices(size) | slices(size) | sequences(size)


def heads_arguments(n_heads: int) -> st.SearchStrategy[Any]:
    """Whatever `heads` takes: a selector, "mean", or ("mean", a selector that keeps the axis)."""
    kept = st.none() | slices(n_heads) | sequences(n_heads)
    return st.just("mean") | selectors(n_heads) | kept.map(lambda selector: ("mean", selector))
