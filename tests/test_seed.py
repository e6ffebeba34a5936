"""The nine behaviours of candle-mi's AttentionCache, from which this library started, in Python.

Sizes: one layer of two heads over four positions. Tolerance: none; the worked numbers are written as the float32 sums
they are, (0.25 + 0.7) / 2 and (0.25 + 0.1) / 2. Not covered: everything that goes past the seed.
"""

from __future__ import annotations

import numpy as np
import pytest

from attncache import AttentionCache

HEAVY = float((np.float32(0.25) + np.float32(0.7)) / np.float32(2))
LIGHT = float((np.float32(0.25) + np.float32(0.1)) / np.float32(2))


@pytest.fixture
def cache() -> AttentionCache:
    """One layer: a uniform head, and a head that attends 0.7 to itself and 0.1 to each other position."""
    pattern = np.full((1, 2, 4, 4), 0.25, np.float32)
    pattern[0, 1] = 0.1
    pattern[0, 1][np.diag_indices(4)] = 0.7
    cache = AttentionCache.with_capacity(1)
    cache.push(pattern)
    return cache


def test_the_worked_numbers_are_what_they_look_like() -> None:
    assert abs(HEAVY - 0.475) < 1e-7
    assert abs(LIGHT - 0.175) < 1e-7


def test_an_empty_cache_has_no_layers_and_gives_none() -> None:
    for cache in (AttentionCache(), AttentionCache.with_capacity(32)):
        assert cache.n_layers == 0
        assert cache.is_empty
        assert cache.get_layer(0) is None


def test_a_pushed_layer_comes_back_with_its_shape(cache: AttentionCache) -> None:
    assert cache.n_layers == 1
    assert not cache.is_empty
    layer = cache.get_layer(0)
    assert layer is not None
    assert layer.shape == (1, 2, 4, 4)
    assert cache.get_layer(1) is None


def test_attention_from_a_position_is_the_mean_over_heads(cache: AttentionCache) -> None:
    assert cache.attention_from_position(0, 0).tolist() == [HEAVY, LIGHT, LIGHT, LIGHT]


def test_attention_to_a_position_is_the_mean_over_heads(cache: AttentionCache) -> None:
    assert cache.attention_to_position(0, 0).tolist() == [HEAVY, LIGHT, LIGHT, LIGHT]


def test_a_position_out_of_range_raises(cache: AttentionCache) -> None:
    for query in (cache.attention_from_position, cache.attention_to_position):
        with pytest.raises(IndexError, match="position 10 is out of range"):
            query(0, 10)
    with pytest.raises(IndexError, match="from_position 10 is out of range"):
        cache.top_attended_positions(0, 10, 2)


def test_a_layer_out_of_range_raises(cache: AttentionCache) -> None:
    for query in (cache.attention_from_position, cache.attention_to_position):
        with pytest.raises(IndexError, match="layer 5 is out of range for n_layers=1"):
            query(5, 0)
    with pytest.raises(IndexError, match="layer 5 is out of range for n_layers=1"):
        cache.top_attended_positions(5, 0, 2)


def test_the_top_positions_are_sorted_heaviest_first(cache: AttentionCache) -> None:
    assert cache.top_attended_positions(0, 0, 2) == [(0, HEAVY), (1, LIGHT)]
    assert cache.top_attended_positions(0, 3, 2) == [(3, HEAVY), (0, LIGHT)]


def test_more_top_positions_than_there_are_gives_all(cache: AttentionCache) -> None:
    assert cache.top_attended_positions(0, 0, 100) == [(0, HEAVY), (1, LIGHT), (2, LIGHT), (3, LIGHT)]


def test_patterns_has_one_entry_per_layer(cache: AttentionCache) -> None:
    assert len(cache.patterns) == 1
    assert cache.patterns[0].shape == (1, 2, 4, 4)
