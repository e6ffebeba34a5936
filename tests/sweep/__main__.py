"""``python -m tests.sweep``: judges model types, prints what was found, and writes docs/models.md if asked."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from functools import partial
from pathlib import Path

from tests.sweep.building import model_types
from tests.sweep.report import Record, markdown, matrix_of, summary, verdict_of
from tests.sweep.workers import judge_all


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=__doc__)
    parser.add_argument("--types", help="model types with commas between them; all without it")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once (2)")
    parser.add_argument("--seconds", type=float, default=120, help="how long one type may take (120)")
    parser.add_argument("--markdown", type=Path, help="write this page")
    parser.add_argument("--json", type=Path, help="write every outcome here, a line of JSON for each type")
    parser.add_argument("--from-json", type=Path, help="run nothing, and take what an earlier run wrote")
    return parser.parse_args()


def main() -> int:
    """Run the sweep; 1 if anything is wrong or left out without a word."""
    arguments = _arguments()
    began = time.perf_counter()
    if arguments.from_json:
        lines = arguments.from_json.read_text().splitlines()
        records: list[Record] = sorted(map(json.loads, lines), key=lambda record: str(record["model_type"]))
    else:
        if arguments.json:
            arguments.json.unlink(missing_ok=True)
        types = arguments.types.split(",") if arguments.types else model_types()
        records = judge_all(types, arguments.jobs, arguments.seconds, partial(_tell, kept=arguments.json))
    if arguments.json:
        arguments.json.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    if arguments.markdown:
        versions = {name: importlib.metadata.version(name) for name in ("attncache", "transformers", "torch")}
        old = arguments.markdown.read_text() if arguments.markdown.exists() else ""
        arguments.markdown.write_text(markdown(records, versions, matrix_of(old)))
    print(f"\n{summary(records)}\n\n{len(records)} model types in {time.perf_counter() - began:.0f} s")
    return int(any(verdict_of(record) in {"wrong", "silent"} for record in records))


def _tell(record: Record, kept: Path | None) -> None:
    """Say what came of a type, and keep it, so that a run that is stopped leaves what it found."""
    if kept:
        with kept.open("a") as file:
            file.write(f"{json.dumps(record)}\n")
    reason = record["reason"] or next((o["reason"] for o in record["outcomes"] if o["verdict"] != "right"), "")
    print(f"{record['model_type']:32s} {verdict_of(record):10s} {record['seconds']:6.1f} s  {reason[:140]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
