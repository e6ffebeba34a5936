"""``attncache verify``: compares files with their checksums and says what is damaged."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attncache.commands.command import Answer, Command, one_line, path_of, run_names, size, title_of
from attncache.files.verifying import Verified, verify
from attncache.text import table

EXAMPLES = """\
examples:
  attncache verify run.safetensors        a file that AttentionCache.save wrote
  attncache verify runs/0001              a directory of AttentionCache.create: the manifest and every segment
  attncache verify runs                   every cache in a directory
  attncache verify run.safetensors --json | jq .ok
exit codes:
  0  every byte is as it was written
  1  something is damaged or cannot be read; or a file has no checksums, so that nobody can know
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which path."""
    parser.add_argument("path", metavar="PATH", help="a file or a directory, or the word sample")


def answers(arguments: argparse.Namespace) -> Iterator[Answer]:
    """What was found of every file."""
    path, title = path_of(arguments.path), title_of(arguments.path)
    runs = run_names(path)
    found = {path: verify(path)} if runs is None else {path / name: verified(path / name) for name in runs}
    files = [file for each in found.values() for file in each]
    damaged = [file for file in files if file.state == "damaged"]
    unproved = [file for file in files if file.state == "no checksums"]
    failure = None
    if damaged:
        first = one_line(damaged[0].errors[0])
        failure = first if len(files) == 1 else f"{title}: {len(damaged)} of {len(files)} files damaged; {first}"
    elif unproved:
        which = "it has no" if len(files) == 1 else f"{len(unproved)} of {len(files)} files have no"
        failure = f"{title}: {which} checksums, so nobody can know; attncache convert writes a file that has them"
    yield Answer(described(title, path, found), value_of(path, files), failure)


def verified(run: Path) -> list[Verified]:
    """What was found of one run of several, whatever is wrong with it."""
    try:
        return verify(run)
    except (OSError, ValueError) as error:
        return [Verified(run, errors=(error,))]


def described(title: str, path: Path, found: dict[Path, list[Verified]]) -> list[str]:
    """A line about all; where there are several, a line for each file, or for each run; and every error."""
    files = [file for each in found.values() for file in each]
    compared = f"{size(sum(file.n_bytes for file in files))} compared with their checksums"
    lines = [f"{title}: {state_of(files)}{', ' + compared if any(file.checksums for file in files) else ''}"]
    if len(found) > 1 or path not in found:
        rows = [
            [run.name, str(len(each)), size(sum(file.n_bytes for file in each)), state_of(each)]
            for run, each in found.items()
        ]
        lines += ["", *table(["run", "files", "compared", "state"], rows)]
    elif len(files) > 1:
        rows = [[file.path.name, size(file.n_bytes), file.state] for file in files]
        lines += ["", *table(["file", "compared", "state"], rows)]
    errors = [f"   {one_line(error)}" for file in files for error in file.errors]
    return [*lines, "", *errors] if errors else lines


def state_of(files: Sequence[Verified]) -> str:
    """The worst state of any."""
    states = {file.state for file in files}
    return next(state for state in ("damaged", "no checksums", "whole") if state in states)


def value_of(path: Path, files: Sequence[Verified]) -> dict[str, Any]:
    """The same for a program."""
    return {
        "path": str(path),
        "ok": state_of(files) == "whole",
        "files": [
            {
                "file": str(file.path),
                "state": file.state,
                "checksums": file.checksums,
                "bytes": file.n_bytes,
                "errors": [one_line(error) for error in file.errors],
            }
            for file in files
        ],
    }


COMMAND = Command(
    name="verify",
    summary="compare a file or directory with its checksums",
    description="Reads every byte of a cache, or of all caches in a directory, compares it with the checksums that were\n"
    "written with it, and says which bytes of which tensor are damaged.",
    examples=EXAMPLES,
    add_options=add_options,
    answers=answers,
)
