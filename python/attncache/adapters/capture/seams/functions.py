"""Hears the tensor functions of one thread, under whatever name a model imported them, with one mode of PyTorch."""

from __future__ import annotations

import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from attncache.adapters.capture.calls import Call, Weights
from attncache.adapters.capture.heads import batch_and_heads
from attncache.adapters.capture.seams.listening import Heard, is_inside, tell
from attncache.adapters.capture.seams.modes import close_mode
from attncache.adapters.capture.seams.sdpa import leading_axes, read_sdpa
from attncache.adapters.capture.seams.softmax import (
    Form,
    Product,
    are_shares,
    einsum_factor,
    factor,
    is_dropping,
    mixed,
    moved,
    reshaped,
    softmax_axis,
)

if TYPE_CHECKING:
    import torch

Function = Callable[..., Any]
Follow = Callable[[Form, Callable[[Any], Any], "torch.Tensor", "torch.Tensor"], Form | None]
Reaction = Callable[[Function, tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def hear_functions() -> Iterator[None]:
    """Report every attention function that this thread calls until the context ends."""
    from torch.overrides import TorchFunctionMode  # noqa: PLC0415

    functions = Functions()

    class Hearing(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return functions.call(func, args, kwargs or {})

    mode = Hearing()
    functions.mode = mode
    thread = threading.get_ident()
    mode.__enter__()
    try:
        yield
    finally:
        if thread == threading.get_ident():
            close_mode(mode)


class Functions:
    """Sees every call of a tensor function, makes it, and reports attention.

    Attributes:
        mode: the mode that calls it, which is off while it does.
    """

    mode: Any

    def __init__(self) -> None:
        import torch  # noqa: PLC0415 (loaded already: it made the model)

        self._forms: dict[int, tuple[weakref.ref[torch.Tensor], Form]] = {}  # by the id of each tensor on its way
        self._origins = count()
        self._begins, self._goes_on = self._reactions()
        self._is_wrapped: Callable[[Any], bool] = torch._C._functorch.is_functorch_wrapped_tensor
        self._is_tracing: Callable[[], bool] = torch.jit.is_tracing

    def call(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call; the one place that every tensor function passes, so that it does little."""
        react = self._goes_on.get(func, self._changed) if self._forms else self._begins.get(func)
        return func(*args, **kwargs) if react is None else react(func, args, kwargs)

    def _reactions(self) -> tuple[dict[Function, Reaction], dict[Function, Reaction]]:
        """What to do at which function: always, and while the result of a softmax is on its way."""
        import torch  # noqa: PLC0415
        import torch.nn.functional as F  # noqa: PLC0415

        tensor, aten = torch.Tensor, torch.ops.aten
        begins: dict[Function, Reaction] = {F.multi_head_attention_forward: self._body}
        for sdpa in (
            F.scaled_dot_product_attention,
            torch._C._nn.scaled_dot_product_attention,  # the same, unless somebody put another in its place
            aten.scaled_dot_product_attention,
            aten.scaled_dot_product_attention.default,
        ):
            begins[sdpa] = self._sdpa
        for softmax in (
            torch.softmax, F.softmax, tensor.softmax, torch.special.softmax, torch._softmax, aten.softmax,
            aten.softmax.int, aten._softmax, aten._softmax.default,
        ):  # fmt: skip
            begins[softmax] = self._softmax
        goes_on = dict(begins)
        for name in (
            "to", "type_as", "type", "float", "half", "bfloat16", "double", "cpu", "cuda", "contiguous", "clone",
            "detach", "masked_fill", "masked_fill_", "nan_to_num", "nan_to_num_", "div", "div_", "divide",
            "true_divide", "__truediv__", "__itruediv__", "requires_grad_",
        ):  # fmt: skip
            self._at(goes_on, name, partial(self._elementwise, 1))
        self._at(goes_on, "where", partial(self._elementwise, 3))
        goes_on[tensor.data.__get__] = partial(self._elementwise, 1)
        for name in ("mul", "mul_", "multiply", "__mul__", "__rmul__", "__imul__"):
            self._at(goes_on, name, self._scaled)
        for name in ("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as", "reshape_as"):
            self._at(goes_on, name, partial(self._followed, reshaped))
        for name in (
            "transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "__getitem__", "narrow",
            "select", "adjoint", "expand", "expand_as", "split", "chunk", "unbind", "tensor_split", "split_with_sizes",
        ):  # fmt: skip
            self._at(goes_on, name, partial(self._followed, moved))
        for getter in (tensor.mT, tensor.T, tensor.mH, tensor.H):
            goes_on[getter.__get__] = partial(self._followed, moved)
        for dropout in (F.dropout, torch.dropout, torch.dropout_, torch.native_dropout):
            goes_on[dropout] = self._dropped
        for name in ("matmul", "__matmul__", "bmm", "mm"):
            self._at(goes_on, name, partial(self._product, (0, 1)))
        goes_on[torch.linalg.matmul] = partial(self._product, (0, 1))
        self._at(goes_on, "__rmatmul__", partial(self._product, (1, 0)))
        self._at(goes_on, "baddbmm", partial(self._product, (1, 2)))
        goes_on[torch.einsum] = self._einsum
        return begins, goes_on

    @staticmethod
    def _at(table: dict[Function, Reaction], name: str, reaction: Reaction) -> None:
        import torch  # noqa: PLC0415

        for owner in (torch, torch.Tensor):
            if hasattr(owner, name):
                table[getattr(owner, name)] = reaction

    def _body(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A Python function that PyTorch reports as a whole: its body runs as one that does not, with the mode on."""
        settings = {**func.__globals__, "has_torch_function": lambda *_: False}
        body = types.FunctionType(func.__code__, settings, func.__name__, func.__defaults__, func.__closure__)
        body.__kwdefaults__ = func.__kwdefaults__
        with self.mode:
            return body(*args, **kwargs)

    def _sdpa(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        if hasattr(out, "ndim") and (self._is_wrapped(out) or self._is_tracing()):
            tell(lambda who: who.unheard("attends inside torch.func or torch.jit.trace, where tensors cannot be read"))
        elif not is_inside():

            def read(n_heads: int | None) -> Call:
                return read_sdpa(args, kwargs, out, n_heads)

            tell(lambda who: who.heard(Heard("sdpa", None, leading_axes(args, kwargs), read)))
        return out

    def _softmax(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        if out.ndim >= 3 and not is_inside() and not self._is_wrapped(out) and not self._is_tracing():
            axis = softmax_axis(args, kwargs, out.ndim)
            self._track(out, Form(next(self._origins), axis, tuple(out.shape)))
        return out

    def _scaled(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A product, number by number: with hidden states the softmax was a gate, and its way ends."""
        others = [arg for arg in (*args, *kwargs.values()) if self._of(arg) is None]
        is_gate = len(others) < len(args) and not are_shares(others)  # which looks at no product of others
        out = self._elementwise(2, func, args, kwargs)
        if is_gate:
            self._forms.pop(id(out), None)
        return out

    def _elementwise(self, n_first: int, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function of numbers in the same places, of which one among the first is the weight; so of those before dropout."""
        ways = [(arg, form) for arg in args[:n_first] if (form := self._of(arg)) is not None and form.changed is None]
        if len(ways) != 1:
            return self._changed(func, args, kwargs)
        tensor, form = ways[0]
        if form.before is not None:
            own = form.before.clone()  # which the function may change
            form = replace(form, before=func(*(own if arg is tensor else arg for arg in args), **kwargs))
        out = func(*args, **kwargs)
        self._track(out, form if out.shape == tensor.shape else None)
        return out

    def _dropped(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Dropout, whose weights are those before it."""
        tensor: Any = args[0] if args else kwargs.get("input")
        form = self._of(tensor)
        if form is not None and form.before is None and is_dropping(args, kwargs):
            is_inplace = kwargs.get("inplace") or (len(args) > 3 and args[3]) or func.__name__.endswith("_")
            form = replace(form, before=tensor.detach().clone() if is_inplace else tensor.detach())
        out = func(*args, **kwargs)
        if form is not None:
            self._track(out[0] if isinstance(out, tuple) else out, form)
        return out

    def _followed(self, follow: Follow, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A view: the weights before dropout take the same."""
        form = self._of(args[0]) if args else None
        out = func(*args, **kwargs)
        if form is None:
            return out
        parts = out if isinstance(out, tuple | list) else (out,)
        for number, part in enumerate(parts):

            def view(tensor: Any, number: int = number) -> Any:
                found = func(tensor, *args[1:], **kwargs)
                return found if parts is not out else found[number]

            after = follow(form, view, args[0], part)
            if after is not None and after.before is not None:
                after = replace(after, before=view(after.before))
            if after is not None and part.numel() < args[0].numel():
                after = replace(after, origin=next(self._origins))  # parts multiply each for itself
            self._track(part, after or mixed(form, args[0], part, func.__name__))
        return out

    def _changed(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Any other function: what it makes of the weights, over the same keys, is none of a softmax."""
        way = self._first((*args, *kwargs.values()))
        out = func(*args, **kwargs)
        if way is not None:
            self._track(out, mixed(*way, out, getattr(func, "__name__", str(func))))
        return out

    def _product(self, places: tuple[int, int], func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = ("input", "batch1", "other", "mat2", "batch2")
        factors: list[Any] = [*args, *(kwargs[name] for name in names if name in kwargs)]
        for (place, other), contracted in zip((places, places[::-1]), (-1, -2), strict=True):
            form = self._of(factors[place])
            if form is not None:
                product = factor(form, factors[place], factors[other], contracted)
                if product is not None:
                    return self._multiplied(func, args, kwargs, form, product)
                if any(factors[other].ndim == 2 for other in places):  # as a learned mixing of heads is
                    return self._changed(func, args, kwargs)
        return func(*args, **kwargs)

    def _einsum(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = list(args[1]) if len(args) == 2 and isinstance(args[1], tuple | list) else list(args[1:])
        for place, tensor in enumerate(tensors):
            form = self._of(tensor)
            found = None if form is None else einsum_factor(form, args[0], tensors, place)
            if form is None or found is None:
                continue
            if not isinstance(found, int):
                return self._multiplied(func, args, kwargs, form, found)
            out = func(*args, **kwargs)
            if all(other is tensor or other.ndim == 2 for other in tensors):
                self._track(
                    out, replace(form, key_axis=found, shape=tuple(out.shape), changed=form.changed or "einsum")
                )
            return out
        return func(*args, **kwargs)

    def _multiplied(
        self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], form: Form, product: Product
    ) -> Any:
        """A product with weights over their keys: attention, unless they were mixed."""
        out = func(*args, **kwargs)
        weights, values = (tensor.detach() for tensor in product)
        weights = weights if weights.ndim > 2 else weights[None]

        def read(n_heads: int | None) -> Weights:
            batch, heads = batch_and_heads(tuple(weights.shape[:-2]), n_heads)
            return Weights(weights.reshape(batch, heads, *weights.shape[-2:]), values, form.before is not None)

        if form.changed is not None:
            tell(lambda who: who.unheard(f"passes its softmax through {form.changed} before it multiplies"))
        else:
            tell(lambda who: who.heard(Heard("softmax", None, tuple(weights.shape[:-2]), read)))
        for key in [key for key, (_, other) in self._forms.items() if other.origin == form.origin]:
            self._forms.pop(key, None)  # its way is over: it is reported once
        return out

    def _track(self, tensor: torch.Tensor, form: Form | None) -> None:
        """Note what a tensor is now; None if it is nothing of a softmax."""
        key = id(tensor)
        forms = self._forms
        if form is None:
            forms.pop(key, None)
        else:
            forms[key] = weakref.ref(tensor, lambda _: forms.pop(key, None)), form

    def _of(self, tensor: Any) -> Form | None:
        known = self._forms.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None

    def _first(self, args: Any) -> tuple[Form, torch.Tensor] | None:
        """The first tensor among the arguments, and in lists of them, that is on its way."""
        for arg in args:
            form = self._of(arg)
            way = (form, arg) if form is not None else self._first(arg) if isinstance(arg, tuple | list) else None
            if way is not None:
                return way
        return None
