"""The command line: ``attncache demo`` and what all commands share, in this process and in one of their own.

Covered: every option, the exit codes 0, 1 and 2 and where the words go, every number of the demo against
reference.py on the same sample, terminals without UTF-8, a reader that leaves early, the timing's check.
The demo rounds: numbers compare as text at the printed digits, which is exact because both sides hold the same bits.
Not covered: what the timings say; they are measurements. The other commands: test_info.py and so on.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import attncache
from attncache import AttentionCache, cli, reference
from attncache.commands import demo
from attncache.files import PatternFile, read_patterns, sample_path
from attncache.text import WIDTH, label, printable
from tests.support.command_line import Run, process

SAMPLE: PatternFile = read_patterns(sample_path())
TOKENS = [label(token) for token in SAMPLE.tokens or ()]
LAST = len(TOKENS) - 1
LAYERS = range(len(SAMPLE.patterns))
CELL = r" *(\d+) (\S+) +(\d\.\d\d)"
EDGE = r"head (\d)  +(\d+) (\S+) +→ +(\d+) (\S+) +(\d\.\d\d)"


def section(lines: list[str], question: str) -> list[str]:
    """The lines beneath the heading that holds this question, up to the next heading."""
    start = next(number for number, line in enumerate(lines) if line.startswith("──") and question in line)
    rest = lines[start + 1 :]
    return rest[: next((number for number, line in enumerate(rest) if line.startswith("──")), len(rest))]


def numbered(lines: list[str]) -> dict[int, str]:
    """The table rows that begin with a number in the first column; wrapped rows are joined."""
    rows: dict[int, str] = {}
    for line in lines:
        if match := re.match(r" {3,4}(\d+)  (.*)", line):
            rows[int(match[1])] = match[2]
        elif rows and line.startswith(" " * 7) and line.strip():
            rows[max(rows)] += "  " + line[7:]
    return rows


def keys(text: str) -> list[tuple[int, str]]:
    """The cells of one row as (position, weight); the token between them may be cut short but must be the right one."""
    cells = [(int(position), token, weight) for position, token, weight in re.findall(CELL, text)]
    assert all(TOKENS[position].startswith(token.removesuffix("…")) for position, token, _ in cells)
    return [(position, weight) for position, _, weight in cells]


def expected_keys(layer: int, position: int, k: int, heads: int | str = "mean") -> list[tuple[int, str]]:
    found, weights = reference.top_k(SAMPLE.patterns, k, layers=layer, positions=position, heads=heads)
    return [(int(key), f"{weight:.2f}") for key, weight in zip(found, weights, strict=True) if weight]


def first_token_share(layer: int, heads: int | str = "mean") -> str:
    heaviest, _ = reference.top_k(SAMPLE.patterns, 1, layers=layer, heads=heads)
    return f"{int((heaviest[1:, 0] == 0).sum())} of {LAST} queries"


def first_token_mean(layer: int, heads: int | str = "mean") -> float:
    return float(reference.columns(SAMPLE.patterns, layer, 0, heads=heads)[1:].mean())


def strongest_edges(layer: int, n: int, heads: list[int] | None = None) -> list[tuple[str, ...]]:
    weights = reference.edges(SAMPLE.patterns, None, None, layers=layer, heads=heads)
    edges = [
        (-float(weights[at, query, key]), head, query, key)
        for at, head in enumerate(heads or range(9))
        for query in range(LAST + 1)
        for key in range(1, query)
    ]
    return [
        (str(head), str(query), TOKENS[query], str(key), TOKENS[key], f"{-weight:.2f}")
        for weight, head, query, key in sorted(edges)[:n]
    ]


def test_demo_shows_the_text_with_the_number_above_each_token(run: Run) -> None:
    lines = run("demo", "--no-timing")
    shown = {}
    for numbers, words in zip(lines[2:10:3], lines[3:10:3], strict=True):
        for match in re.finditer(r"\d+", numbers):
            shown[int(match[0])] = words[match.start() :].split()[0]
    assert [shown[number] for number in range(len(shown))] == TOKENS


@pytest.mark.parametrize(
    ("options", "position", "k", "heads"),
    [
        ("", LAST, 5, "mean"),
        ("--position 7", 7, 5, "mean"),
        ("--position -30", 10, 5, "mean"),
        ("--position 0", 0, 5, "mean"),
        ("--top 1", LAST, 1, "mean"),
        ("--top 12", LAST, 12, "mean"),
        ("--top 100", LAST, 100, "mean"),
        ("--head 4", LAST, 5, 4),
        ("--head -1", LAST, 5, 8),
    ],
)
def test_demo_shows_what_a_token_attends_to_in_every_layer_as_the_reference_has_it(
    run: Run, options: str, position: int, k: int, heads: int | str
) -> None:
    lines = run("demo", "--no-timing", *options.split())
    whose = "mean of 9 heads" if heads == "mean" else f"head {heads}"
    rows = numbered(section(lines, f'What does token {position} "{TOKENS[position]}" attend to? ({whose})'))
    assert {layer: keys(row) for layer, row in rows.items()} == {
        layer: expected_keys(layer, position, k, heads) for layer in LAYERS
    }
    for layer, row in numbered(section(lines, "the first token?")).items():
        assert row.startswith(f"{first_token_mean(layer, heads):.2f} ")
    for layer, row in numbered(section(lines, "Which edges are the strongest?")).items():
        assert re.findall(EDGE, row) == strongest_edges(layer, 2, [heads] if isinstance(heads, int) else None)


def test_demo_shows_who_attends_to_the_first_token_in_every_layer_as_the_reference_has_it(run: Run) -> None:
    rows = numbered(section(run("demo", "--no-timing"), 'Who attends to token 0 "The"'))
    assert list(rows) == list(LAYERS)
    for layer, row in rows.items():
        mean, share = re.match(r"(\d\.\d\d) [█·]{20} +(\d+ of \d+ queries)  ", row).groups()  # type: ignore[union-attr]
        assert mean == f"{first_token_mean(layer):.2f}"
        assert share == first_token_share(layer)
        by_head = [first_token_mean(layer, head) for head in range(9)]
        most, least = int(np.argmax(by_head)), int(np.argmin(by_head))
        assert row.split()[-6:] == ["head", f"{most}", f"{max(by_head):.2f}", "head", f"{least}", f"{min(by_head):.2f}"]


def test_demo_says_what_it_left_out_and_where_to_look_next(run: Run) -> None:
    text = " ".join(" ".join(run("demo", "--no-timing")).split())
    assert "Left out: edges to token 0 (the attention sink, above) and edges from a token to itself." in text
    assert "attncache demo --layer 17 --head 4." in text
    assert 'token 7 "stairs", weight 0.97. The model goes on with "stairs".' in text


@pytest.mark.parametrize(("layer", "number"), [("17", 17), ("-13", 17), ("0", 0), ("-1", 29)])
def test_demo_layer_shows_one_layer_and_each_of_its_heads_as_the_reference_has_them(
    run: Run, layer: str, number: int
) -> None:
    lines = run("demo", "--no-timing", "--layer", layer, "--top", "6")
    found = section(lines, f'Layer {number}: what does token 39 "spiral" attend to? (mean of 9 heads)')
    answer = reference.top_attended_positions(SAMPLE.patterns, number, LAST, 6)
    shown = [line.split()[:3] for line in found if re.match(r" +\d+ \S+ +\d\.\d\d\d ", line)]
    assert shown == [[str(key), TOKENS[key], f"{weight:.3f}"] for key, weight in answer]
    heads = numbered(found[next(at for at, line in enumerate(found) if line.startswith(" head")) :])
    assert {head: keys(row) for head, row in heads.items()} == {
        head: expected_keys(number, LAST, 4, head) for head in range(9)
    }


def test_demo_layer_shows_who_attends_to_the_first_token_as_the_reference_has_it(run: Run) -> None:
    found = section(run("demo", "--no-timing", "--layer", "20"), "Layer 20: who attends to token 0")
    mean = first_token_mean(20)
    assert f"   mean weight {mean:.3f}; heaviest key of {first_token_share(20)}; most of all:" in found
    column = reference.attention_to_position(SAMPLE.patterns, 20, 0)
    order = sorted(range(1, LAST + 1), key=lambda query: -column[query])[:5]
    shown = [line.split()[:3] for line in found if re.match(r" +\d+ [a-zA-Z,.]+ +\d\.\d\d\d ", line)]
    assert shown == [[str(query), TOKENS[query], f"{column[query]:.3f}"] for query in order]
    heads = numbered(found[found.index(" head  mean weight") :])
    assert {head: row.split()[0] for head, row in heads.items()} == {
        head: f"{first_token_mean(20, head):.3f}" for head in range(9)
    }


@pytest.mark.parametrize("heads", [None, [4]], ids=["every head", "head 4"])
def test_demo_layer_shows_its_strongest_edges_as_the_reference_has_them(run: Run, heads: list[int] | None) -> None:
    lines = run("demo", "--no-timing", "--layer", "17", *([] if heads is None else ["--head", "4"]))
    found = section(lines, "Layer 17: which edges are the strongest?")
    assert re.findall(EDGE, "\n".join(found)) == strongest_edges(17, 5, heads)


def test_demo_names_the_calls_that_answer_its_questions(run: Run) -> None:
    cache = AttentionCache()
    for pattern in SAMPLE.patterns:
        cache.push(pattern)
    for arguments in ([], ["--head", "4"], ["--layer", "3"], ["--layer", "3", "--head", "-1", "--position", "5"]):
        lines = run("demo", "--no-timing", *arguments)
        calls = [line.strip() for line in lines if line.startswith("   cache.")]
        assert len(calls) == 3
        for call in "; ".join(calls).split("; "):
            eval(call, {"cache": cache})


@pytest.mark.parametrize("arguments", [[], ["--layer", "17"], ["--head", "4"], ["--top", "100"]], ids=" ".join)
def test_demo_fits_a_hundred_columns(run: Run, arguments: list[str]) -> None:
    assert max(map(len, run("demo", "--no-timing", *arguments))) <= WIDTH


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "30"], "30 is out of range for n_layers=30"),
        (["--layer", "-31"], "-31 is out of range for n_layers=30"),
        (["--head", "9"], "9 is out of range for n_heads=9"),
        (["--head", "-10"], "-10 is out of range for n_heads=9"),
        (["--position", "40"], "40 is out of range for seq_q=40"),
        (["--position", "-41"], "-41 is out of range for seq_q=40"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_demo_out_of_range_is_one_line_on_stderr_nothing_on_stdout_and_exit_1(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(["demo", *arguments]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("attncache: error: ")
    assert errors.endswith(f"{message}\n")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["show"],
        ["demo", "--top", "0"],
        ["demo", "--layer", "x"],
        ["demo", "17"],
        ["info"],
        ["info", "a", "b"],
        ["verify"],
        ["top"],
        ["top", "sample", "-k", "0"],
        ["top", "sample", "--head", "means"],
        ["convert", "sample"],
        ["convert", "sample", "a", "--dtype", "float64"],
        ["convert", "sample", "a", "--mean-only", "--dtype", "float16"],
        ["demo", "--json"],
    ],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_a_command_line_that_makes_no_sense_is_exit_2_with_the_usage(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("usage: attncache")


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)], ids="".join)
def test_help_shows_an_example(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    assert re.search(rf"examples?:\n  attncache (demo|{'|'.join(command)})", capsys.readouterr().out)


def test_python_m_attncache_is_the_same_command(run: Run) -> None:
    done = process("demo", "--no-timing", env={**os.environ, "PYTHONUTF8": "1"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == run("demo", "--no-timing")
    assert process("demo", "--layer", "99").returncode == 1
    assert process("nonsense").returncode == 2


def test_a_terminal_without_utf_8_gets_ascii_in_the_same_columns(run: Run) -> None:
    done = process("demo", "--no-timing", env={**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert [len(line) for line in done.stdout.splitlines()] == [len(line) for line in run("demo", "--no-timing")]
    assert printable("Zürich → 東京", "ascii") == "Z?rich > ??"
    assert printable("Zürich →", "latin-1") == "Zürich >"
    assert printable("→", "utf-8") == "→"
    assert printable("→", None) == ">"


@pytest.mark.parametrize(
    "words", ["demo --no-timing", "info sample", "top sample", "top sample --json", "info missing --json"]
)
def test_a_reader_that_leaves_early_gets_no_traceback(words: str) -> None:
    command = [sys.executable, "-m", "attncache", *words.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        said = running.stderr.read().decode()
        assert running.wait(timeout=120) == 1
    assert re.fullmatch(r"attncache: error: missing: .*\n" if "missing" in words else "", said)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("words", ["info sample", "info sample --json", "info missing --json"])
@pytest.mark.parametrize("stdout", [">/dev/full", ">&-"])
def test_a_stdout_that_takes_nothing_is_said_in_one_line(words: str, stdout: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m attncache {words} {stdout}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert re.fullmatch(r"attncache: error: [^\n]*\n", done.stderr)


def test_ctrl_c_ends_a_command_without_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    assert cli.main(["info", "sample"]) == 130
    assert capsys.readouterr() == ("", "")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"attncache {attncache.__version__}\n"


def test_control_characters_out_of_files_are_shown_and_not_obeyed(run: Run, tmp_path: Path) -> None:
    cache = attncache.AttentionCache()
    cache.push([[[[1.0]]]])
    cache.metadata = {"title": "\x1b]0;mine\x07"}
    cache.save(tmp_path / "run.safetensors")
    shown = "\n".join(run("info", str(tmp_path / "run.safetensors")))
    assert r"\x1b]0;mine\x07" in shown
    assert shown.replace("\n", "").isprintable()


def test_demo_ends_with_the_time_of_a_question(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SHAPE", (1, 4, 32, 32))
    found = section(run("demo", "--layer", "0"), "How long does one question take?")
    (row,) = [line for line in found if line.startswith("   attention_from_position")]
    assert re.search(r"(?: +\d+\.\d\d){2} +\d+\.\dx$", row)
    assert max(map(len, found)) <= WIDTH


def test_a_timing_is_refused_where_an_answer_differs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SHAPE", (1, 4, 32, 32))
    monkeypatch.setattr(AttentionCache, "attention_from_position", lambda *_: np.zeros(32, np.float32))
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == (
        "attncache: error: attention_from_position must equal NumPy's answer, got another\n"
    )
