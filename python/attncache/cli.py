"""The command ``attncache``: reads the arguments, runs one of ``attncache.commands``, prints, and makes the exit code.

0: done. 1: an error, said in one line on stderr; or a command found what it looks for, such as damage. 2: a usage
error. 130: Ctrl-C. With ``--json`` stdout is exactly one JSON document, {"error": "..."} after an error.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import attncache
from attncache.commands import convert, demo, info, top, verify
from attncache.commands.command import Command, one_line
from attncache.notices import PatternWarning
from attncache.text import printable

COMMANDS: dict[str, Command] = {
    command.name: command for command in (demo.COMMAND, info.COMMAND, verify.COMMAND, top.COMMAND, convert.COMMAND)
}
INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it
EXAMPLES = """\
examples:
  attncache demo                      a look into a small real model
  attncache info run.safetensors      what a file holds
  attncache top sample --layer 17     what the last token attends to
attncache COMMAND --help says more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` is what follows the program's name."""
    arguments = parsed(argv)
    try:
        with told(PatternWarning):
            return run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough, as in `attncache demo | head`
        return 1
    except (ImportError, IndexError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        if arguments.json:
            with suppress(OSError):  # which may be what went wrong
                show([document({"error": one_line(error)})])
        complain(one_line(error))
        return 1


def run(arguments: argparse.Namespace) -> int:
    """Print what the command answers."""
    code = 0
    for answer in COMMANDS[arguments.command].answers(arguments):
        show([document(answer.value)] if arguments.json else answer.lines)
        if answer.failure is not None:
            complain(answer.failure)
            code = 1
    return code


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; a usage error ends the process, as argparse does."""
    commands = parser()
    arguments = commands.parse_args(argv)
    problem = COMMANDS[arguments.command].nonsense(arguments)
    if problem is not None:
        commands.error(problem)
    return arguments


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    raw = argparse.RawDescriptionHelpFormatter
    whole = argparse.ArgumentParser(
        prog="attncache",
        description="Stores attention patterns of transformers and answers questions about them.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    whole.add_argument("--version", action="version", version=f"attncache {attncache.__version__}")
    whole.set_defaults(json=False)
    commands = whole.add_subparsers(dest="command", required=True, metavar=f"{{{','.join(COMMANDS)}}}")
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name, help=command.summary, description=command.description, epilog=command.examples, formatter_class=raw
        )
        command.add_options(one)
        if command.has_json:
            one.add_argument("--json", action="store_true", help="print one JSON document")
    return whole


def document(value: Any) -> str:
    """A JSON document in ASCII, which every terminal and every reader takes."""
    return json.dumps(finite(value), allow_nan=False)


def finite(value: Any) -> Any:
    """The value with NaN and infinities, which JSON has no numbers for, as the strings "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def show(lines: Iterable[str]) -> None:
    """Print lines in what the terminal can say, and send them off.

    Raises:
        OSError: nobody reads, or there is no room; whatever is printed from then on goes nowhere.
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, "stdout is closed")
    try:
        print(printable("\n".join(lines), sys.stdout.encoding), flush=True)
    except OSError:
        with suppress(OSError):  # what is left in its buffer would fail again when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


@contextmanager
def told(category: type[Warning]) -> Iterator[None]:
    """Says warnings of a category in one line each on stderr."""

    def tell(message: Warning | str, kind: type[Warning], *place: Any) -> None:
        if not issubclass(kind, category):
            usual(message, kind, *place)
        elif sys.stderr is not None:
            words = " ".join(str(message).split()).replace("check=False", "--no-check")
            print(printable(f"attncache: warning: {words}", sys.stderr.encoding), file=sys.stderr)

    with warnings.catch_warnings():
        usual, warnings.showwarning = warnings.showwarning, tell  # type: ignore[assignment]
        warnings.simplefilter("always", category)
        yield


def complain(message: str) -> None:
    """Say on stderr what is wrong, in one line."""
    if sys.stderr is not None:
        print(printable(f"attncache: error: {message}", sys.stderr.encoding), file=sys.stderr)
