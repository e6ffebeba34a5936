"""What can be wrong with a cache on disk, as exceptions."""

from __future__ import annotations

from os import PathLike

from attncache.text import visible

_MOST = 300  # characters of each part of a message: names in a damaged file may be of any length


class DamagedFileError(ValueError):
    """A file breaks a rule of its format; the message says which file, where, which rule and what there was instead."""


class InUseError(OSError):
    """Another writer has the file or directory open."""


def damaged(path: str | PathLike[str], where: str, rule: str, got: object) -> DamagedFileError:
    """The exception of a broken rule.

    >>> str(damaged("a.safetensors", "header", "must be UTF-8", "byte 0xff"))
    'a.safetensors: header must be UTF-8, got byte 0xff'
    """
    told = (visible(text if len(text) <= _MOST else f"{text[:_MOST]}..") for text in (where, rule, str(got)))
    return DamagedFileError("{}: {} {}, got {}".format(path, *told))
