"""What can be wrong with a file, as exceptions, and the doors at which a file's name is put into them.

Code below a door says rule and value; the door, which knows the path, puts it in front, once. ``atomic.replacing`` and
``bytes.opened`` are doors for what the system refuses, ``in_file`` also for what is wrong with the contents.
"""

from __future__ import annotations

from os import PathLike
from typing import TypeVar

from attncache.text import visible

_MOST = 300  # characters of each part of a message: names in a damaged file may be of any length
_MOST_WORDS = 1500  # and of a whole message
_Error = TypeVar("_Error", bound=ValueError)


class DamagedFileError(ValueError):
    """A file breaks a rule of its format; the message says which file, where, which rule and what there was instead."""


class InUseError(OSError):
    """Another writer has the file or directory open."""


def damaged(where: str, rule: str, got: object) -> DamagedFileError:
    """The exception of a broken rule, to be raised below a door.

    >>> with in_file("a.safetensors"):
    ...     raise damaged("header", "must be UTF-8", "byte 0xff")
    Traceback (most recent call last):
    attncache.files.errors.DamagedFileError: a.safetensors: header must be UTF-8, got byte 0xff
    """
    told = (visible(text if len(text) <= _MOST else f"{text[:_MOST]}..") for text in (where, rule, str(got)))
    return DamagedFileError("{} {}, got {}".format(*told))


def named(path: str | PathLike[str], error: _Error) -> _Error:
    """The exception with the file's name in front, if it has none yet."""
    known = vars(error)
    if "file" not in known:
        known["file"] = str(path)
        words = visible(str(error))
        error.args = (f"{path}: {words if len(words) <= _MOST_WORDS else words[:_MOST_WORDS] + '..'}",)
    return error


class naming:
    """Puts the file's name into an OSError of the system that does not say which file it is about, or names the hidden one."""

    __slots__ = ("_hidden", "_path")

    def __init__(self, path: str | PathLike[str], hidden: str | PathLike[str] = "") -> None:
        self._path, self._hidden = path, hidden

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError):
            if error.filename is not None and str(error.filename) == str(self._hidden):
                raise OSError(error.errno, error.strerror, str(self._path)) from None
            if error.filename is None and error.errno is not None:
                error.filename = str(self._path)


class in_file(naming):
    """Puts the file's name in front of a ValueError, and into an OSError, that does not name a file yet."""

    __slots__ = ()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, UnicodeError):  # whose words are not its arguments
            raise named(self._path, ValueError(str(error))) from error
        if isinstance(error, ValueError):
            named(self._path, error)
        super().__exit__(_, error, __)
