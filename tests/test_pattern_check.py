"""The look at what is pushed: which layers are warned of, once per cache and at the user's line, and that they are stored.

Covered: scores, rows above 1, axes the wrong way round, in every dtype and layout; patterns of every kind that must not
be warned of; caches in memory and on disk; every way in; queries and keys with heads and positions exchanged.
Sizes: [2, 3, 4, 4] unless said; rows of up to 40,000 keys for the bound on what is read.
Not covered: layers on a device, which are not looked at.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, PatternWarning
from attncache._core import row_sample
from tests.support.patterns import DTYPES, Array, assert_same, make, rng, strided

SHAPE = (2, 3, 4, 4)
SCORES = rng("scores").normal(0, 5, SHAPE).astype(np.float32)


def warned(push: Any) -> list[warnings.WarningMessage]:
    """The warnings of one call, in the order in which they are given."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        push()
    return heard


def test_scores_before_the_softmax_are_named_and_stored_as_they_are() -> None:
    cache = AttentionCache()
    words = r"layer 0 does not look like attention weights: its rows sum to between -\d.* and \d.* and hold negative"
    with pytest.warns(PatternWarning, match=rf"{words} numbers: are these scores before the softmax\?.*check=False"):
        cache.push(SCORES)
    assert_same(cache[0], SCORES)


@pytest.mark.parametrize("name", ["other axis", "dropout"])
def test_rows_above_one_are_named(name: str, dtype: str) -> None:
    weights = {
        "other axis": make("soft", (1, 2, 12, 3)).swapaxes(2, 3)[..., :2],
        "dropout": make("causal", SHAPE) / np.float32(0.9),
    }[name]
    cache = AttentionCache()
    with pytest.warns(PatternWarning, match=r"its rows sum to up to 1\.\d+: was the softmax taken over another axis"):
        cache.push((weights / weights.sum(-1).max() * 1.1).astype(DTYPES[dtype]))


@pytest.mark.parametrize("layout", list(strided(SCORES)))
def test_every_layout_is_looked_at(layout: str) -> None:
    assert len(warned(lambda: AttentionCache().push(strided(SCORES)[layout]))) == 1
    assert warned(lambda: AttentionCache().push(strided(make("soft", SHAPE))[layout])) == []


@pytest.mark.parametrize("kind", ["soft", "causal"])
@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1, 1), (1, 2, 300, 300), (0, 2, 3, 3), (1, 2, 0, 3), (1, 2, 3, 0)])
def test_weights_are_not_warned_of(kind: str, shape: Any, dtype: str) -> None:
    assert warned(lambda: AttentionCache().push(make(kind, shape, dtype))) == []


def test_rows_with_nan_are_not_judged_and_rows_below_one_are_none_of_our_business() -> None:
    holes = SCORES.copy()
    holes[..., 0] = np.nan
    for pattern in (holes, np.full(SHAPE, np.inf, np.float32), make("soft", SHAPE) / 3, np.zeros(SHAPE, np.float32)):
        assert warned(lambda pattern=pattern: AttentionCache().push(pattern)) == []


def test_one_cache_warns_once_and_another_again() -> None:
    cache = AttentionCache()
    assert len(warned(lambda: cache.push(SCORES))) == 1
    assert warned(lambda: cache.push(SCORES)) == []
    assert len(warned(lambda: AttentionCache().push(SCORES))) == 1


def test_a_warning_made_an_error_leaves_the_cache_as_it_was() -> None:
    cache = AttentionCache()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PatternWarning):
            cache.push(SCORES)
    assert cache.is_empty


WAYS_IN: dict[str, Any] = {
    "push": lambda **check: AttentionCache().push(SCORES, **check),
    "from_attentions": lambda **check: AttentionCache.from_attentions([SCORES, SCORES], **check),
    "from_transformer_lens": lambda **check: AttentionCache.from_transformer_lens({("attn", 0): SCORES}, **check),
}


