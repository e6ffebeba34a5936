"""The numbers of layers in the keys of a mapping: ints, or names that differ in one number."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

_SHOWN = 4


def layer_numbers(keys: Sequence[Any]) -> list[int]:
    """The number of each layer, in the order of the keys.

    Args:
        keys: ints from 0, or strings that are alike but for one number.

    Raises:
        TypeError: a key is neither. ValueError: a number is negative or there twice, or the strings differ in more than
            one number.

    >>> layer_numbers(["layer_7", "layer_11"])
    [7, 11]
    """
    if all(isinstance(key, str) for key in keys):
        return _numbers_in(keys)
    numbers = [_whole_number(key) for key in keys]
    negative = next((number for number in numbers if number < 0), None)
    if negative is not None:
        raise ValueError(f"attentions must number its layers from 0, got {negative}")
    return numbers


def _whole_number(key: Any) -> int:
    if isinstance(key, bool) or not hasattr(key, "__index__"):
        raise TypeError(
            "attentions must map layer numbers, or names that differ in one number, to patterns, "
            f"got the key {key!r}; the cache of TransformerLens comes in through from_transformer_lens"
        )
    return operator.index(key)


def _numbers_in(names: Sequence[str]) -> list[int]:
    """The one number in which the names differ; of a single name the first."""
    for place in re.finditer("[0-9]+", names[0]):
        wanted = re.compile(re.escape(names[0][: place.start()]) + "([0-9]{1,9})" + re.escape(names[0][place.end() :]))
        matches = [wanted.fullmatch(name) for name in names]
        numbers = [int(match[1]) for match in matches if match]
        if len(set(numbers)) == len(names):
            return numbers
    shown = ", ".join(map(repr, names[:_SHOWN])) + (", .." if len(names) > _SHOWN else "")
    lens = "; the cache of TransformerLens comes in through from_transformer_lens" if "hook_" in "".join(names) else ""
    raise ValueError(
        f"attentions must map names that differ in one number, the layer's, to patterns, got {shown}{lens}"
    )
