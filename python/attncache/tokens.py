"""The tokens of a cache: checks those that are set, and finds the token of every position in an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Tokens: TypeAlias = tuple[str, ...] | tuple[tuple[str, ...], ...]
Shape: TypeAlias = tuple[int, int, int, int]

_KINDS = "tokens must be None, a sequence of strings, or one such sequence per batch item"


def checked_tokens(tokens: object, shapes: Sequence[Shape]) -> Tokens | None:
    """Tokens as tuples, if they fit layers of these shapes.

    Args:
        tokens: None, one string per key, or one sequence of them per batch item.
        shapes: [batch, head, query, key] of each layer; without a layer, any number of tokens fits.

    Returns:
        None, a tuple of strings, or a tuple of such tuples.

    Raises:
        TypeError: tokens is none of these.
        ValueError: a layer has another number of keys or of batch items, or batch items differ in how many tokens they
            have.

    >>> checked_tokens(["the", "cat"], [(1, 8, 2, 2)])
    ('the', 'cat')
    """
    if tokens is None:
        return None
    items = _items(tokens)
    if all(isinstance(item, str) for item in items):
        flat = tuple(map(str, items))  # str() also turns NumPy's strings into Python's
        _check_keys(len(flat), "", shapes)
        return flat
    nested = tuple(_strings(item, f"tokens[{number}]") for number, item in enumerate(items))
    _check_batch(nested, shapes)
    for number, item in enumerate(nested):
        _check_keys(len(item), f"[{number}]", shapes)
    return nested


def _items(tokens: object) -> list[object]:
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Iterable):
        raise TypeError(f"{_KINDS}, got {type(tokens).__name__}")
    return list(tokens)


def _strings(item: object, name: str) -> tuple[str, ...]:
    if isinstance(item, str | bytes) or not isinstance(item, Iterable):
        raise TypeError(f"{_KINDS}, got {name} of type {type(item).__name__}")
    strings = list(item)
    other = next((string for string in strings if not isinstance(string, str)), None)
    if other is not None:
        raise TypeError(f"{_KINDS}, got {type(other).__name__} in {name}")
    return tuple(map(str, strings))


def _check_batch(nested: tuple[tuple[str, ...], ...], shapes: Sequence[Shape]) -> None:
    for layer, (batch_size, *_) in enumerate(shapes):
        if len(nested) != batch_size:
            raise ValueError(
                f"tokens must be one sequence for each batch item of layer {layer}, batch_size={batch_size}, "
                f"got {len(nested)}"
            )
    lengths = sorted({len(item) for item in nested})
    if len(lengths) > 1:
        raise ValueError(f"tokens must be equally many for each batch item, got {lengths[0]} and {lengths[-1]}")


def _check_keys(n_tokens: int, item: str, shapes: Sequence[Shape]) -> None:
    for layer, (*_, seq_k) in enumerate(shapes):
        if n_tokens != seq_k:
            raise ValueError(
                f"tokens{item} must be one string for each key of layer {layer}, seq_k={seq_k}, got {n_tokens}"
            )


@dataclass(frozen=True)
class AnswerTokens:
    """The tokens that the positions of one answer stand for.

    Attributes:
        prompts: the tokens of each batch item along ``axis``, or of the only prompt there is.
        axis: which axis of the answer is the batch; None where one prompt serves the whole answer.
        offset: the number of the token at position 0: not 0 for queries that are the last of more keys.
    """

    prompts: tuple[tuple[str, ...], ...]
    axis: int | None
    offset: int

    def token(self, row: tuple[int, ...], position: int) -> str | None:
        """The token of one position in one row of the answer, None beyond the tokens there are."""
        prompt = self.prompts[0 if self.axis is None else row[self.axis]]
        number = position + self.offset
        return prompt[number] if 0 <= number < len(prompt) else None

    def tokens(self, positions: npt.NDArray[np.int64]) -> list[Any]:
        """The tokens of all positions, as lists nested like them."""
        found = np.empty(positions.shape, object)
        if self.axis is None:
            found[...] = self._lookup(self.prompts[0], positions)
        else:
            parts = zip(np.moveaxis(positions, self.axis, 0), np.moveaxis(found, self.axis, 0), strict=True)
            for prompt, (part, into) in zip(self.prompts, parts, strict=True):
                into[...] = self._lookup(prompt, part)
        nested: list[Any] = found.tolist()
        return nested

    def _lookup(self, prompt: tuple[str, ...], positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        names = np.array([*prompt, None], object)
        numbers = positions + self.offset
        return names[np.where((numbers >= 0) & (numbers < len(prompt)), numbers, len(prompt))]


def answer_tokens(
    tokens: Tokens, shapes: Sequence[Shape], layers: Any, batch: Any, direction: Literal["from", "to"]
) -> AnswerTokens | None:
    """What the positions of a ``top_k`` with these selectors stand for.

    Args:
        tokens: the tokens of the cache.
        shapes: of all layers of the cache.
        layers, batch, direction: as ``top_k`` has just taken them.

    Returns:
        The tokens of the answer; None if they are for another number of batch items than the layers have.

    A query of direction "to" takes the token of the key it is aligned with, the last query with the last key.
    """
    try:
        chosen = _chosen(shapes, layers)
        offset = chosen[0][3] - chosen[0][2] if direction == "to" and chosen else 0
        if not tokens or isinstance(tokens[0], str):
            return AnswerTokens((tokens,), None, offset)  # type: ignore[arg-type]
        if chosen and chosen[0][0] != len(tokens):
            return None
        axis = None if _is_index(batch) else 0 if _is_index(layers) else 1
        return AnswerTokens(tuple(_chosen(tokens, batch)), axis, offset)
    except IndexError:  # another thread has cleared the cache since
        return None


def _is_index(selector: Any) -> bool:
    """Whether a selector is an int, which drops its axis."""
    return hasattr(selector, "__index__") and getattr(selector, "ndim", 0) == 0


def _chosen(items: Sequence[Any], selector: Any) -> Sequence[Any]:
    """The items that a selector chooses."""
    if selector is None:
        return items
    if isinstance(selector, slice):
        return items[selector]
    return [items[index] for index in ([selector] if _is_index(selector) else selector)]