@pytest.mark.parametrize("way", WAYS_IN)
def test_the_warning_is_of_the_line_that_called_us_and_can_be_left_out(way: str) -> None:
    (warning,) = warned(WAYS_IN[way])
    assert (warning.category, warning.filename) == (PatternWarning, __file__)
    assert warned(lambda: WAYS_IN[way](check=False)) == []


def test_a_cache_on_disk_warns_as_one_in_memory(tmp_path: Path) -> None:
    with AttentionCache.create(tmp_path / "run") as cache:
        cache.push(make("soft", SHAPE))
        cache.push(SCORES, check=False)
        (warning,) = warned(lambda: cache.push(SCORES))
        assert "layer 2 does not look like" in str(warning.message)
        assert warning.filename == __file__
        assert warned(lambda: cache.push(SCORES)) == []
        assert cache.n_layers == 4


def test_layers_computed_from_queries_and_keys_are_not_looked_at() -> None:
    assert warned(lambda: AttentionCache().push_qk(SCORES, SCORES)) == []


@pytest.mark.parametrize("n_keys", [1, 15, 16, 17, 1000, 1024, 16384, 40000])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_sample_is_of_whole_rows_up_to_a_bound(n_keys: int, dtype: str) -> None:
    random = rng("sample", n_keys)
    rows = random.integers(-3, 4, (1, 1, 16, n_keys)).astype(dtype) / 4  # whose sums are exact
    n_read = min(n_keys, 16384)
    n_rows = min(16, 16384 // n_read)
    numbers = [15 - i * 16 // n_rows for i in range(n_rows)]
    sums = rows[0, 0, numbers, :n_read].astype(np.float64).sum(axis=1)
    expected = n_rows, min(0, rows[0, 0, numbers, :n_read].min()), sums.min(), sums.max()
    assert row_sample(rows, dtype) == expected


# Queries and keys.


def zeros(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


def test_positions_before_heads_that_fit_no_other_way_are_refused_with_the_way_out() -> None:
    with pytest.raises(
        ValueError, match=r"got 1 and 9; they may be \[batch, position, head, item\]: pass query.swapax"
    ):
        AttentionCache().push_qk(zeros(1, 1, 8, 4), zeros(1, 9, 2, 4))
    with pytest.raises(ValueError, match=r"a multiple of those of key, got 3 and 2$"):
        AttentionCache().push_qk(zeros(1, 3, 5, 4), zeros(1, 2, 7, 4))


@pytest.mark.parametrize(
    ("query", "key"),
    [((1, 40, 8, 4), (1, 40, 2, 4)), ((1, 600, 12, 4), (1, 600, 12, 4))],
    ids=["heads in groups", "more heads than any model has"],
)
def test_positions_before_heads_are_warned_of_where_they_are_far_likelier(query: Any, key: Any, tmp_path: Path) -> None:
    cache = AttentionCache()
    with AttentionCache.create(tmp_path / "run") as on_disk:
        for each in (cache, on_disk):
            (warning,) = warned(lambda each=each: each.push_qk(zeros(*query), zeros(*key)))
            assert "look like [batch, position, head, item]" in str(warning.message)
            assert (warning.category, warning.filename) == (PatternWarning, __file__)
            assert each.shapes == ((*query[:3], key[2]),)


@pytest.mark.parametrize(
    ("query", "key", "causal"),
    [
        ((1, 32, 2048, 4), (1, 8, 2048, 4), True),
        ((1, 32, 6, 4), (1, 32, 6, 4), True),
        ((1, 96, 6, 4), (1, 96, 6, 4), True),
        ((1, 96, 1, 4), (1, 96, 6, 4), True),
        ((1, 16, 8, 4), (1, 16, 4, 4), False),
        ((1, 2, 8, 4), (1, 2, 4, 4), True),
    ],
)
def test_heads_before_positions_are_not_warned_of(query: Any, key: Any, causal: bool) -> None:
    assert warned(lambda: AttentionCache().push_qk(zeros(*query), zeros(*key), causal=causal)) == []
