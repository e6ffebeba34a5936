"""Makes tables of what the sweep found: docs/models.md and what is printed; __main__.py uses it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

Record = dict[str, Any]
PAGE = Path(__file__).with_name("page.md")
MATRIX = ("<!-- matrix -->", "<!-- end of matrix -->")  # around the part of the page that tests/matrix writes
ORDER = ("wrong", "silent", "refused", "failed", "none", "right", "not built")  # the worst comes first
VERDICTS = {
    "right": "right",
    "partly": "right where it does not refuse",
    "refused": "refused",
    "wrong": "wrong",
    "silent": "attention left out without a word",
    "none": "no attention to hear",
    "not built": "not built",
}


def verdict_of(record: Record) -> str:
    """What all runs of a model type together came to, a key of VERDICTS."""
    verdicts = {outcome["verdict"] for outcome in record["outcomes"]} - {"failed"}
    if not verdicts:
        return "not built"
    for verdict in ("wrong", "silent"):
        if verdict in verdicts:
            return verdict
    if "refused" in verdicts:
        heard = any(outcome["heard"] for outcome in record["outcomes"])
        return "none" if not heard else "partly" if "right" in verdicts else "refused"
    return "right" if "right" in verdicts else "none"


def reason_kind(reason: str) -> str:
    """A reason without the names and numbers of one model, so that equal ones can be counted."""
    reason = re.sub(r"^\w*(Error|Exception): ", "", reason)
    reason = re.sub(r"layer \d+ \([\w.]*\)|(?<![\w.])\w+(\.\w+)+", "…", reason)
    reason = re.sub(r"\b[A-Z]\w+ cannot be captured", "… cannot be captured", reason)
    reason = re.sub(r"…(, …)+", "…", re.sub(r"(no layer and no word of) .*", r"\1 …", reason))
    return re.sub(r"\[[\d, ]*\]|\b\d[\d.e+-]*", "n", reason)[:260]


def summary(records: list[Record]) -> str:
    """Counts of verdicts and of the reasons of what was not right, as lines."""
    counts = Counter(verdict_of(record) for record in records)
    lines = [f"{counts[name]:5d}  {words}" for name, words in VERDICTS.items() if counts[name]]
    reasons: dict[str, set[str]] = {}
    for record in records:
        for outcome in record["outcomes"]:
            if outcome["verdict"] in {"wrong", "silent", "refused"} and outcome["heard"]:
                reasons.setdefault(f"{outcome['verdict']}: {reason_kind(outcome['reason'])}", set()).add(
                    record["model_type"]
                )
        if verdict_of(record) == "not built":
            why = reason_kind(_short(record["reason"] or _failure(record)))[:120]
            reasons.setdefault(f"not built: {why}", set()).add(record["model_type"])
    for reason, types in sorted(reasons.items(), key=lambda item: (ORDER.index(item[0].split(":")[0]), -len(item[1]))):
        lines.append(f"{len(types):5d}  {reason}  [{', '.join(sorted(types)[:6])}]")
    return "\n".join(lines)


def matrix_of(page: str) -> str:
    """The part of a page that tests/matrix writes, between its marks; "" in a page without."""
    found = re.search(rf"{MATRIX[0]}.*{MATRIX[1]}", page, re.DOTALL)
    return found[0] if found else ""


def matrix_replaced(page: str, text: str) -> str:
    """A page whose part of the matrix is this text, at its end if there was none."""
    part = f"{MATRIX[0]}\n\n{text}\n\n{MATRIX[1]}"
    old = matrix_of(page)
    return page.replace(old, part) if old else f"{page.rstrip()}\n\n{part}\n"


def markdown(records: list[Record], versions: dict[str, str], matrix: str = "") -> str:
    """docs/models.md, with the part that ``matrix_of`` found in it before."""
    counts = Counter(verdict_of(record) for record in records)
    numbers = _numbered(records)
    heard = [_row(record, numbers) for record in records if verdict_of(record) not in {"not built", "none"}]
    missing: dict[str, list[str]] = {}
    for record in records:
        if verdict_of(record) == "not built":
            missing.setdefault(_short(record["reason"] or _failure(record)), []).append(record["model_type"])
    rows = [f"| {words} | {counts[name]} |" for name, words in VERDICTS.items() if counts[name]]
    page = PAGE.read_text(encoding="utf-8").format(
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        total=len(records),
        counts="\n".join(["| | model types |\n|---|---|", *rows]),
        heard="\n".join(["| type | model | layers | verdict | runs |\n|---|---|---|---|---|", *heard]),
        reasons="\n".join(f"{number}. {_short(reason)}" for reason, number in numbers.items()),
        nothing=", ".join(record["model_type"] for record in records if verdict_of(record) == "none") + ".",
        missing="\n".join(f"- {', '.join(types)}: {why}" for why, types in missing.items()),
    )
    contents = {"Reasons": numbers, "No attention to hear": "none" in counts, "Not built": missing}
    head, *sections = page.split("\n\n## ")
    kept = [each.rstrip("\n") for each in sections if contents.get(each.partition("\n")[0], True)]
    return "\n\n".join(filter(None, ["\n\n## ".join([head, *kept]), matrix])) + "\n"


def _numbered(records: list[Record]) -> dict[str, int]:
    """Every kind of reason with its number, the most frequent first."""
    kinds = Counter(
        kind
        for record in records
        if verdict_of(record) not in {"not built", "none"}
        for kind in {reason_kind(outcome["reason"]) for outcome in record["outcomes"] if outcome["reason"]}
    )
    return {kind: number for number, (kind, _) in enumerate(kinds.most_common(), 1)}


def _row(record: Record, numbers: dict[str, int]) -> str:
    outcomes = record["outcomes"]
    layers = max(outcome["layers"] for outcome in outcomes)
    details = _details(outcomes, numbers)
    return f"| {record['model_type']} | {record['model']} | {layers or ''} | {verdict_of(record)} | {details} |"


def _details(outcomes: list[Record], numbers: dict[str, int]) -> str:
    """Which runs were right, and the number of the reason why others were not."""
    groups: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for outcome in outcomes:
        why = numbers[reason_kind(outcome["reason"])] if outcome["reason"] else 0
        groups.setdefault((outcome["verdict"], why), []).append((outcome["run"], outcome["store"]))
    everything = [(outcome["run"], outcome["store"]) for outcome in outcomes]
    texts = []
    for (verdict, why), names in sorted(groups.items(), key=lambda item: -ORDER.index(item[0][0])):
        where = _where(names, everything)
        reason = f" [{why}]" if why else ""
        texts.append(f"{where}{reason}" if verdict == "right" else f"{where}: {verdict}{reason}")
    return "; ".join(texts)


def _where(names: list[tuple[str, str]], everything: list[tuple[str, str]]) -> str:
    """Some of the runs in few words."""
    if len(names) == len(everything):
        return "all"
    for store in ("pattern", "qk"):
        if names == [name for name in everything if name[1] == store]:
            return f"store {store}"
    stores: dict[str, list[str]] = {}
    for run, store in names:
        stores.setdefault(run, []).append(store)
    texts = [run if len(kept) == 2 else f"{run} ({kept[0]})" for run, kept in stores.items()]
    return " / ".join(text.replace(", ", " ") for text in texts)


def _failure(record: Record) -> str:
    return record["outcomes"][0]["reason"] if record["outcomes"] else ""


def _short(reason: str) -> str:
    """One reason in a cell of a table."""
    first = reason.partition(" | ")[0]
    first = re.sub(r"^(small|shallow)(, with media)?: ", "", first).replace("|", "/").replace("`", "'")
    first = re.sub(r"(please|You can install).*", "", first, flags=re.IGNORECASE).strip(" .;")
    return first if len(first) <= 260 else first[:260] + "…"
