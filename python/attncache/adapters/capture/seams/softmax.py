"""Follows the result of a softmax through whatever leaves each weight in its place, up to the product that uses it.

A form is what is known of one tensor on the way. Views move its axes; casts, masks, dropout and products with numbers keep
them; what any other function makes of the weights, over the same keys, are not those of a softmax: its form is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Form:
    """What is known of a tensor that came from a softmax.

    Attributes:
        origin: the number of the softmax.
        key_axis: its axis over which the softmax was taken.
        shape: the longest shape that it was seen in with its items in this order, which shows batch and heads best.
        before: the same as it was before dropout; None if there was none.
        changed: the function that mixed its weights; None if none did.
    """

    origin: int
    key_axis: int
    shape: tuple[int, ...]
    before: torch.Tensor | None = None
    changed: str | None = None


def softmax_axis(args: tuple[Any, ...], kwargs: dict[str, Any], n_axes: int) -> int:
    """The axis over which a softmax was taken, from 0."""
    axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if not isinstance(axis, int):  # what PyTorch chooses where nothing is said
        axis = 0 if n_axes == 3 else 1
    return axis % n_axes


def is_dropping(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of a dropout function, (input, p, training), drops anything."""
    chance = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    training = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
    return chance > 0 and training is not False


def are_shares(factors: Iterable[Any]) -> bool:
    """Whether weights times these are weights still: numbers, and tensors of masks or gates, from 0 to 1; no hidden states."""
    return all(bool(((each >= 0) & (each <= 1)).all()) for each in factors if hasattr(each, "ndim"))


def reshaped(form: Form, _: Callable[[Any], Any], before: torch.Tensor, after: torch.Tensor) -> Form | None:
    """The form after a reshape, which keeps the order of the items; None if the keys are no axis of their own then."""
    n_outer, n_keys = prod(before.shape[: form.key_axis]), before.shape[form.key_axis]
    axes = [axis for axis, size in enumerate(after.shape) if size == n_keys and prod(after.shape[:axis]) == n_outer]
    if not axes:
        return None
    shape = tuple(after.shape) if after.ndim > len(form.shape) else form.shape
    return replace(form, key_axis=axes[-1], shape=shape)


def moved(form: Form, view: Callable[[Any], Any], before: torch.Tensor, after: torch.Tensor) -> Form | None:
    """The form after a view that moves, drops or shortens axes; None if it is none, or the keys are gone."""
    if after.untyped_storage().data_ptr() != before.untyped_storage().data_ptr():
        return None
    strides = [
        int(axis == form.key_axis) for axis in range(before.ndim)
    ]  # of a tensor that only the keys' axis moves in
    marked = view(before.new_empty(before.shape[form.key_axis], device="meta").as_strided(before.shape, strides))
    axes = [(marked.shape[axis], axis) for axis in range(marked.ndim) if marked.stride(axis)]
    return replace(form, key_axis=max(axes)[1], shape=tuple(after.shape)) if axes else None


def mixed(form: Form, before: torch.Tensor, after: Any, by: str) -> Form | None:
    """The form after any other function; None if its result is nothing like weights over the same keys."""
    is_like = isinstance(after, type(before)) and after.ndim == before.ndim and after.is_floating_point()
    if not is_like:
        return None
    others = [axis for axis in range(after.ndim) if after.shape[axis] != before.shape[axis]]
    sums_over = {"linear": before.ndim - 1, "conv1d": 1, "conv2d": 1, "conv3d": 1}.get(by)
    if form.key_axis in (*others, sums_over) or len(others) > 1:
        return None
    return replace(form, shape=tuple(after.shape), changed=form.changed or by)


class Product(NamedTuple):
    """A product of weights, as they multiply or before dropout, [.., query, key], and values [.., key, item]."""

    weights: torch.Tensor
    values: torch.Tensor


def factor(form: Form, tensor: torch.Tensor, other: torch.Tensor, contracted: int) -> Product | None:
    """The weights and values of a matrix product whose axis ``contracted`` of a factor is summed over.

    Args:
        form: what is known of the factor.
        tensor, other: the factor, [.., rows, columns], and the other one.
        contracted: -1 for a left factor, -2 for a right one.

    Returns:
        What multiplies; None if the sum is not over the keys.
    """
    if form.key_axis != tensor.ndim + contracted:
        return None
    weights = tensor if form.before is None else form.before
    if contracted == -2:
        return Product(weights.mT, other.mT if other.ndim > 1 else other[:, None])
    is_longer = len(form.shape) > tensor.ndim and form.shape[-1] == tensor.shape[-1]
    return Product(weights.reshape(form.shape) if is_longer else weights, other if other.ndim > 1 else other[:, None])


def einsum_factor(form: Form, equation: str, tensors: list[Any], place: int) -> Product | int | None:
    """The weights and values of a factor of ``torch.einsum``; or if it keeps the keys, their axis in its result; or None."""
    inputs, out = _spelled(equation, tensors)
    own = inputs[place]
    others = "".join(term for number, term in enumerate(inputs) if number != place)
    keys = own[form.key_axis]
    if keys in out:
        return out.index(keys)
    if keys not in others:
        return None
    term, other = next((t, o) for n, (t, o) in enumerate(zip(inputs, tensors, strict=True)) if n != place and keys in t)
    values = other.movedim(term.index(keys), -1).flatten(0, -2).mT
    weights = tensors[place] if form.before is None else form.before
    free = [letter for letter in own if letter not in others]
    if not free:  # one query for each item of the other axes
        return Product(weights.movedim(form.key_axis, -1).unsqueeze(-2), values)
    outer = [axis for axis, letter in enumerate(own) if letter not in (keys, free[-1])]
    return Product(weights.permute(*outer, own.index(free[-1]), form.key_axis), values)


_ELLIPSIS = "αβγδεζηθ"  # letters that no equation has


def _spelled(equation: str, tensors: list[Any]) -> tuple[list[str], str]:
    """The inputs and the output of an equation with a letter for each axis; those of an ellipsis are aligned at its end."""
    terms, arrow, out = equation.replace(" ", "").partition("->")
    inputs, hidden = [], ""
    for term, tensor in zip(terms.split(","), tensors, strict=True):
        n_hidden = tensor.ndim - len(term.replace("...", "")) if "..." in term else 0
        own = _ELLIPSIS[len(_ELLIPSIS) - n_hidden :]
        hidden = max(hidden, own, key=len)
        inputs.append(term.replace("...", own))
    letters = "".join(inputs)
    once = sorted(letter for letter in set(letters) - set(hidden) if letters.count(letter) == 1)
    return inputs, out.replace("...", hidden) if arrow else hidden + "".join(once)
