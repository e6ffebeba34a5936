"""What a command of ``attncache`` is, and what several of them share: the path they are given, numbers and words."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from attncache.files import sample_path

if TYPE_CHECKING:
    from attncache.files.contents import Contents

SAMPLE = "sample"


class Answer(NamedTuple):
    """What a command found.

    Attributes:
        lines: for a person.
        value: the same for a program, to be printed as JSON.
        failure: why the exit code is 1 all the same; None if it is 0.
    """

    lines: list[str]
    value: Any = None
    failure: str | None = None


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name, summary, description, examples: what it is called and what its help says.
        add_options: puts its options into its parser.
        answers: what it answers to the arguments, page by page; errors are raised.
        nonsense: says what is wrong with arguments that do not go together, or None.
        has_json: whether it takes ``--json``; its answer is then one page.
    """

    name: str
    summary: str
    description: str
    examples: str
    add_options: Callable[[argparse.ArgumentParser], None]
    answers: Callable[[argparse.Namespace], Iterable[Answer]]
    nonsense: Callable[[argparse.Namespace], str | None] = lambda _: None
    has_json: bool = True


def add_layer_options(parser: argparse.ArgumentParser) -> None:
    """What says which arrays of a file by others are the layers, and how their axes lie."""
    option = parser.add_argument_group("options for files by others").add_argument
    option(
        "--names",
        metavar="NAMES",
        help="names of the layers' arrays, with {} for the number: 'attentions.{}' (default: found)",
    )
    option(
        "--axes",
        metavar="AXES",
        help="names of an array's axes, such as 'layer head query key' (default: by their number)",
    )
    option("--no-check", action="store_true", help="do not warn of layers that do not look like attention weights")


def contents_for(paths: Path | Sequence[Path], arguments: argparse.Namespace) -> Contents:
    """What is at the paths, read as the options say.

    Raises:
        As ``contents_of``; errors name the options as they are on the command line.
    """
    from attncache.files.contents import contents_of  # noqa: PLC0415 (not for the demo)

    try:
        return contents_of(paths, arguments.names, arguments.axes, check=not arguments.no_check)
    except ValueError as error:
        said = re.sub(r"\b(axes|names)(?==| must be given|, such as|= names| names| must)", r"--\1", str(error))
        if said == str(error):
            raise
        raise ValueError(said.replace('--axes="', '--axes "')) from error


def path_of(name: str) -> Path:
    """The path that was given, or that of the packaged sample."""
    return sample_path() if name == SAMPLE else Path(name)


def title_of(name: str) -> str:
    """How the path is named in an answer."""
    return f"{sample_path().name} (the packaged sample)" if name == SAMPLE else name


def run_names(path: Path) -> list[str] | None:
    """The names of the runs in a directory that is not a cache itself; None if it is a cache or a file, or holds no runs."""
    from attncache.files.contents import is_cache_directory  # noqa: PLC0415 (not for the demo)
    from attncache.runs.directory import open_runs  # noqa: PLC0415

    if not path.is_dir() or is_cache_directory(path):
        return None
    return list(open_runs(path).names) or None


def one_cache(path: Path) -> Path:
    """A path that is not a directory of several runs.

    Raises:
        ValueError: it is one.
    """
    runs = run_names(path)
    if runs is not None:
        raise ValueError(
            f"{path}: must be one cache, got a directory of {count(len(runs), 'run')}: {path / runs[0]}, .."
        )
    return path


def at_least_one(text: str) -> int:
    """A count of answers; argparse words the complaint."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def one_line(error: Exception) -> str:
    """What went wrong, without line breaks; the file first where the system complains about one."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def size(n_bytes: int) -> str:
    """Bytes, exactly."""
    return f"{n_bytes:,} bytes"


def count(n: int, noun: str) -> str:
    """A number and its noun."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
