"""What push makes of torch's tensors: every float, bfloat16 first of all, any strides, gradients, and what it refuses.

Sizes: [2, 3, 7, 37]; all 65536 bfloat16 values. Tolerance: none.
"""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attncache import AttentionCache
from tests.support.layers import SHAPE
from tests.support.patterns import DTYPES, address, as_stored, assert_same, make


@pytest.fixture(scope="module")
def torch() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch", reason="torch is not installed")


@pytest.mark.parametrize("copy", [None, True], ids=["copy=None", "copy=True"])
def test_torch_tensors_of_every_float_are_stored(torch: Any, dtype: str, copy: bool | None) -> None:
    pattern = make("soft", SHAPE)
    tensor = torch.from_numpy(pattern).to(getattr(torch, dtype))
    assert_same(as_stored(tensor, copy=copy), pattern.astype(DTYPES[dtype]))
    assert_same(as_stored(torch.from_numpy(pattern.astype(np.float64) / 3), copy=copy), pattern / np.float32(3))


def test_torch_bfloat16_is_stored_in_any_dtype(torch: Any, dtype: str, simd_level: str) -> None:
    tensor = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).reshape(1, 1, 256, 256)
    values = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    with np.errstate(over="ignore", invalid="ignore"):
        assert_same(as_stored(tensor, dtype), values.astype(np.float32).astype(DTYPES[dtype]))


def test_torch_tensors_of_any_strides_are_stored(torch: Any, dtype: str) -> None:
    tensor = torch.from_numpy(make("soft", SHAPE)).to(getattr(torch, dtype))
    for strided_tensor in (
        tensor.transpose(1, 2).contiguous().transpose(1, 2),
        tensor.transpose(2, 3).contiguous().transpose(2, 3),
        tensor.repeat_interleave(2, dim=3)[..., ::2],
        tensor[:1].expand(2, -1, -1, -1),
    ):
        expected = strided_tensor.contiguous().to(torch.float32).numpy().astype(DTYPES[dtype])
        assert_same(as_stored(strided_tensor), expected)


def test_a_torch_tensor_is_copied_unless_borrowing_is_asked_for(torch: Any, dtype: str) -> None:
    tensor = torch.from_numpy(make("soft", SHAPE)).to(getattr(torch, dtype))
    assert address(as_stored(tensor)) != tensor.data_ptr()
    cache = AttentionCache()
    cache.push(tensor, copy=False)
    where, kept = tensor.data_ptr(), make("soft", SHAPE).astype(DTYPES[dtype])
    assert address(cache[0]) == where
    del tensor
    torch.rand(SHAPE)
    assert_same(cache[0], kept)


def test_a_torch_tensor_that_needs_a_gradient_is_taken_without_it(torch: Any) -> None:
    pattern = make("soft", SHAPE)
    tensor = torch.from_numpy(pattern).requires_grad_()
    for needs_gradient in (tensor, tensor * 1, torch.nn.Parameter(tensor), tensor.to(torch.bfloat16).float()):
        cache = AttentionCache()
        cache.push(needs_gradient)
        assert needs_gradient.requires_grad
        assert_same(cache[0], needs_gradient.detach().numpy())


def test_torch_integers_are_refused(torch: Any) -> None:
    for kind in (torch.int32, torch.int64, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match=str(kind).removeprefix("torch.")):
            AttentionCache().push(torch.ones(SHAPE, dtype=kind))


def test_a_torch_tensor_of_the_wrong_rank_is_refused(torch: Any) -> None:
    for kind in (torch.float32, torch.bfloat16):
        with pytest.raises(ValueError, match=r"pattern.*3, 7, 37"):
            AttentionCache().push(torch.ones((3, 7, 37), dtype=kind))
