"""The commands on docs/commands.md print what the page shows.

Covered: every ``$ attncache`` line in a console block, in the order of the page, in an empty folder; "..." stands for lines
that the page leaves out. Also the damaged file of the page. Not covered: what demo prints; test_cli.py has that.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from attncache import cli
from tests.support.command_line import flipped

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "commands.md").read_text(encoding="utf-8")
SHOWN = [
    (match[1], match[2])
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for match in re.finditer(r"\$ attncache (.+)\n((?:(?!\$ ).*\n)*)", block)
]


def test_the_page_shows_every_command_but_demo() -> None:
    assert {words.split()[0] for words, _ in SHOWN} == cli.COMMANDS.keys() - {"demo"}
    assert all(f"`attncache {name}" in PAGE for name in cli.COMMANDS)


def test_the_commands_print_what_the_page_shows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for words, shown in SHOWN:
        cli.main(shlex.split(words))
        pattern = ".*\n".join(map(re.escape, shown.split("...\n")))
        assert re.fullmatch(pattern, capsys.readouterr().out, re.DOTALL), words
    damaged = PAGE.split("```text\n")[1].split("```")[0]
    flipped(Path("run.safetensors"), 200_000)
    assert cli.main(["verify", "run.safetensors"]) == 1
    (checksum,) = re.findall(r"got ([0-9a-f]{8})", damaged)
    assert re.sub(r"got [0-9a-f]{8}", f"got {checksum}", capsys.readouterr().out) == damaged
