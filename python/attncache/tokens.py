"""The tokens of a cache: checks those that are set, and finds the token of every position in an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from attncache.layer_source import LayerSource

Tokens: TypeAlias = tuple[str, ...] | tuple[tuple[str, ...], ...]
Shape: TypeAlias = tuple[int, int, int, int]


class Of(NamedTuple):
    """What tokens are the text of: how errors name them and their axis, and which axis of a layer it is."""

    name: str
    position: str
    size_name: str
    axis: int


KEYS = Of("tokens", "key", "seq_k", 3)
QUERIES = Of("query_tokens", "query", "seq_q", 2)


def checked_tokens(tokens: object, shapes: Sequence[Shape], of: Of = KEYS) -> Tokens | None:
    """Tokens as tuples, if they fit layers of these shapes.

    Args:
        tokens: None, one string per key (or query), or one sequence of them per batch item.
        shapes: [batch, head, query, key] of each layer; without a layer, any number of tokens fits.
        of: what they are the tokens of.

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
    items = _items(tokens, of)
    if all(isinstance(item, str) for item in items):
        flat = tuple(map(str, items))  # str() also turns NumPy's strings into Python's
        _check_length(len(flat), "", shapes, of)
        return flat
    nested = tuple(_strings(item, f"{of.name}[{number}]", of) for number, item in enumerate(items))
    _check_batch(nested, shapes, of)
    for number, item in enumerate(nested):
        _check_length(len(item), f"[{number}]", shapes, of)
    return nested


def _kinds(of: Of) -> str:
    return f"{of.name} must be None, a sequence of strings, or one such sequence per batch item"


def _items(tokens: object, of: Of) -> list[object]:
    if _are_ids(tokens):
        raise TypeError(f"{_kinds(of)}, got numbers; tokenizer.convert_ids_to_tokens(ids) gives the tokens of ids")
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Iterable):
        raise TypeError(f"{_kinds(of)}, got {type(tokens).__name__}")
    return list(tokens)


def _are_ids(tokens: Any) -> bool:
    """Whether they are numbers in an array or a list."""
    if isinstance(tokens, list | tuple):
        return bool(tokens) and all(isinstance(token, int | np.integer) for token in tokens)
    return any(kind in str(getattr(tokens, "dtype", "")) for kind in ("int", "float"))


def _strings(item: object, name: str, of: Of) -> tuple[str, ...]:
    if isinstance(item, str | bytes) or not isinstance(item, Iterable):
        raise TypeError(f"{_kinds(of)}, got {name} of type {type(item).__name__}")
    strings = list(item)
    other = next((string for string in strings if not isinstance(string, str)), None)
    if other is not None:
        raise TypeError(f"{_kinds(of)}, got {type(other).__name__} in {name}")
    return tuple(map(str, strings))


def _check_batch(nested: tuple[tuple[str, ...], ...], shapes: Sequence[Shape], of: Of) -> None:
    for layer, (batch_size, *_) in enumerate(shapes):
        if len(nested) != batch_size:
            raise ValueError(
                f"{of.name} must be one sequence for each batch item of layer {layer}, batch_size={batch_size}, "
                f"got {len(nested)}"
            )
    lengths = sorted({len(item) for item in nested})
    if len(lengths) > 1:
        raise ValueError(f"{of.name} must be equally many for each batch item, got {lengths[0]} and {lengths[-1]}")


def _check_length(n_tokens: int, item: str, shapes: Sequence[Shape], of: Of) -> None:
    for layer, shape in enumerate(shapes):
        size = shape[of.axis]
        if n_tokens != size:
            last = "; the model has not read the last token that it generated, so leave that out: tokens[:-1]"
            raise ValueError(
                f"{of.name}{item} must be one string for each {of.position} of layer {layer}, {of.size_name}={size}, "
                f"got {n_tokens}" + (last if n_tokens == size + 1 else "")
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


class Described(NamedTuple):
    """What the layers of a cache say about the text of their positions.

    Attributes:
        tokens, query_tokens: the cache's.
        shapes, sources: of all its layers.
    """

    tokens: Tokens | None
    query_tokens: Tokens | None
    shapes: Sequence[Shape]
    sources: Sequence[LayerSource | None]


def answer_tokens(
    described: Described, layers: Any, batch: Any, direction: Literal["from", "to"]
) -> AnswerTokens | None:
    """What the positions of a ``top_k`` with these selectors stand for.

    Args:
        described: the cache that was asked.
        layers, batch, direction: as ``top_k`` has just taken them.

    Returns:
        The tokens of the answer; None if there are none, or if they are for another number of batch items.

    A query of direction "to" has its own token; without such, that of the key it is aligned with, the last query with
    the last key, unless its layer is known to be cross-attention, or has more queries than keys and so no such key.
    """
    try:
        chosen = _chosen(described.shapes, layers)
        tokens, offset = described.tokens, 0
        if direction == "to" and described.query_tokens is not None:
            tokens = described.query_tokens
        elif direction == "to" and chosen:
            offset = chosen[0][3] - chosen[0][2]
            kinds = {source and source.kind for source in _chosen(described.sources, layers)}
            if offset < 0 or "cross" in kinds:
                return None
        if tokens is None:
            return None
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
