"""Follows the result of a softmax through whatever leaves each weight in its place, up to the product that uses it.

A form is what is known of one tensor on the way. Views move its axes; casts, masks, dropout and products with numbers keep
them; any other function ends the way: then the weights that multiply are not those of a softmax.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Form:
    """What is known of a tensor that came from a softmax.

    Attributes:
        origin: the number of the softmax.
        key_axis: its axis over which the softmax was taken.
        n_keys: how long that axis is.
        shape: the longest shape that it was seen in with its items in this order, which shows batch and heads best.
        before: the same as it was before dropout; None if there was none.
        changed: the function that mixed its weights; None if none did.
    """

    origin: int
    key_axis: int
    n_keys: int
    shape: tuple[int, ...]
    before: torch.Tensor | None = None
    changed: str | None = None


def softmax_axis(args: tuple[Any, ...], kwargs: dict[str, Any], n_axes: int) -> int:
    """The axis over which a softmax was taken, from 0."""
    axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if not isinstance(axis, int):  # what PyTorch chooses where nothing is said
        axis = 0 if n_axes == 3 else 1
    return axis % n_axes


def kept(form: Form, before: torch.Tensor, after: torch.Tensor) -> Form | None:
    """The form after a function of each weight; None if the shape is another."""
    return form if after.shape == before.shape else None


def reshaped(form: Form, before: torch.Tensor, after: torch.Tensor) -> Form | None:
    """The form after a reshape, which keeps the order of the items; None if the keys are no axis of their own then."""
    n_outer, n_keys = prod(before.shape[: form.key_axis]), before.shape[form.key_axis]
    axes = [axis for axis, size in enumerate(after.shape) if size == n_keys and prod(after.shape[:axis]) == n_outer]
    if not axes:
        return None
    shape = tuple(after.shape) if after.ndim > len(form.shape) else form.shape
    return replace(form, key_axis=axes[-1], shape=shape)


def moved(form: Form, before: torch.Tensor, after: torch.Tensor) -> Form | None:
    """The form after a view that moves, drops or shortens axes, told by their strides; None if it is none, or the keys are gone."""
    if after.untyped_storage().data_ptr() != before.untyped_storage().data_ptr():
        return None
    stride = before.stride(form.key_axis)
    n_keys = before.shape[form.key_axis]
    axes = [axis for axis in range(after.ndim) if after.stride(axis) == stride and after.shape[axis] <= n_keys]
    if not axes:
        return None
    whole = [axis for axis in axes if after.shape[axis] == n_keys]
    axis = (whole or axes)[-1]
    return replace(form, key_axis=axis, n_keys=after.shape[axis], shape=tuple(after.shape))


def factor(form: Form, tensor: torch.Tensor, contracted: int) -> torch.Tensor | None:
    """The weights [.., query, key] of a factor of a matrix product whose axis ``contracted`` is summed over.

    Args:
        form: what is known of the factor.
        tensor: the factor, [.., rows, columns].
        contracted: -1 for a left factor, -2 for a right one.

    Returns:
        The weights as they multiply, or before dropout; None if the sum is not over the keys.
    """
    if form.key_axis != tensor.ndim + contracted:
        return None
    weights = tensor if form.before is None else form.before
    if contracted == -2:
        return weights.mT
    is_longer = len(form.shape) > tensor.ndim and form.shape[-1] == tensor.shape[-1]
    return weights.reshape(form.shape) if is_longer else weights


def einsum_factor(form: Form, equation: str, tensors: list[Any], place: int) -> torch.Tensor | None:
    """The weights [.., query, key] of a factor of ``torch.einsum``; None if the sum is not over the keys."""
    terms, _, out = equation.replace(" ", "").partition("->")
    inputs = _spelled(terms.split(","), tensors)
    if "->" not in equation:
        letters = "".join(inputs)
        out = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    out = out.replace("...", _ELLIPSIS)
    own = inputs[place]
    others = "".join(term for number, term in enumerate(inputs) if number != place)
    keys = own[form.key_axis]
    if keys in out or keys not in others:
        return None
    weights = tensors[place] if form.before is None else form.before
    free = [letter for letter in own if letter not in others]
    if not free:  # one query for each item of the other axes
        return weights.movedim(form.key_axis, -1).unsqueeze(-2)
    outer = [axis for axis, letter in enumerate(own) if letter not in (keys, free[-1])]
    return weights.permute(*outer, own.index(free[-1]), form.key_axis)


_ELLIPSIS = "αβγδεζηθ"  # letters that no equation has


def _spelled(terms: list[str], tensors: list[Any]) -> list[str]:
    """The terms of an equation with a letter for each axis; those of an ellipsis are aligned at its end."""
    spelled = []
    for term, tensor in zip(terms, tensors, strict=True):
        n_hidden = tensor.ndim - len(term.replace("...", ""))
        spelled.append(term.replace("...", _ELLIPSIS[len(_ELLIPSIS) - n_hidden :] if n_hidden else ""))
    return spelled
