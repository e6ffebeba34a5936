"""Hears every softmax that becomes a factor of a matrix product, and every scaled_dot_product_attention, and computes the
weights again in float64 from what each was really given; comparing.py takes them as the truth.

It knows nothing of attncache.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

Tensor = Any
HIDDEN = -9e3  # a query whose every score is at most this sees no key: models hide with -1e4, the least number, or -inf

_SDPA = F.scaled_dot_product_attention
_MHA = F.multi_head_attention_forward
_MHA_BODY = FunctionType(
    _MHA.__code__, {**_MHA.__globals__, "has_torch_function": lambda *_: False}, "mha", _MHA.__defaults__
)
_SOFTMAX = {torch.softmax, F.softmax, torch.Tensor.softmax}
_RETYPED = {F.dropout, torch.dropout, torch.Tensor.to, torch.Tensor.type_as, torch.Tensor.float, torch.Tensor.half} | {
    torch.Tensor.bfloat16, torch.Tensor.contiguous, torch.Tensor.clone, torch.clone, torch.Tensor.type,
    torch.Tensor.detach,
}  # fmt: skip
_MOVED = {torch.Tensor.view, torch.Tensor.reshape, torch.reshape, torch.Tensor.masked_fill, torch.Tensor.nan_to_num} | {
    torch.masked_fill, torch.nan_to_num, torch.Tensor.__getitem__, torch.Tensor.transpose, torch.transpose,
    torch.Tensor.permute, torch.permute, torch.Tensor.squeeze, torch.squeeze, torch.Tensor.unsqueeze, torch.unsqueeze,
    torch.Tensor.flatten, torch.flatten, torch.Tensor.unflatten, torch.Tensor.masked_fill_, torch.Tensor.expand,
}  # fmt: skip
_PRODUCTS: dict[Any, tuple[int, ...]] = {  # and which of its arguments may be the weights
    torch.matmul: (0, 1), torch.Tensor.matmul: (0, 1), torch.Tensor.__matmul__: (0, 1), torch.bmm: (0, 1),
    torch.Tensor.bmm: (0, 1), torch.einsum: (1, 2), torch.baddbmm: (1, 2), torch.Tensor.__rmatmul__: (0, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Heard:
    """One attention that a model computed."""

    module: str  # path of the innermost module that ran; "" outside of all
    step: int  # how many times a module was called from outside of the model before
    weights: Tensor  # float64 [.., query, key], as they were multiplied with the values
    sees: Tensor  # bool [.., query]: whether a query sees any key; False also where its scores are all the same
    largest: float  # the largest score's size, which rounding grows with
    through: str  # "sdpa" or "softmax"


class _Shadow(NamedTuple):
    """A softmax on its way to a product: the same in float64, and what is known of its rows."""

    weights: Tensor
    scores: Tensor
    key: int


def _alone(compute: Any) -> Any:
    """What the oracle itself computes is heard by no other listener."""

    @wraps(compute)
    def computed_alone(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return compute(*args, **kwargs)

    return computed_alone


class Oracle(TorchFunctionMode):  # type: ignore[misc]
    """What one model computes while it runs; enter it with ``listening_to``, the last of all listeners."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Heard] = []  # in its order
        self.doubts: list[str] = []  # where a recomputed SDPA is not what torch returned
        self.stack: list[str] = []
        self.step = -1
        self._shadows: dict[int, tuple[Any, _Shadow]] = {}
        self._used: set[int] = set()
        self._count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _MHA:  # a Python function that PyTorch reports as a whole: its body is heard call by call
            with self:
                return _MHA_BODY(*args, **kwargs)
        if func in _PRODUCTS and self._shadows:
            self._product(func, args)
        before = self._of(args[0]) if func in _MOVED | _RETYPED and args else None
        scores = args[0].detach().double().clone() if func in _SOFTMAX and torch.is_tensor(args[0]) else None
        out = func(*args, **kwargs)
        if func is _SDPA:
            self._sdpa(args, kwargs, out)
        elif scores is not None:
            self._softmax(scores, args, kwargs, out)
        elif before is not None and torch.is_tensor(out):
            self._follow(before, func, args, kwargs, out)
        return out

    def enters(self, path: str, *_: Any) -> None:
        """A module is called."""
        self.step += not self.stack
        self.stack.append(path)

    def leaves(self, *_: Any) -> None:
        """A module returns."""
        self.stack.pop()

    @property
    def module(self) -> str:
        """The path of the innermost module that runs."""
        return self.stack[-1] if self.stack else ""

    @_alone
    def _sdpa(self, args: Any, kwargs: Any, out: Tensor) -> None:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names, args, strict=False)) | kwargs
        query, key, value = (given[name].detach().double() for name in names[:3])
        if given.get("enable_gqa"):
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
        scale = given.get("scale")
        scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        mask = given.get("attn_mask")
        if given.get("is_causal"):
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if mask is not None:
            mask = mask.detach()
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.double()
        weights = torch.softmax(scores, -1)
        self._add(weights, scores, "sdpa")
        sees = self.heard[-1].sees
        difference = (weights @ value - out.detach().double()).abs().amax(-1).masked_fill(~sees, 0).max()
        if not difference <= 1e-4 * max(1.0, float(value.abs().max())):
            self.doubts.append(f"{self.module}: SDPA recomputed differs by {float(difference):.1e}")

    @_alone
    def _softmax(self, scores: Tensor, args: Any, kwargs: Any, out: Tensor) -> None:
        if out.dim() < 3:
            return
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        dim = dim if isinstance(dim, int) else -1
        self._count += 1
        self._track(out, _Shadow(torch.softmax(scores, dim), scores.movedim(dim, -1), self._count))

    @_alone
    def _follow(self, shadow: _Shadow, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        weights = shadow.weights
        if func in _MOVED:
            weights = func(weights.clone(), *args[1:], **kwargs)
        if weights.shape == out.shape:
            is_part = out.numel() < shadow.weights.numel()  # parts multiply each for itself
            self._count += is_part
            self._track(out, shadow._replace(weights=weights, key=self._count if is_part else shadow.key))

    @_alone
    def _product(self, func: Any, args: Any) -> None:
        for place in _PRODUCTS[func]:
            items = args[place] if place < len(args) else ()
            for tensor in items if isinstance(items, tuple | list) else (items,):
                shadow = self._of(tensor)
                if shadow is not None and shadow.key not in self._used:
                    self._used.add(shadow.key)
                    weights = shadow.weights
                    turned = place == 1 and func is not torch.einsum
                    self._add(weights.transpose(-2, -1) if turned else weights, shadow.scores, "softmax")

    def _add(self, weights: Tensor, scores: Tensor, through: str) -> None:
        top = scores.amax(-1)
        alike = scores.amin(-1) == top  # hidden everywhere, and then shifted by some model's own code
        sees = (top > HIDDEN) & ~(alike & (scores.shape[-1] > 1))
        sees = sees.expand(weights.shape[:-1]) if sees.dim() == weights.dim() - 1 else sees.reshape(-1)
        if sees.numel() != weights[..., 0].numel():
            sees = torch.ones(weights.shape[:-1], dtype=torch.bool)
        shown = scores[(scores > HIDDEN) & scores.isfinite()]
        largest = float(shown.abs().max()) if shown.numel() else 0.0
        self.heard.append(Heard(self.module, self.step, weights, sees.reshape(weights.shape[:-1]), largest, through))

    def _track(self, tensor: Tensor, shadow: _Shadow) -> None:
        self._shadows[id(tensor)] = (weakref.ref(tensor), shadow)

    def _of(self, tensor: Any) -> _Shadow | None:
        known = self._shadows.get(id(tensor)) if torch.is_tensor(tensor) else None
        return known[1] if known is not None and known[0]() is tensor else None


@contextmanager
def listening_to(model: Any) -> Iterator[Oracle]:
    """Hear what a model computes until the context ends. Enter this last: what other modes compute passes it by."""
    oracle = Oracle()
    with ExitStack() as stack:
        for path, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(partial(oracle.enters, path)).remove)
            stack.callback(module.register_forward_hook(oracle.leaves, always_call=True).remove)
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        stack.enter_context(oracle)
        yield oracle
