"""``python -m tests.sweep``: judges model types, prints what was found, and writes docs/models.md if asked."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from pathlib import Path

from tests.sweep.building import model_types
from tests.sweep.report import Record, markdown, summary, verdict_of
from tests.sweep.workers import judge_all


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=__doc__)
    parser.add_argument("--types", help="model types with commas between them; all without it")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once (2)")
    parser.add_argument("--seconds", type=float, default=120, help="how long one type may take (120)")
    parser.add_argument("--markdown", type=Path, help="write this page")
    parser.add_argument("--json", type=Path, help="write every outcome here")
    parser.add_argument("--from-json", type=Path, help="run nothing, and take what an earlier run wrote")
    return parser.parse_args()


def main() -> int:
    """Run the sweep; 1 if anything is wrong or left out without a word."""
    arguments = _arguments()
    began = time.perf_counter()
    if arguments.from_json:
        records: list[Record] = json.loads(arguments.from_json.read_text())
    else:
        types = arguments.types.split(",") if arguments.types else model_types()
        records = judge_all(types, arguments.jobs, arguments.seconds, _tell)
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=1))
    if arguments.markdown:
        versions = {name: importlib.metadata.version(name) for name in ("attncache", "transformers", "torch")}
        arguments.markdown.write_text(markdown(records, versions))
    print(f"\n{summary(records)}\n\n{len(records)} model types in {time.perf_counter() - began:.0f} s")
    return int(any(verdict_of(record) in {"wrong", "silent"} for record in records))


def _tell(record: Record) -> None:
    reason = record["reason"] or next((o["reason"] for o in record["outcomes"] if o["verdict"] != "right"), "")
    print(f"{record['model_type']:32s} {verdict_of(record):10s} {record['seconds']:6.1f} s  {reason[:140]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
