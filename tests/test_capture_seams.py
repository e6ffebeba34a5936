"""The axes and masks of scaled_dot_product_attention in modules of one's own, captured, against float64 by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncache import CaptureWarning, capture

pytest.importorskip("torch", reason="capture needs torch")

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from tests.support.attending import (
    STORES,
    Attends,
    B,
    D,
    H,
    K,
    Model,
    Q,
    assert_is,
    by_hand,
    captured,
    drawn,
    patterns,
    qkv,
)

# ---- axes


@STORES
@pytest.mark.parametrize(
    ("leading", "told", "settings", "axes", "windows"),
    [
        ((B, H), {}, {}, (B, H), None),
        ((), {}, {}, (1, 1), None),
        ((B * H,), {"num_heads": H}, {}, (B, H), None),
        ((B * H,), {}, {"n_heads": H}, (B, H), None),
        ((B * H,), {"num_heads": 2}, {"n_heads": H}, (B, H), None),
        ((B,), {}, {}, (B, 1), None),
        ((B, 3, H), {}, {}, (B * 3, H), 3),
        ((B, 3, H), {"n_head": H}, {}, (B * 3, H), 3),
        ((B, 2, 2), {"num_heads": 4}, {}, (B, 4), None),
        ((B, 3, 2, H), {}, {}, (B * 6, H), 6),
    ],
)
def test_axes_before_queries_are_batch_and_heads(
    leading: Any, told: Any, settings: Any, axes: Any, windows: Any, *, store: Any
) -> None:
    query, key, value = qkv(*leading)
    cache = captured(query, key, value, told=told, store=store, **settings)
    assert_is(cache, by_hand(query, key).reshape(*axes, Q, K))
    assert (cache.sources[0].seam, cache.sources[0].windows, cache.sources[0].module) == ("sdpa", windows, "attn")


def test_heads_in_the_batch_axis_that_nobody_counts_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"attn.* cannot be captured: .* 8, holds batch items.*n_heads= must say it"):
        captured(*qkv(B * H))


def test_some_heads_alone_are_no_batch_items() -> None:
    """As where a model computes its heads slice by slice."""
    with pytest.raises(ValueError, match="8, must hold a whole number of batch items of 3 heads, as the module says"):
        captured(*qkv(B * H), told={"num_heads": 3})


def test_tensors_without_batch_and_heads_are_one_of_each() -> None:
    query, key, value = qkv()
    for told in ({}, {"num_heads": 4}):
        assert_is(captured(query, key, value, told=told), by_hand(query, key)[None, None])


@pytest.mark.parametrize("given", [[torch.zeros(B, 3)], {"x": torch.zeros(B, 3)}, ({"x": (torch.zeros(B, 3),)}, 1)])
def test_items_in_lists_and_dicts_are_counted(given: Any) -> None:
    query, key, value = qkv(B * H)
    model = Model(attn=Attends(lambda: F.scaled_dot_product_attention(query, key, value)))
    with pytest.raises(ValueError, match="n_heads= must say it"), capture(model):
        model(given)


def test_an_axis_that_may_be_the_batch_or_hold_heads_is_asked_about() -> None:
    """Four items, and a module of four heads: one head after another, or one item."""
    query, key, value = qkv(4)
    options: dict[str, Any] = {"told": {"num_heads": 4}, "n_items": 4}
    with pytest.raises(ValueError, match="n_heads= must say it, 1 where there are none"):
        captured(query, key, value, **options)
    assert_is(captured(query, key, value, **options, n_heads=1), by_hand(query, key)[:, None])
    assert_is(captured(query, key, value, **options, n_heads=4), by_hand(query, key)[None])


@STORES
@pytest.mark.parametrize("of_key", [(H, B), (H, 1), (B,)])
@pytest.mark.parametrize("mask", [None, (B, 1, 1), (H, B, Q, 1), (1, B, 1, 1)])
def test_heads_before_the_batch_are_heads(of_key: Any, mask: Any, store: Any) -> None:
    query, key, value = drawn(H, B, Q, D), drawn(*of_key, K, D, seed=1), drawn(*of_key, K, D, seed=2)
    shown = torch.ones(1, K, dtype=torch.bool)
    if mask is not None:
        shown = torch.rand(*mask[:-1], K, generator=torch.Generator().manual_seed(0)) < 0.7
    if store == "qk" and shown.shape[-2] > 1:
        pytest.skip("no mask that queries and keys carry")
    cache = captured(query, key, value, shown, told={"num_heads": H}, store=store)
    assert_is(cache, by_hand(query, key, shown).swapaxes(0, 1))


def test_n_heads_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="n_heads must divide the first of three axes, 8, got 3"):
        captured(*qkv(B * H), n_heads=3)


@STORES
@pytest.mark.parametrize(
    ("of_query", "of_key", "of_value"),
    [
        ((B, H), (B, 1), (B, 1)),  # one key head
        ((B, H), (1, H), (1, H)),
        ((B, H), (H,), (H,)),
        ((B, H), (B, H), (B, 1)),
        ((1, H), (B, H), (B, H)),  # queries that are learned
        ((H,), (B, H), (B, H)),
        ((B, 1), (B, H), (B, H)),  # the same query for all heads
        ((B, 3, H), (B, 1, 1), (B, 1, 1)),
        ((B, 3, H), (1, 3, H), (1, 3, H)),
    ],
)
def test_axes_that_broadcast_are_those_of_the_scores(of_query: Any, of_key: Any, of_value: Any, store: Any) -> None:
    query, key, value = drawn(*of_query, Q, D), drawn(*of_key, K, D, seed=1), drawn(*of_value, K, D, seed=2)
    expected = by_hand(query, key)
    assert_is(captured(query, key, value, store=store), expected.reshape(-1, H, Q, K))


@STORES
@pytest.mark.parametrize("n_heads", [None, H])
def test_grouped_key_heads_stay_grouped(store: Any, n_heads: int | None) -> None:
    query, (key, value) = drawn(B, H, Q, D), (drawn(B, 2, K, D, seed=seed) for seed in (1, 2))
    cache = captured(query, key, value, options={"enable_gqa": True}, store=store, n_heads=n_heads)
    assert_is(cache, by_hand(query, key.repeat_interleave(2, 1)))
    if store == "qk":
        assert cache.get_keys(0).shape[1] == 2


def test_values_of_more_heads_than_the_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be captured: its values"):
        captured(drawn(B, 1, Q, D), drawn(B, 1, K, D), drawn(B, H, K, D))


@STORES
@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 1), (1, K), (K, K), (K, 1)])
def test_any_number_of_queries_and_keys(n_queries: int, n_keys: int, store: Any) -> None:
    query, key, value = qkv(B, H, n_queries=n_queries, n_keys=n_keys)
    assert_is(captured(query, key, value, store=store), by_hand(query, key))


@pytest.mark.parametrize(("n_batch", "n_queries", "n_keys"), [(0, Q, K), (B, 0, K), (B, Q, 0)])
def test_sizes_may_be_zero(n_batch: int, n_queries: int, n_keys: int) -> None:
    key = drawn(n_batch, H, n_keys, D)
    cache = captured(drawn(n_batch, H, n_queries, D), key, key)
    assert cache.shapes == ((n_batch, H, n_queries, n_keys),)


def test_queries_without_items_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot be captured: .* number of items, at least 1, got 0"):
        captured(drawn(B, H, Q, 0), drawn(B, H, K, 0), drawn(B, H, K, D))


@STORES
def test_values_have_a_size_of_their_own(store: Any) -> None:
    query, key, _ = qkv(B, H)
    assert_is(captured(query, key, drawn(B, H, K, 3), store=store), by_hand(query, key))


@STORES
@pytest.mark.parametrize("heads", [1, [3, 0], slice(1, 3)])
def test_chosen_heads_alone_are_kept(heads: Any, store: Any) -> None:
    query, key, value = qkv(B, H)
    cache = captured(query, key, value, store=store, heads=heads)
    chosen = [heads] if isinstance(heads, int) else heads
    assert_is(cache, by_hand(query, key)[:, chosen])
    assert cache.sources[0].heads == tuple(np.arange(H)[chosen])


# ---- masks

CAUSAL = torch.ones(Q, Q, dtype=torch.bool).tril()
SOME = torch.rand(B, H, Q, Q, generator=torch.Generator().manual_seed(3)) < 0.6
HIDDEN = torch.tensor([True, False, True, True, False])
CARRIED = {
    "none": torch.ones(Q, Q, dtype=torch.bool),
    "causal": CAUSAL,
    "causal, three axes": CAUSAL[None].expand(H, Q, Q),
    "causal, four axes": CAUSAL[None, None].expand(B, H, Q, Q),
    "window": CAUSAL & ~CAUSAL.tril(-2),
    "window on both sides": torch.ones(Q, Q, dtype=torch.bool).tril(2).triu(-2),
    "hidden keys": HIDDEN.expand(Q, Q),
    "hidden keys of one row": HIDDEN[None],
    "hidden keys of each text": torch.stack([HIDDEN, ~HIDDEN])[:, None, None],
    "causal and hidden keys": CAUSAL & torch.stack([HIDDEN, HIDDEN.flip(0)])[:, None, None],
    "no key at all": torch.zeros(Q, Q, dtype=torch.bool),
}
NOT_CARRIED = {
    "any": SOME,
    "any of each head": SOME[0],
    "any of each text": SOME[:, :1],
    "any, two axes": SOME[0, 0],
    "hidden queries": HIDDEN[:, None],
    "strictly before": CAUSAL.tril(-1),
    "after": CAUSAL.mT.contiguous(),
}


def additive(mask: torch.Tensor, hides: float = -torch.inf) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, hides)


FORMS = pytest.mark.parametrize(
    "form", [lambda mask: mask, additive, lambda mask: additive(mask, -1e9)], ids=["bool", "inf", "large"]
)


@FORMS
@STORES
@pytest.mark.parametrize("name", CARRIED)
def test_masks_that_queries_and_keys_carry(name: str, store: Any, form: Any) -> None:
    query, key, value = qkv(B, H, n_keys=Q)
    cache = captured(query, key, value, form(CARRIED[name]), store=store)
    (found,) = patterns(cache)
    expected = by_hand(query, key, CARRIED[name])
    np.testing.assert_allclose(found, expected[..., : found.shape[3]], rtol=0, atol=2e-6)
    assert not expected[..., found.shape[3] :].any()


@FORMS
@pytest.mark.parametrize("name", NOT_CARRIED)
def test_masks_that_only_a_pattern_holds(name: str, form: Any) -> None:
    query, key, value = qkv(B, H, n_keys=Q)
    mask = form(NOT_CARRIED[name])
    (found,) = patterns(captured(query, key, value, mask))
    expected = by_hand(query, key, NOT_CARRIED[name])
    np.testing.assert_allclose(found, expected[..., : found.shape[3]], rtol=0, atol=2e-6)
    assert_a_pattern_instead(
        (query, key, value, mask), found, r"attn\) is a pattern, since .*: its mask must be causal or"
    )


def test_a_bias_is_added_to_the_scores() -> None:
    query, key, value = qkv(B, H, n_keys=Q)
    slopes = 2.0 ** -torch.arange(1.0, H + 1)
    distance = torch.arange(Q)[:, None] - torch.arange(Q)
    bias = (-slopes[:, None, None] * distance).masked_fill(~CAUSAL, -torch.inf)
    assert_is(captured(query, key, value, bias), by_hand(query, key, bias))
    assert_a_pattern_instead(
        (query, key, value, bias[0]), by_hand(query, key, bias[0]), "adds other numbers to the scores than 0 and -inf"
    )


def assert_a_pattern_instead(given: Any, expected: Any, words: str) -> None:
    """What queries and keys do not give is a pattern where they were asked for, and is named."""
    with pytest.warns(CaptureWarning, match=words):
        cache = captured(*given, store="qk")
    assert cache.kinds == ("dense",)
    np.testing.assert_allclose(patterns(cache)[0], expected, rtol=0, atol=2e-6)


@STORES
@pytest.mark.parametrize(("n_queries", "n_keys"), [(Q, Q), (1, K), (K, Q), (Q, K)])
@pytest.mark.parametrize("how", ["is_causal", "upper_left", "lower_right"])
def test_causal_rules_of_pytorch(how: str, n_queries: int, n_keys: int, store: Any) -> None:
    query, key, value = qkv(B, H, n_queries=n_queries, n_keys=n_keys)
    if how == "lower_right" and n_queries > n_keys:
        pytest.skip("PyTorch warns of it, since its first queries see nothing")
    rule = {"upper_left": causal_upper_left, "lower_right": causal_lower_right}.get(how)
    options = {"is_causal": True} if rule is None else {"attn_mask": rule(n_queries, n_keys)}
    ahead = n_keys - n_queries if how == "lower_right" else 0
    expected = by_hand(query, key, torch.ones(n_queries, n_keys, dtype=torch.bool).tril(ahead))
    if store == "qk" and n_queries > n_keys:
        with pytest.warns(CaptureWarning, match="is a pattern, since queries and keys alone do not give"):
            assert captured(query, key, value, options=options, store=store).kinds == ("dense",)
        return
    (found,) = patterns(captured(query, key, value, options=options, store=store))
    np.testing.assert_allclose(found, expected[..., : found.shape[3]], rtol=0, atol=2e-6)
    assert not expected[..., found.shape[3] :].any()


def test_a_mask_that_two_modules_fold_otherwise_is_read_for_each() -> None:
    mask = torch.ones(8, 1, Q, dtype=torch.bool)
    mask[:4, :, :2] = False  # of one text of four heads, or two texts of two
    query, key, value = qkv(8, n_keys=Q)

    def attend() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, mask)

    model = Model(a=Attends(attend, num_heads=4), b=Attends(attend, num_heads=2))
    with capture(model, "qk", dtype="float32") as cache:
        model(torch.zeros(1, 3))
    for pattern, n_heads in zip(patterns(cache), (4, 2), strict=True):
        expected = by_hand(query, key, mask).reshape(-1, n_heads, Q, Q)
        np.testing.assert_allclose(pattern, expected, rtol=0, atol=2e-6)
