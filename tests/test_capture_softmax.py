"""What is captured of a softmax that multiplies: every spelling of both, and whatever lies between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attncache import CaptureWarning, capture

pytest.importorskip("torch", reason="capture needs torch")

import torch
import torch.nn.functional as F

from tests.support.attending import Array, Attends, B, D, H, K, Model, Q, drawn, patterns

SCORES = 2 * drawn(B, H, Q, K)
VALUES = drawn(B, H, K, D)
WEIGHTS = SCORES.double().softmax(-1).numpy()


def heard(attend: Callable[[], Any], *, n_items: int = B, **options: Any) -> list[Array]:
    """The patterns of a model of one module of four heads that attends so."""
    model = Model(attn=Attends(attend, num_heads=H)).eval()
    with capture(model, **{"dtype": "float32", **options}) as cache:
        model(torch.zeros(n_items, 3))
    assert {source.seam for source in cache.sources} <= {"softmax"}
    return patterns(cache)


def assert_heard(attend: Callable[[], Any], expected: Array = WEIGHTS, within: float = 2e-7, **options: Any) -> None:
    (found,) = heard(attend, **options)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=within)


SOFTMAXES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nn.Softmax": torch.nn.Softmax(dim=-1),
    "F": lambda scores: F.softmax(scores, dim=-1),
    "F in float32": lambda scores: F.softmax(scores, dim=3, dtype=torch.float32),
    "torch": lambda scores: torch.softmax(scores, -1),
    "torch, keywords": lambda scores: torch.softmax(input=scores, dim=-1),
    "tensor": lambda scores: scores.softmax(-1),
    "tensor, keyword": lambda scores: scores.softmax(dim=-1),
    "special": lambda scores: torch.special.softmax(scores, -1),
    "aten": lambda scores: torch.ops.aten.softmax.int(scores, -1),
    "aten, half": lambda scores: torch.ops.aten._softmax.default(scores, -1, False),
    "over keys that lie elsewhere": lambda scores: scores.mT.softmax(-2).mT,
    "over the first axis": lambda scores: scores.permute(3, 0, 1, 2).softmax(0).permute(1, 2, 3, 0),
    "over the second axis as nothing is said": lambda scores: F.softmax(
        scores.permute(0, 3, 1, 2), dim=None, _stacklevel=0
    ).permute(0, 2, 3, 1),
}


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("name", SOFTMAXES)
def test_every_softmax_is_heard(name: str) -> None:
    assert_heard(lambda: SOFTMAXES[name](SCORES) @ VALUES)


def folded(weights: torch.Tensor) -> torch.Tensor:
    return weights.reshape(B * H, Q, K)


PRODUCTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "@": lambda weights: weights @ VALUES,
    "matmul": lambda weights: torch.matmul(weights, VALUES),
    "matmul, keywords": lambda weights: torch.matmul(input=weights, other=VALUES),
    "tensor": lambda weights: weights.matmul(VALUES),
    "tensor, keyword": lambda weights: weights.matmul(other=VALUES),
    "linalg": lambda weights: torch.linalg.matmul(weights, VALUES),
    "one value for all": lambda weights: weights @ VALUES[0, 0],
    "bmm": lambda weights: torch.bmm(folded(weights), VALUES.flatten(0, 1)),
    "bmm, keywords": lambda weights: torch.bmm(input=folded(weights), mat2=VALUES.flatten(0, 1)),
    "baddbmm": lambda weights: torch.baddbmm(torch.zeros(B * H, Q, D), folded(weights), VALUES.flatten(0, 1)),
    "baddbmm, keywords": lambda weights: torch.baddbmm(
        torch.zeros(B * H, Q, D), batch1=folded(weights), batch2=VALUES.flatten(0, 1), beta=0.5
    ),
    "bmm, of a tensor": lambda weights: (
        torch.zeros(1, 1, 1).expand(B * H, Q, D).baddbmm(folded(weights), VALUES.flatten(0, 1))
    ),
    "right": lambda weights: VALUES.mT @ weights.mT,
    "right, transposed": lambda weights: torch.matmul(VALUES.transpose(2, 3), weights.transpose(-1, -2)),
    "einsum": lambda weights: torch.einsum("bhqk,bhkd->bhqd", weights, VALUES),
    "einsum, spaces and capitals": lambda weights: torch.einsum("b h Q K, b h K d -> b Q h d", weights, VALUES),
    "einsum, other order": lambda weights: torch.einsum("bhqk,bkhd->bqhd", weights, VALUES.transpose(1, 2)),
    "einsum, values first": lambda weights: torch.einsum("bkhd,bhqk->bqhd", VALUES.transpose(1, 2), weights),
    "einsum, list": lambda weights: torch.einsum("bhqk,bhkd->bhqd", [weights, VALUES]),
    "einsum, no arrow": lambda weights: torch.einsum("bhqk,bhkd", weights, VALUES),
    "einsum, ellipsis": lambda weights: torch.einsum("...ij,...jd->...id", weights, VALUES),
    "einsum, ellipsis without arrow": lambda weights: torch.einsum("...ij,...jd", weights, VALUES),
    "einsum, ellipsis of one": lambda weights: torch.einsum("...ij,jd->...id", weights, VALUES[0, 0]),
    "einsum, numbers": lambda weights: torch.einsum(weights, [0, 1, 2, 3], VALUES, [0, 1, 3, 4], [0, 1, 2, 4]),
    "einsum, three": lambda weights: torch.einsum("bhqk,bhkd,hde->bqe", weights, VALUES, torch.ones(H, D, 3)),
    "einsum, queries first": lambda weights: torch.einsum(
        "qbhk,kbhd->qbhd", weights.permute(2, 0, 1, 3), VALUES.permute(2, 0, 1, 3)
    ),
    "einsum, heads last": lambda weights: torch.einsum(
        "bqkh,bkhd->bqhd", weights.permute(0, 2, 3, 1), VALUES.transpose(1, 2)
    ),
    "einsum, folded": lambda weights: torch.einsum("bqk,bkd->bqd", folded(weights), VALUES.flatten(0, 1)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_product_is_heard(name: str) -> None:
    assert_heard(lambda: PRODUCTS[name](SCORES.softmax(-1)), n_items=2 if "folded" in name else B)


def test_a_softmax_over_an_axis_within_is_heard_where_einsum_sums_over_it() -> None:
    """As Transformer-XL and AlphaFold lay their scores out."""
    of_xl, of_folding = SCORES.permute(2, 3, 0, 1), SCORES.permute(0, 2, 3, 1)
    assert_heard(lambda: torch.einsum("ijbn,jbnd->ibnd", of_xl.softmax(1), VALUES.permute(2, 0, 1, 3)))
    assert_heard(lambda: torch.einsum("bnij,jbnd->ibnd", SCORES.softmax(-1), VALUES.permute(2, 0, 1, 3)))
    assert_heard(lambda: torch.einsum("bijh,bjhd->bihd", of_folding.softmax(2), VALUES.transpose(1, 2)))


def test_heads_before_the_batch_are_heads() -> None:
    scores, values = SCORES.transpose(0, 1), VALUES.transpose(0, 1)
    assert_heard(lambda: scores.softmax(-1) @ values)
    assert_heard(lambda: torch.einsum("hbqk,bhkd->bqhd", scores.softmax(-1), VALUES))


def test_one_query_of_each_head_is_heard_without_an_axis_of_its_own() -> None:
    scores = SCORES[:, :, 0]
    assert_heard(lambda: torch.einsum("bhk,bhkd->bhd", scores.softmax(-1), VALUES), WEIGHTS[:, :, :1])


HIDDEN = torch.rand(B, 1, Q, K, generator=torch.Generator().manual_seed(1)) < 0.3
SHOWN = (~HIDDEN).double().numpy()
BETWEEN: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Any, float]] = {
    "dropout in eval": (torch.nn.Dropout(0.5).eval(), 1, 0),
    "dropout in eval, in place": (torch.nn.Dropout(0.5, inplace=True).eval(), 1, 0),
    "dropout without a chance": (lambda w: F.dropout(w, 0.0, training=True), 1, 0),
    "half": (lambda w: w.to(torch.float16).float(), 1, 1e-3),
    "bfloat16": (lambda w: w.bfloat16().to(dtype=torch.float32), 1, 1e-2),
    "type_as": (lambda w: w.type_as(VALUES), 1, 0),
    "type_as what it became": (lambda w: w.type_as(w.clone()), 1, 0),
    "type": (lambda w: w.type(torch.float32), 1, 0),
    "data": (lambda w: w.data, 1, 0),
    "contiguous and clone": (lambda w: w.contiguous().clone(), 1, 0),
    "masked_fill": (lambda w: w.masked_fill(HIDDEN, 0.0), SHOWN, 0),
    "masked_fill_": (lambda w: w.masked_fill_(HIDDEN, 0.0), SHOWN, 0),
    "where": (lambda w: torch.where(HIDDEN, 0.0, w), SHOWN, 0),
    "where, of a tensor": (lambda w: w.where(~HIDDEN, torch.zeros(())), SHOWN, 0),
    "nan_to_num": (lambda w: torch.nan_to_num(w).nan_to_num(0.0), 1, 0),
    "a mask of floats": (lambda w: w * (~HIDDEN).float(), SHOWN, 0),
    "a mask of floats in front": (lambda w: (~HIDDEN).float() * w, SHOWN, 0),
    "a mask of bools, in place": (lambda w: w.mul_(~HIDDEN), SHOWN, 0),
    "a number": (lambda w: 0.5 * w * 2 / 2, 0.5, 0),
    "a gate of each head": (lambda w: w * torch.linspace(0, 1, H)[:, None, None], np.linspace(0, 1, H)[:, None, None], 0),
    "views": (lambda w: w.view(B * H, Q, K).view(B, H, Q, K).transpose(1, 2).permute(0, 2, 1, 3), 1, 0),
    "views of views": (lambda w: w.flatten(0, 1).unflatten(0, (B, H)).unsqueeze(2).squeeze(2)[:, :], 1, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", BETWEEN)
def test_what_leaves_each_weight_in_its_place_is_followed(name: str) -> None:
    function, times, within = BETWEEN[name]
    assert_heard(lambda: function(SCORES.softmax(-1)) @ VALUES, WEIGHTS * times, within + 2e-7)


def test_axes_may_move_and_come_back() -> None:
    def attend() -> torch.Tensor:
        weights = SCORES.softmax(-1)  # [batch, head, query, key]
        weights = weights.movedim(3, 0).swapaxes(0, 3)  # key, .. and head, query .. in another order
        back = weights.permute(*(weights.shape.index(size) for size in (B, H, Q, K)))
        return back @ VALUES

    assert_heard(attend)


def test_a_renormalised_mask_is_what_multiplies() -> None:
    def attend() -> torch.Tensor:
        weights = SCORES.softmax(-1) * ~HIDDEN
        return (weights / weights.sum(-1, keepdim=True)) @ VALUES

    masked = WEIGHTS * SHOWN
    assert_heard(attend, masked / masked.sum(-1, keepdims=True), within=5e-7)


@pytest.mark.parametrize("shape", [(B, 2, 2, Q, K), (B, 2, 2 * Q, K), (B, 1, 1, H, Q, K)])
@pytest.mark.parametrize("how", ["@", "reshape"])
def test_heads_in_groups_are_heads(shape: Any, how: str) -> None:
    def attend() -> torch.Tensor:
        weights = SCORES.view(B, 2, 2, Q, K).softmax(-1)
        if how == "reshape" or shape[1] == 1 or len(shape) == 4:
            weights = weights.reshape(shape)
        leading = weights.shape[:-2]
        return weights @ torch.ones(*leading, K, D)

    assert_heard(attend)


def test_a_sink_that_takes_its_share_as_one_more_key_is_no_key() -> None:
    sinks = drawn(H, seed=5)[:, None, None].expand(B, H, Q, 1)
    expected = torch.cat([SCORES, sinks], -1).double().softmax(-1)[..., :-1].numpy()

    def attend() -> torch.Tensor:
        return torch.cat([SCORES, sinks], -1).softmax(-1)[..., :-1].to(torch.float32) @ VALUES

    assert_heard(attend, expected)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("after", [lambda w: w, lambda w: w.mT.mT * ~HIDDEN, lambda w: w.masked_fill_(HIDDEN, 0.0)])
def test_dropout_is_no_part_of_the_weights(inplace: bool, after: Any) -> None:
    scores = SCORES.clone().requires_grad_()
    outs = []

    def attend() -> torch.Tensor:
        outs.append(after(F.dropout(scores.softmax(-1), 0.5, True, inplace)) @ VALUES)
        return outs[-1]

    torch.manual_seed(0)
    plain = attend()
    torch.manual_seed(0)
    with pytest.warns(CaptureWarning, match="ran with dropout"):
        (found,) = heard(attend)
    is_masked = after(torch.ones(B, H, Q, K)).min() == 0
    np.testing.assert_allclose(found, WEIGHTS * (SHOWN if is_masked else 1), rtol=0, atol=2e-7)
    assert torch.equal(outs[-1], plain)
    if not inplace:
        plain.sum().backward()


def test_weights_that_multiply_twice_are_one_pattern() -> None:
    def attend() -> torch.Tensor:
        weights = SCORES.softmax(-1)
        return weights @ VALUES + weights @ (2 * VALUES)

    assert_heard(attend)


def test_a_softmax_of_a_softmax_is_the_last() -> None:
    expected = torch.tensor(WEIGHTS).softmax(-1).numpy()
    assert_heard(lambda: SCORES.softmax(-1).softmax(-1) @ VALUES, expected)


def test_the_module_is_the_one_that_multiplies() -> None:
    class Split(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.softmax = torch.nn.Softmax(-1)
            self.product = Attends(lambda: None)

        def forward(self, scores: torch.Tensor) -> torch.Tensor:
            weights = self.softmax(scores)
            self.product.attend = lambda: weights @ VALUES
            return self.product(scores)

    model = Split()
    with capture(model, dtype="float32") as cache:
        model(SCORES)
    assert [source.module for source in cache.sources] == ["product"]


PARTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "slices": lambda weights: weights[..., :3] @ VALUES[:, :, :3] + weights[..., 3:] @ VALUES[:, :, 3:],
    "split": lambda weights: sum(
        part @ values for part, values in zip(weights.split([3, 4], -1), VALUES.split([3, 4], -2), strict=True)
    ),
    "tensor_split": lambda weights: sum(
        part @ values
        for part, values in zip(torch.tensor_split(weights, [3], -1), VALUES.tensor_split([3], -2), strict=True)
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_the_keys_that_multiply_each_for_itself_are_patterns_each(name: str) -> None:
    first, second = heard(lambda: PARTS[name](SCORES.softmax(-1)))
    np.testing.assert_allclose(first, WEIGHTS[..., :3], rtol=0, atol=2e-7)
    np.testing.assert_allclose(second, WEIGHTS[..., 3:], rtol=0, atol=2e-7)


def test_items_that_multiply_one_by_one_are_patterns_each() -> None:
    def attend() -> None:
        weights = SCORES.softmax(-1)
        for item, head in np.ndindex(B, H):
            torch.mm(weights[item, head], VALUES[item, head])

    found = heard(attend)
    assert len(found) == B * H
    np.testing.assert_allclose(np.concatenate(found).reshape(WEIGHTS.shape), WEIGHTS, rtol=0, atol=2e-7)


def test_heads_that_multiply_one_by_one_are_patterns_each() -> None:
    def attend() -> torch.Tensor:
        heads = SCORES.softmax(-1).unbind(1)
        return torch.stack([head @ values for head, values in zip(heads, VALUES.unbind(1), strict=True)], 1)

    found = heard(attend, n_heads=1)
    assert len(found) == H
    np.testing.assert_allclose(np.concatenate(found, axis=1), WEIGHTS, rtol=0, atol=2e-7)
