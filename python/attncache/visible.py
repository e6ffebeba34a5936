"""Text that a terminal shows as it is: names and words out of files may hold what would move its cursor or worse."""

from __future__ import annotations


def visible(text: str) -> str:
    """The text with every invisible character but line breaks escaped.

    >>> print(visible("a\\x1b[31m"))
    a\\x1b[31m
    """
    if text.replace("\n", "").isprintable():
        return text
    return "".join(letter if letter == "\n" or letter.isprintable() else repr(letter)[1:-1] for letter in text)
