"""The tokens of a cache, and the answers of top_k that know them.

Covered: every accepted and refused kind and length, one prompt and one per batch item; which token each position of an
answer stands for, in both directions, for every way to select layers and batch items; the repr, whole and cut; that an
answer with tokens is otherwise the pair it was. Everything compares by equality.
Sizes: two layers of [2, 2, 3, 5] unless said, so that the last query is aligned with the last key two further on.
Not covered: how tokens look in ``attncache demo`` (tests/test_cli.py).
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from attncache import AttentionCache, LayerSource, TopK
from tests.support.patterns import assert_same, cache_of, make

SHAPE = (2, 2, 3, 5)
WORDS = ("The", " cat", " sat", "\n", " internationally")
PER_ITEM = (WORDS, ("a", "b", "c", "d", "e"))


def filled(tokens: Any = None, shape: tuple[int, int, int, int] = SHAPE) -> AttentionCache:
    cache = cache_of([make("soft", shape, "float32", layer) for layer in range(2)])
    cache.tokens = tokens
    return cache


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (WORDS, WORDS),
        (list(WORDS), WORDS),
        (iter(WORDS), WORDS),
        (np.array(WORDS), WORDS),
        (PER_ITEM, PER_ITEM),
        ([list(item) for item in PER_ITEM], PER_ITEM),
        (np.array(PER_ITEM), PER_ITEM),
        (None, None),
    ],
    ids=["tuple", "list", "iterator", "array", "tuples", "lists", "2-D array", "None"],
)
def test_tokens_are_kept_as_tuples_of_str(given: Any, kept: Any) -> None:
    cache = filled(given)
    assert cache.tokens == kept
    assert all(type(item) in (str, tuple) for item in cache.tokens or ())


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        (
            "The cat",
            TypeError,
            "tokens must be None, a sequence of strings, or one such sequence per batch item, got str",
        ),
        (b"The", TypeError, "got bytes"),
        (5, TypeError, "got int"),
        ([1, 2, 3, 4, 5], TypeError, r"got numbers; tokenizer.convert_ids_to_tokens\(ids\)"),
        (np.arange(5), TypeError, r"got numbers; tokenizer.convert_ids_to_tokens\(ids\)"),
        (["The", 2], TypeError, r"got tokens\[0\] of type str"),
        ([WORDS, "abcde"], TypeError, r"got tokens\[1\] of type str"),
        ([WORDS, [1, 2, 3, 4, 5]], TypeError, r"got int in tokens\[1\]"),
        (WORDS[:4], ValueError, "tokens must be one string for each key of layer 0, seq_k=5, got 4"),
        ((), ValueError, "seq_k=5, got 0"),
        ((*WORDS, "."), ValueError, r"seq_k=5, got 6; the model has not read the last token .*tokens\[:-1\]"),
        ((WORDS,), ValueError, "one sequence for each batch item of layer 0, batch_size=2, got 1"),
        ((WORDS, WORDS[:2]), ValueError, "equally many for each batch item, got 2 and 5"),
        ((WORDS[:2], WORDS[:2]), ValueError, r"tokens\[0\] must be one string for each key of layer 0, seq_k=5, got 2"),
    ],
)
def test_tokens_that_do_not_fit_are_refused_and_change_nothing(tokens: Any, error: Any, words: str) -> None:
    cache = filled(WORDS)
    with pytest.raises(error, match=words):
        cache.tokens = tokens
    assert cache.tokens == WORDS


def test_the_tokens_must_fit_every_layer() -> None:
    cache = cache_of([make("soft", (1, 2, 3, 5)), make("soft", (1, 2, 3, 6))])
    with pytest.raises(ValueError, match="layer 1, seq_k=6, got 5"):
        cache.tokens = WORDS


def test_tokens_may_be_set_before_the_first_layer_and_a_prompt_may_grow() -> None:
    cache = AttentionCache()
    assert cache.tokens is None
    cache.tokens = WORDS
    cache.push(make("soft", (1, 2, 5, 5)))
    cache.push(make("soft", (1, 2, 6, 6)))
    assert cache.tokens == WORDS


def test_clear_forgets_the_tokens_with_the_layers() -> None:
    cache = filled(WORDS)
    cache.clear()
    assert cache.tokens is None


def expected_tokens(positions: Any, tokens: Any, offset: int = 0) -> Any:
    """The tokens of nested positions, looked up one by one."""
    if isinstance(positions, list):
        return [expected_tokens(item, tokens, offset) for item in positions]
    return tokens[positions + offset]


@pytest.mark.parametrize("layers", [None, 0, -1, np.int64(1), [1], slice(1), np.array([1, 0])], ids=repr)
@pytest.mark.parametrize("direction", ["from", "to"])
def test_each_position_has_its_token(layers: Any, direction: Any) -> None:
    answer = filled(WORDS).top_k(2, layers=layers, heads=None, batch=None, direction=direction)
    offset = 2 if direction == "to" else 0
    assert answer.tokens() == expected_tokens(answer.positions.tolist(), WORDS, offset)


@pytest.mark.parametrize("batch", [0, -1, np.int64(1), np.array(1)], ids=repr)
@pytest.mark.parametrize("layers", [None, 0], ids=repr)
def test_one_batch_item_takes_its_own_tokens(layers: Any, batch: Any) -> None:
    answer = filled(PER_ITEM).top_k(2, layers=layers, batch=batch)
    assert answer.tokens() == expected_tokens(answer.positions.tolist(), PER_ITEM[int(batch)])


@pytest.mark.parametrize(
    ("batch", "items"),
    [(None, [0, 1]), (slice(1, None), [1]), ([1, 0, 1], [1, 0, 1]), (np.array([1]), [1]), ([], [])],
    ids=["all", "slice", "list", "array", "empty"],
)
@pytest.mark.parametrize("layers", [None, 0, [1, 0]], ids=repr)
def test_each_batch_item_of_an_answer_takes_its_own_tokens(layers: Any, batch: Any, items: list[int]) -> None:
    answer = filled(PER_ITEM).top_k(2, layers=layers, batch=batch, heads=None, direction="to")
    tokens, positions = answer.tokens(), answer.positions.tolist()
    if layers == 0:
        tokens, positions = [tokens], [positions]
    for found, of_layer in zip(tokens, positions, strict=True):
        assert found == [expected_tokens(part, PER_ITEM[item], 2) for part, item in zip(of_layer, items, strict=True)]


def test_a_position_beyond_the_tokens_has_none() -> None:
    cache = AttentionCache()
    cache.tokens = WORDS[:2]
    cache.push([[[[0.5, 0.2, 0.3]]]])
    answer = cache.top_k(3, layers=0, positions=0)
    assert answer.tokens() == ["The", None, " cat"]
    assert repr(answer).splitlines()[1] == "  0 The 0.500  2 - 0.300  1 cat 0.200"


def test_queries_have_no_token_of_a_key_where_they_are_more_than_the_keys() -> None:
    cache = cache_of([make("soft", (1, 1, 4, 2))])
    cache.tokens = WORDS[:2]
    assert type(cache.top_k(4, layers=0, direction="to")) is TopK
    assert cache.top_k(2, layers=0, positions=0).tokens() == expected_tokens(
        cache.top_k(2, layers=0, positions=0).positions.tolist(), WORDS
    )


def test_queries_of_cross_attention_have_no_token_of_a_key() -> None:
    cache = AttentionCache()
    for kind in ("self", "cross"):
        cache.push(make("soft", SHAPE), source=LayerSource(kind=kind))
    cache.tokens = WORDS
    assert type(cache.top_k(1, layers=0, direction="to")) is not TopK
    assert type(cache.top_k(1, layers=1)) is not TopK
    for layers in (1, [0, 1], None):
        assert type(cache.top_k(1, layers=layers, direction="to")) is TopK


QUERY_WORDS = ("Le", " chat", " dort")


@pytest.mark.parametrize("tokens", [None, WORDS], ids=["alone", "beside those of the keys"])
@pytest.mark.parametrize("own", [QUERY_WORDS, (QUERY_WORDS, ("x", "y", "z"))], ids=["one prompt", "one per batch item"])
def test_queries_have_their_own_tokens(tokens: Any, own: Any) -> None:
    cache = filled(tokens)
    cache.query_tokens = own
    assert cache.query_tokens == own
    answer = cache.top_k(2, layers=0, batch=1, direction="to")
    assert answer.tokens() == expected_tokens(answer.positions.tolist(), own if own is QUERY_WORDS else own[1])
    of_keys = cache.top_k(2, layers=0)
    assert (type(of_keys) is TopK) == (tokens is None)
    copied = cache.cpu()
    assert copied.query_tokens == own
    cache.clear()
    assert cache.query_tokens is None


def test_tokens_of_queries_must_fit_them() -> None:
    cache = filled(WORDS)
    for wrong, error, words in (
        (WORDS, ValueError, "query_tokens must be one string for each query of layer 0, seq_q=3, got 5"),
        ("abc", TypeError, "query_tokens must be None, a sequence of strings"),
        ((QUERY_WORDS,), ValueError, "query_tokens must be one sequence for each batch item"),
    ):
        with pytest.raises(error, match=words):
            cache.query_tokens = wrong
    assert cache.query_tokens is None
    cache = AttentionCache.from_attentions([make("soft", SHAPE)], query_tokens=QUERY_WORDS)
    assert (cache.tokens, cache.query_tokens) == (None, QUERY_WORDS)


def test_layers_with_other_batch_items_answer_without_tokens() -> None:
    cache = AttentionCache()
    cache.tokens = PER_ITEM
    cache.push(make("soft", (3, 2, 3, 5)))
    for batch in (None, 0, -1, 2, [1, -1]):
        assert type(cache.top_k(1, batch=batch)) is TopK


def test_an_answer_and_its_copies_keep_the_tokens_of_their_time() -> None:
    cache = filled(WORDS)
    answer = cache.top_k(1, layers=0, positions=0)
    before = answer.tokens(), repr(answer)
    cache.tokens = None
    assert (answer.tokens(), repr(answer)) == before
    for copied in (copy.copy(answer), copy.deepcopy(answer), pickle.loads(pickle.dumps(answer))):
        assert (copied.tokens(), repr(copied)) == before


def test_without_tokens_an_answer_says_how_to_get_them() -> None:
    answer = filled().top_k(1)
    assert type(answer) is TopK
    with pytest.raises(ValueError, match=r"got an answer without; set cache\.tokens"):
        answer.tokens()


def test_an_answer_with_tokens_is_the_pair_it_was() -> None:
    plain, named = filled().top_k(2), filled(WORDS).top_k(2)
    assert isinstance(named, TopK)
    positions, weights = named
    assert len(named) == 2
    assert_same(positions, plain.positions)
    assert_same(weights, plain.weights)
    assert named._fields == ("positions", "weights")
    alone = filled(WORDS).top_k(1, layers=0, positions=0)
    assert alone == tuple(filled().top_k(1, layers=0, positions=0))


def test_replaced_positions_have_no_tokens() -> None:
    answer = filled(WORDS).top_k(1)
    replaced = answer._replace(positions=answer.positions + 1)
    assert repr(replaced).startswith("TopK(positions=array(")
    with pytest.raises(ValueError, match="without"):
        replaced.tokens()


def readable(weights: Any, k: int, tokens: Any = WORDS, **selection: Any) -> list[str]:
    cache = cache_of([np.array(weights, np.float32)])
    cache.tokens = tokens
    return repr(cache.top_k(k, **selection)).splitlines()


ROWS = [[[[0.1, 0.2, 0.3, 0.4, 0.0], [1.0, 0.0, 0.0, 0.0, np.nan]]]]


def test_the_repr_is_a_line_per_row_with_position_token_and_weight() -> None:
    assert readable(ROWS, 2, layers=0) == [
        "TopK of shape [2, 2]: position, token, weight",
        "[0]  3 '\\n' 0.400  2 sat 0.300",
        "[1]  0 The  1.000  1 cat 0.000",
    ]


def test_the_repr_of_one_row_has_no_index() -> None:
    assert readable(ROWS, 5, layers=0, positions=1) == [
        "TopK of shape [5]: position, token, weight",
        "  0 The 1.000  1 cat 0.000  2 sat 0.000  3 '\\n' 0.000  4 internation… nan",
    ]


def test_the_repr_ends_in_dots_after_twenty_lines() -> None:
    many = make("soft", (1, 1, 30, 30))
    tokens = [f"w{number}" for number in range(30)]
    lines = readable(many, 1, tokens, layers=0)
    assert (len(lines), lines[-1]) == (22, "...")
    assert lines[20].startswith("[19]  ")


def test_a_long_row_goes_on_beneath_and_ends_in_dots_after_ten_cells() -> None:
    many = make("soft", (1, 1, 30, 30))
    lines = readable(many, 30, [f"word{number}" for number in range(30)], layers=0, positions=0)
    cells = " ".join(lines[1:]).split()
    assert (len(lines), len(cells), cells[-1]) == (3, 3 * 10 + 1, "...")
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(("k", "positions"), [(0, None), (2, [])], ids=["k=0", "no positions"])
def test_the_repr_of_nothing_is_its_shape(k: int, positions: Any) -> None:
    lines = readable(ROWS, k, positions=positions)
    assert lines[0].startswith("TopK of shape [1, ")
    assert not any("The" in line for line in lines)
