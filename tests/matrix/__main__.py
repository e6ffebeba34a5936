"""``python -m tests.matrix``: judges the models whose libraries are installed, and writes the second table of a page."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from tests.matrix import others, torch_models, vision
from tests.matrix.entry import Entry
from tests.matrix.judging import Row, judge
from tests.matrix.table import NOT_INSTALLED, merged, section
from tests.sweep.report import matrix_replaced
from tests.sweep.verdicts import line

ENTRIES = [*torch_models.ENTRIES, *vision.ENTRIES, *others.ENTRIES]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--models", help="parts of libraries' and models' names with commas between; all without it")
    parser.add_argument("--markdown", type=Path, help="write the table into this page")
    parser.add_argument("--json", type=Path, help="write every row here")
    parser.add_argument("--from-json", help="run nothing, and take the rows of these files, with commas between")
    arguments = parser.parse_args()
    if arguments.markdown and arguments.models:
        parser.error("--markdown writes the table of all models, without --models")
    return arguments


def main() -> int:
    """Run the matrix; 1 if anything is wrong or left out without a word."""
    arguments = _arguments()
    if arguments.from_json:
        rows = merged(
            Row(**row) for name in arguments.from_json.split(",") for row in json.loads(Path(name).read_text())
        )
    else:
        wanted = (arguments.models or "").lower().split(",")
        chosen = [entry for entry in ENTRIES if any(word in f"{entry.library} {entry.name}".lower() for word in wanted)]
        rows = list(map(_judged, chosen))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if arguments.markdown:
        page = arguments.markdown.read_text(encoding="utf-8")
        arguments.markdown.write_text(matrix_replaced(page, section(rows)), encoding="utf-8")
    return int(any(row.verdict in {"wrong", "silent"} for row in rows))


def _judged(entry: Entry) -> Row:
    """A row, whatever happens, which is told."""
    row = Row(entry.library, "", entry.name)
    try:
        row = judge(entry)
    except ModuleNotFoundError:  # the library, or one that it needs
        row.verdict = NOT_INSTALLED
    except Exception as error:
        row.verdict, row.reason = "failed", line(error)
    heard = ", ".join(f"{count} {what}" for what, count in row.heard.items())
    figures = f"{heard or '-'}, qk {row.factored}, {row.worst:.0e}, output {row.changed:.0e}"
    print(f"{row.library} {row.name:32s} {row.verdict:10s} {row.seconds:5.1f} s  {figures}  {row.reason}", flush=True)
    return row


if __name__ == "__main__":
    logging.disable()
    sys.exit(main())
